/* See cdrom.h.
 *
 * One ReconfigVM_Task takes all drives or none. What is about to go is recorded before: when an
 * attempt dies behind the call, the next one finds no drive and tells of those in the records. */
#include "services/exporter/providers/vsphere/cdrom.h"

#include <inttypes.h>
#include <string.h>

#include "common/autos.h"
#include "common/log.h"
#include "common/parse.h"
#include "services/exporter/providers/vsphere/inventory.h"
#include "services/exporter/providers/vsphere/task.h"

#define TYPE_BYTES_MAX 96

static const char *const device_paths[] = {"config.hardware.device", NULL};
static const struct property_set device_set = {"VirtualMachine", device_paths};

void cdroms_release(struct cdroms *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].key);
        free(list->items[i].text);
    }
    list->count = 0;
}

/* ---- reading ---- */

/* What is in the drive, or what it is connected to. Caller frees. */
static char *backing_text(const xmlNode *backing)
{
    char type[TYPE_BYTES_MAX];
    const char *file = soap_text(backing, "fileName");
    const char *device = soap_text(backing, "deviceName");

    soap_xsi_type(backing, type, sizeof type);
    if (strcmp(type, "VirtualCdromIsoBackingInfo") == 0)
        return file[0] == '\0' ? xstrdup("no ISO file") : xasprintf("ISO file '%s'", file);
    if (strncmp(type, "VirtualCdromRemote", strlen("VirtualCdromRemote")) == 0)
        return device[0] == '\0' ? xstrdup("client device")
                                 : xasprintf("client device '%s'", device);
    if (device[0] != '\0')
        return xasprintf("host device '%s'", device);
    return xstrdup(type[0] == '\0' ? "no backing" : type);
}

static char *drive_text(const xmlNode *device, const char *key)
{
    const char *label = soap_text(soap_child(device, "deviceInfo"), "label");
    autofree char *backing = backing_text(soap_child(device, "backing"));
    autofree char *text = label[0] == '\0'
                              ? xasprintf("drive %s: %s", key, backing)
                              : xasprintf("%.*s: %s", CDROM_LABEL_BYTES_MAX, label, backing);

    return utf8_clean(text, CDROM_TEXT_BYTES_MAX);
}

int cdroms_read(const xmlNode *devices, struct cdroms *out, struct error *err)
{
    size_t count = 0;

    assert(out->count == 0);
    for (const xmlNode *node = soap_child(devices, "VirtualDevice"); node != NULL;
         node = soap_next(node)) {
        const char *key = soap_text(node, "key");
        char type[TYPE_BYTES_MAX];
        if (++count > DEVICES_MAX)
            return error_set(err, ERR_LIMIT, "the VM has more than %d devices", DEVICES_MAX);
        soap_xsi_type(node, type, sizeof type);
        if (strcmp(type, "VirtualCdrom") != 0)
            continue;
        if (key[0] == '\0')
            return error_set(err, ERR_PROTOCOL, "a CD-ROM drive of the VM has no key");
        if (out->count == CDROMS_MAX) {
            return error_set(err, ERR_LIMIT,
                             "the VM has more than %d CD-ROM drives: remove them in vCenter, and "
                             "leave remove_cdrom out",
                             CDROMS_MAX);
        }
        out->items[out->count++] =
            (struct cdrom){.key = xstrdup(key), .text = drive_text(node, key)};
    }
    return 0;
}

static int look(struct provider_session *session, const char *vm_id, struct cdroms *out,
                struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;

    if (property_get(session, &device_set, vm_id, &reply, &object, err) < 0)
        return -1;
    return cdroms_read(property_value(object, device_paths[0]), out, err);
}

/* ---- records ---- */

static int put_intent(struct task_records *records, const struct cdroms *list, struct error *err)
{
    autofree char *count = xasprintf("%zu", list->count);

    for (size_t i = 0; i < list->count; i++) {
        autofree char *key = xasprintf(CDROM_RECORD ".%zu", i);
        if (records->put(records, key, list->items[i].text, err) < 0)
            return -1;
    }
    return records->put(records, CDROM_RECORD, count, err); /* last: the others are there then */
}

