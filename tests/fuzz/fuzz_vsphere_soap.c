/* Replies of a vSphere server, and the inventory in them. */
#include <libxml/parser.h>

#include "services/exporter/providers/vsphere/inventory.h"

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
    }
    inventory_names_free(names);
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
    return 0;
}
