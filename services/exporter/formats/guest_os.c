/* See guest_os.h. */
#include "services/exporter/formats/guest_os.h"

#include <string.h>
#include <strings.h>

#include "common/base.h"

#define CIM_OTHER 1U

/* vSphere's VirtualMachineGuestOsIdentifier by its beginning; the first match counts. Windows has
 * no CIM numbers here: importers go by vmw:osType, and a wrong number is worse than "other". */
static const struct {
    const char *start;
    const char *hint;
    unsigned int cim_32;
    unsigned int cim_64;
} families[] = {
    {"debian", "linux", 95, 96},
    {"ubuntu", "linux", 93, 94},
    {"rhel", "linux", 79, 80},
    {"redhat", "linux", 79, 80},
    {"centos", "linux", 106, 107},
    {"sles", "linux", 84, 85},
    {"suse", "linux", 82, 83},
    {"oracleLinux", "linux", 108, 109},
    {"opensuse", "linux", 36, 101},
    {"fedora", "linux", 36, 101},
    {"rockylinux", "linux", 36, 101},
    {"almalinux", "linux", 36, 101},
    {"amazonlinux", "linux", 36, 101},
    {"asianux", "linux", 36, 101},
    {"coreos", "linux", 36, 101},
    {"vmwarePhoton", "linux", 36, 101},
    {"mandrake", "linux", 36, 101},
    {"mandriva", "linux", 36, 101},
    {"turboLinux", "linux", 36, 101},
    {"miraclelinux", "linux", 36, 101},
    {"pardus", "linux", 36, 101},
    {"nld9", "linux", 36, 101},
    {"oes", "linux", 36, 101},
    {"genericLinux", "linux", 36, 101},
    {"otherLinux", "linux", 36, 101},
    {"other24xLinux", "linux", 36, 101},
    {"other26xLinux", "linux", 36, 101},
    {"other3xLinux", "linux", 36, 101},
    {"other4xLinux", "linux", 36, 101},
    {"other5xLinux", "linux", 36, 101},
    {"other6xLinux", "linux", 36, 101},
    {"other7xLinux", "linux", 36, 101},
    {"win", "windows", CIM_OTHER, CIM_OTHER},
};

const char *guest_os_hint(const char *guest_id)
{
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        if (strncasecmp(guest_id, families[i].start, strlen(families[i].start)) == 0)
            return families[i].hint;
    }
    return "unknown";
}

unsigned int guest_os_cim_type(const char *guest_id)
{
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        if (strncasecmp(guest_id, families[i].start, strlen(families[i].start)) == 0)
            return strstr(guest_id, "64") != NULL ? families[i].cim_64 : families[i].cim_32;
    }
    return CIM_OTHER;
}