static void tell_recorded(struct task_records *records, void (*tell)(void *arg, const char *drive),
                          void *arg)
{
    const char *recorded = records->get(records, CDROM_RECORD);
    struct error ignored = ERROR_NONE;
    uint64_t count = 0;

    if (recorded == NULL || parse_u64("count", recorded, 0, CDROMS_MAX, &count, &ignored) < 0)
        return;
    for (uint64_t i = 0; i < count; i++) {
        autofree char *key = xasprintf(CDROM_RECORD ".%" PRIu64, i);
        const char *drive = records->get(records, key);
        if (drive != NULL)
            tell(arg, drive);
    }
}

/* ---- removing ---- */

void cdroms_request(struct strbuf *sb, const char *vm_id, const struct cdroms *list)
{
    soap_begin(sb, "ReconfigVM_Task", "VirtualMachine", vm_id);
    strbuf_add(sb, "<spec>");
    for (size_t i = 0; i < list->count; i++) {
        strbuf_add(sb, "<deviceChange><operation>remove</operation>"
                       "<device xsi:type=\"VirtualCdrom\">");
        soap_add(sb, "key", list->items[i].key);
        strbuf_add(sb, "</device></deviceChange>");
    }
    strbuf_add(sb, "</spec>");
    soap_end(sb, "ReconfigVM_Task");
}

/* Drives at an IDE controller are no device that a running VM can lose; each server has its own
 * fault for that. */
static int explain(struct provider_session *session, const char *vm_id, struct error *err)
{
    struct error cause = *err;
    struct error unknown = ERROR_NONE;
    enum vm_power power = VM_POWER_UNKNOWN;

    if (err->code == ERR_DENIED || err->code == ERR_NOT_FOUND ||
        inventory_power(session, vm_id, &power, &unknown) < 0 || power != VM_POWER_ON)
        return error_wrap(err, "removing the CD-ROM drives");
    error_clear(err);
    return error_set(err, ERR_CONFLICT,
                     "the CD-ROM drives cannot be removed while the VM is powered on: shut it down "
                     "first (a pre-hook of type shutdown, options.shutdown_vm, --power-off), or "
                     "leave remove_cdrom out (%.200s)",
                     cause.message);
}

/* The call failed with err. Somebody else may have been quicker: what counts is what is left. */
static int after_failure(struct provider_session *session, const char *vm_id,
                         struct task_records *records, struct error *err)
{
    struct error ignored = ERROR_NONE;
    auto_cdroms left = {0};

    if (err->code == ERR_CANCELLED || error_is_retryable(err))
        return -1; /* the next attempt looks */
    if (look(session, vm_id, &left, &ignored) == 0 && left.count == 0) {
        error_clear(err);
        return 0;
    }
    error_clear(&ignored);
    (void)explain(session, vm_id, err);
    /* else a later attempt that finds no drive would tell of these: too much, not too little */
    (void)records->put(records, CDROM_RECORD, "", &ignored);
    return -1;
}

int cdrom_remove_all(struct provider_session *session, const char *vm_id,
                     struct task_records *records, void (*tell)(void *arg, const char *drive),
                     void *arg, struct error *err)
{
    auto_cdroms list = {0};
    auto_strbuf request = {0};

    if (look(session, vm_id, &list, err) < 0)
        return -1;
    if (list.count > 0) {
        strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
        cdroms_request(&request, vm_id, &list);
        if (put_intent(records, &list, err) < 0)
            return -1;
        if (task_run(session, "ReconfigVM_Task", &request, TASK_RECONFIGURE_TIMEOUT_MS, NULL, err) <
                0 &&
            after_failure(session, vm_id, records, err) < 0)
            return -1;
        LOG(INFO, "vsphere_cdroms_removed", F_STR("vm", vm_id), F_U64("count", list.count));
    }
    tell_recorded(records, tell, arg);
    return 0;
}
