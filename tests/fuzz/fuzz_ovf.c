/* OVF descriptors. */
#include <libxml/parser.h>

#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ovf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void ignore(void *arg, const char *format, ...)
{
    (void)arg;
    (void)format;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    xmlInitParser();
    xmlSetGenericErrorFunc(NULL, ignore);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    struct error missing = ERROR_NONE;
    auto_ovf *ovf = NULL;

    if (ovf_read((const char *)data, size, &ovf, &err) < 0)
        return 0;
    /* Names are checked before they are looked up: this stays inside of an empty place. */
    if (ovf_check_files(ovf, "/proc/self/fdinfo", &missing) == 0)
        return 0;
    if (missing.code == ERR_NONE)
        abort();
    return 0;
}
