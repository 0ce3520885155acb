#include "services/exporter/providers/vsphere/changes.h"

#include <inttypes.h>
#include <string.h>

#include "common/autos.h"
#include "common/parse.h"
#include "services/exporter/providers/vsphere/task.h"

/* ---- change ids ---- */

struct change_id {
    size_t series_length; /* of the uuid in front of the '/' */
    uint64_t sequence;
};

static bool id_read(const char *text, struct change_id *out)
{
    const char *slash = strrchr(text, '/');
    struct error ignored = ERROR_NONE;

    if (slash == NULL || slash == text)
        return false;
    out->series_length = (size_t)(slash - text);
    return parse_u64("sequence", slash + 1, 0, UINT64_MAX, &out->sequence, &ignored) == 0;
}

int changes_compare_ids(const char *since, const char *now, struct error *err)
{
    struct change_id before;
    struct change_id after;

    if (now[0] == '\0') {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "changed block tracking is off for this disk: enable it for the VM");
    }
    if (!id_read(since, &before) || !id_read(now, &after))
        return error_set(err, ERR_NOT_AVAILABLE, "'%.80s' or '%.80s' is no change id", since, now);
    if (before.series_length != after.series_length ||
        strncmp(since, now, after.series_length) != 0) {
        return error_set(
            err, ERR_NOT_AVAILABLE,
            "changed block tracking began anew since the export before (it was '%.80s' "
            "and is '%.80s' now)",
            since, now);
    }
    if (before.sequence > after.sequence) {
        return error_set(
            err, ERR_NOT_AVAILABLE,
            "the disk went back to an earlier state since the export before (it was at "
            "'%.80s' and is at '%.80s' now)",
            since, now);
    }
    return 0;
}

/* ---- answers ---- */

static int number(const xmlNode *parent, const char *name, uint64_t *out, struct error *err)
{
    struct error why = ERROR_NONE;

    if (parse_u64(name, soap_text(parent, name), 0, INT64_MAX, out, &why) == 0)
        return 0;
    return error_set(err, ERR_PROTOCOL, "QueryChangedDiskAreas: %s", why.message);
}

static int area_read(const xmlNode *node, uint64_t at, uint64_t end, struct extent *out,
                     struct error *err)
{
    if (number(node, "start", &out->offset, err) < 0 ||
        number(node, "length", &out->length, err) < 0)
        return -1;
    if (out->offset < at || !range_is_inside(out->offset, out->length, end)) {
        return error_set(err, ERR_PROTOCOL,
                         "QueryChangedDiskAreas: the area of %" PRIu64 " bytes at %" PRIu64
                         " does not lie between %" PRIu64 " and %" PRIu64,
                         out->length, out->offset, at, end);
    }
    return 0;
}

int changes_read(const xmlNode *info, uint64_t offset, uint64_t size, struct extent_list *out,
                 struct error *err)
{
    uint64_t start = 0;
    uint64_t length = 0;
    uint64_t at = offset;

    if (number(info, "startOffset", &start, err) < 0 || number(info, "length", &length, err) < 0)
        return -1;
    if (start != offset || length == 0 || !range_is_inside(start, length, size)) {
        return error_set(err, ERR_PROTOCOL,
                         "QueryChangedDiskAreas: %" PRIu64 " bytes at %" PRIu64
                         " are no answer from %" PRIu64 " on about a disk of %" PRIu64,
                         length, start, offset, size);
    }
    out->count = 0;
    out->end = start + length;
    for (const xmlNode *node = soap_child(info, "changedArea"); node != NULL;
         node = soap_next(node)) {
        struct extent area;
        if (area_read(node, at, start + length, &area, err) < 0)
            return -1;
        at = area.offset + area.length;
        if (out->count == out->count_max) {
            out->end = area.offset; /* asked for again from there */
            return out->end > offset ? 0
                                     : error_set(err, ERR_PROTOCOL,
                                                 "QueryChangedDiskAreas: nothing but empty areas");
        }
        if (area.length > 0)
            out->items[out->count++] = area;
    }
    return 0;
}

/* ---- asking ---- */

/* The server cannot tell since that id: it is too old, tracking was switched off and on, the host
 * crashed. Another try would not help. */
static bool is_stale(const struct soap_fault *fault)
{
    return strcmp(fault->type, "FileFault") == 0 || strcmp(fault->type, "InvalidArgument") == 0 ||
           strcmp(fault->type, "NotFound") == 0 || strcmp(fault->type, "FileNotFound") == 0;
}

static int not_known(const char *since, struct error *err)
{
    struct error why = *err;

    error_clear(err);
    return error_set(err, ERR_NOT_AVAILABLE, "what changed since '%.80s' is not known: %.300s",
                     since, why.message);
}

int changes_query(struct provider_session *session, const struct changes_place *place,
                  const struct changes_query *query, struct extent_list *out, struct error *err)
{
    auto_strbuf request = {0};
    autofree char *offset = xasprintf("%" PRIu64, query->offset);
    auto_soap_reply reply = {0};

    if (changes_compare_ids(query->since, place->now, err) < 0 || session_login(session, err) < 0)
        return -1;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "QueryChangedDiskAreas", "VirtualMachine", place->vm_id);
    if (place->snapshot[0] != '\0')
        soap_add_ref(&request, "snapshot", "VirtualMachineSnapshot", place->snapshot);
    soap_add(&request, "deviceKey", place->device_key);
    soap_add(&request, "startOffset", offset);
    soap_add(&request, "changeId", query->since);
    soap_end(&request, "QueryChangedDiskAreas");
    if (session_call(session, "QueryChangedDiskAreas", &request, 0, &reply, err) < 0)
        return is_stale(&reply.fault) ? not_known(query->since, err) : -1;
    return changes_read(soap_child(reply.response, "returnval"), query->offset, place->size_bytes,
                        out, err);
}

/* ---- switching it on and off ---- */

static const char *const capability_paths[] = {"capability.changeTrackingSupported", NULL};
static const struct property_set capability_set = {"VirtualMachine", capability_paths};

int changes_check_supported(struct provider_session *session, const char *vm_id, struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;

    if (property_get(session, &capability_set, vm_id, &reply, &object, err) < 0)
        return -1;
    /* Not told is not refused: then the server decides. */
    if (property_value(object, capability_paths[0]) == NULL ||
        property_bool(object, capability_paths[0]))
        return 0;
    return error_set(err, ERR_NOT_AVAILABLE,
                     "the VM cannot track changes: it needs virtual hardware version 7 or later");
}

int changes_set_tracking(struct provider_session *session, const char *vm_id, bool on,
                         struct error *err)
{
    auto_strbuf request = {0};

    if (session_login(session, err) < 0)
        return -1;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "ReconfigVM_Task", "VirtualMachine", vm_id);
    strbuf_add(&request, "<spec>");
    soap_add(&request, "changeTrackingEnabled", on ? "true" : "false");
    strbuf_add(&request, "</spec>");
    soap_end(&request, "ReconfigVM_Task");
    return task_run(session, "ReconfigVM_Task", &request, TASK_RECONFIGURE_TIMEOUT_MS, NULL, err);
}
