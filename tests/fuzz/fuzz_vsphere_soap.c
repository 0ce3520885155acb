/* Replies of a vSphere server: inventory, changed areas, export leases, manifests. */
#include <libxml/parser.h>
#include <stdlib.h>
#include <string.h>

#include "services/exporter/engine/source.h"
#include "services/exporter/providers/vsphere/cdrom.h"
#include "services/exporter/providers/vsphere/changes.h"
#include "services/exporter/providers/vsphere/nfc_lease.h"
#include "services/exporter/providers/vsphere/property.h"

#define DISK_BYTES (64 * MIB)

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

static void read_lease(const xmlNode *object)
{
    char type[] = "scsi", model[] = "pvscsi", label[] = "Hard disk 1";
    struct vm_disk disk = {.controller_type = type, .controller_model = model, .label = label};
    struct nfc_lease lease = {0};
    struct error err = ERROR_NONE;

    if (nfc_lease_read(property_value(object, "info"), "https://vc.test:443", &disk, &lease,
                       &err) == 0 &&
        (strncmp(lease.url, "https://", 8) != 0 || lease.timeout_ms <= 0))
        abort();
    nfc_lease_release(&lease);
}

static void read_cdroms(const xmlNode *object)
{
    struct error err = ERROR_NONE;
    auto_cdroms list = {0};

    if (cdroms_read(property_value(object, "config.hardware.device"), &list, &err) < 0)
        return;
    for (size_t i = 0; i < list.count; i++) {
        if (strlen(list.items[i].text) > CDROM_TEXT_BYTES_MAX || !utf8_is_valid(list.items[i].text))
            abort();
    }
}

static void read_objects(const xmlNode *parent)
{
    struct inventory_names *names = inventory_names_new();

    for (const xmlNode *object = soap_child(parent, "objects"); object != NULL;
         object = soap_next(object)) {
        struct error err = ERROR_NONE;
        if (inventory_names_add(names, object, &err) < 0)
            break;
    }
    inventory_names_sort(names);
    for (const xmlNode *object = soap_child(parent, "objects"); object != NULL;
         object = soap_next(object)) {
        struct error err = ERROR_NONE;
        auto_vsphere_vm vm;
        vsphere_vm_init(&vm);
        if (inventory_read_vm(object, names, &vm, &err) == 0)
            json_decref(vm_to_json(&vm.vm, "fuzz"));
        read_lease(object);
        read_cdroms(object);
    }
    inventory_names_free(names);
}

/* What is taken is what the engine believes. */
static void read_changes(const xmlNode *info, uint64_t offset)
{
    struct extent items[8];
    struct extent_list list = {.items = items, .count_max = 8};
    struct error err = ERROR_NONE;
    struct error wrong = ERROR_NONE;

    if (changes_read(info, offset, DISK_BYTES, &list, &err) == 0 &&
        extent_list_check(&list, offset, DISK_BYTES, "changes", &wrong) < 0)
        abort();
}

static void read_ids(const xmlNode *info)
{
    struct error err = ERROR_NONE;

    (void)(changes_compare_ids(soap_text(info, "since"), soap_text(info, "now"), &err) == 0);
}

static void read_manifest(const xmlNode *response)
{
    struct nfc_sent sent = {.size_bytes = 4096, .capacity_bytes = 1024, .sha1 = "00"};
    struct error err = ERROR_NONE;

    if (nfc_manifest_compare(response, "/vm-1/ParaVirtualSCSIController0:0", &sent, &err) < 0)
        error_clear(&err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    struct error fault = ERROR_NONE;
    auto_soap_reply reply = {0};

    if (soap_parse((const char *)data, size, &reply, &err) < 0)
        return 0;
    if (reply.fault.type[0] != '\0')
        return soap_fault_error(&reply.fault, "fuzz", &fault) == -1 ? 0 : -1;
    read_objects(reply.response);
    read_objects(soap_child(reply.response, "returnval"));
    read_changes(soap_child(reply.response, "returnval"), 0);
    read_changes(soap_child(reply.response, "returnval"), MIB);
    read_ids(soap_child(reply.response, "returnval"));
    read_manifest(reply.response);
    return 0;
}
