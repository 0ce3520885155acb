/* What protobuf-c does not check: version, lengths, UTF-8, enumerators, ranges. One function per
 * message; bus_envelope_check dispatches. Inside the suite these fields are trusted afterwards. */
#include "common/bus.h"

#include <string.h>

#include "common/id.h"
#include "common/strbuf.h"

#define RATE_MAX        (UINT64_C(1) << 50) /* bytes per second */
#define ID_MAX          128
#define JSON_TEXT_MAX   (512 * KIB) /* a job definition or result is at most a few KiB */
#define VM_JSON_MAX     (64 * KIB)
#define VOLUMES_MAX     64
#define KINDS_MAX       32
#define RECORDS_MAX     256
#define RECORD_TEXT_MAX 4096
#define DISKS_MAX       64
#define CONTROLS_MAX    16
#define SEALED_MAX      (70 * KIB)
#define JOB_IDS_MAX     10000
#define SLOTS_MAX       64

static int check_text(const char *name, const char *text, size_t min, size_t max, struct error *err)
{
    size_t length = strlen(text);

    if (length < min || length > max) {
        return error_set(err, ERR_PROTOCOL, "bus: %s has %zu bytes, %zu to %zu are allowed", name,
                         length, min, max);
    }
    if (!utf8_is_valid(text))
        return error_set(err, ERR_PROTOCOL, "bus: %s is not UTF-8", name);
    return 0;
}

static int check_count(const char *name, size_t count, size_t max, struct error *err)
{
    if (count > max) {
        return error_set(err, ERR_PROTOCOL, "bus: %zu %s, at most %zu are allowed", count, name,
                         max);
    }
    return 0;
}

static int check_ref(const Hypersdk__V1__TaskRef *ref, struct error *err)
{
    if (ref == NULL)
        return error_set(err, ERR_PROTOCOL, "bus: task reference is missing");
    if (ref->epoch == 0 || ref->epoch > INT64_MAX)
        return error_set(err, ERR_PROTOCOL, "bus: epoch is out of range");
    if (ref->token.len != TOKEN_BYTES) {
        return error_set(err, ERR_PROTOCOL, "bus: token of %zu bytes, expected %d", ref->token.len,
                         TOKEN_BYTES);
    }
    return check_text("task id", ref->task_id, 1, ID_MAX, err);
}

static int check_class(Hypersdk__V1__TaskClass value, struct error *err)
{
    if (value != HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER &&
        value != HYPERSDK__V1__TASK_CLASS__TASK_CLASS_CONTROL)
        return error_set(err, ERR_PROTOCOL, "bus: task class %d is unknown", (int)value);
    return 0;
}

static int check_lease_request(const Hypersdk__V1__LeaseRequest *m, struct error *err)
{
    if (check_text("instance", m->instance, 1, ID_MAX, err) < 0 ||
        check_text("role", m->role, 1, 32, err) < 0 ||
        check_text("provider", m->provider, 0, 64, err) < 0 || check_class(m->class_, err) < 0 ||
        check_count("task kinds", m->n_task_kinds, KINDS_MAX, err) < 0 ||
        check_count("volumes", m->n_volumes, VOLUMES_MAX, err) < 0 ||
        check_text("host", m->host, 0, 256, err) < 0 ||
        check_text("version", m->version, 0, 64, err) < 0 ||
        check_text("capabilities", m->capabilities_json, 0, 64 * KIB, err) < 0)
        return -1;
    if (strcmp(m->role, "exporter") != 0 && strcmp(m->role, "bridge") != 0)
        return error_set(err, ERR_PROTOCOL, "bus: role '%s' is unknown", m->role);
    if (m->slots_total == 0 || m->slots_total > SLOTS_MAX || m->slot >= m->slots_total) {
        return error_set(err, ERR_PROTOCOL, "bus: slot %u of %u is out of range", m->slot,
                         m->slots_total);
    }
    for (size_t i = 0; i < m->n_task_kinds; i++) {
        if (check_text("task kind", m->task_kinds[i], 1, 32, err) < 0)
            return -1;
    }
    for (size_t i = 0; i < m->n_volumes; i++) {
        if (check_text("volume id", m->volumes[i]->id, 1, ID_MAX, err) < 0 ||
            check_text("volume path", m->volumes[i]->path, 1, 4096, err) < 0)
            return -1;
    }
    return 0;
}

static int check_record(const Hypersdk__V1__Record *m, struct error *err)
{
    if (m == NULL)
        return error_set(err, ERR_PROTOCOL, "bus: record is missing");
    if (check_text("record key", m->key, 1, ID_MAX, err) < 0)
        return -1;
    return check_text("record value", m->value, 0, RECORD_TEXT_MAX, err);
}

static int check_lines(Hypersdk__V1__LogLine *const *lines, size_t count, struct error *err)
{
    if (check_count("log lines", count, BUS_LOG_LINES_MAX, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (lines[i]->number == 0 || lines[i]->number > INT64_MAX)
            return error_set(err, ERR_PROTOCOL, "bus: log line number is out of range");
        if (check_text("log level", lines[i]->level, 1, 8, err) < 0 ||
            check_text("log phase", lines[i]->phase, 0, 32, err) < 0 ||
            check_text("log message", lines[i]->message, 0, BUS_LOG_MESSAGE_MAX, err) < 0)
            return -1;
    }
    return 0;
}

static int check_control(const Hypersdk__V1__TaskControl *m, struct error *err)
{
    if (m->kind != HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL &&
        m->kind != HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_PAUSE &&
        m->kind != HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_RATE_LIMIT &&
        m->kind != HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_DRAIN)
        return error_set(err, ERR_PROTOCOL, "bus: control kind %d is unknown", (int)m->kind);
    return check_text("control task", m->task_id, 0, ID_MAX, err);
}

static int check_controls(Hypersdk__V1__TaskControl *const *controls, size_t count,
                          struct error *err)
{
    if (check_count("controls", count, CONTROLS_MAX, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (check_control(controls[i], err) < 0)
            return -1;
    }
    return 0;
}

/* NULL: none is set. */
static int check_worker_limit(const Hypersdk__V1__WorkerLimit *m, struct error *err)
{
    if (m == NULL || (m->bytes_per_second <= RATE_MAX && m->burst_bytes <= RATE_MAX))
        return 0;
    return error_set(err, ERR_PROTOCOL, "bus: a worker's limit is out of range");
}

static int check_lease_ms(int64_t lease_ms, struct error *err)
{
    if (lease_ms < 1000 || lease_ms > 3600000) {
        return error_set(err, ERR_PROTOCOL, "bus: lease of %lld ms is out of range",
                         (long long)lease_ms);
    }
    return 0;
}

static int check_task_lease(const Hypersdk__V1__TaskLease *m, struct error *err)
{
    if (check_ref(m->ref, err) < 0 || check_text("job id", m->job_id, 0, ID_MAX, err) < 0 ||
        check_text("kind", m->kind, 1, 32, err) < 0 || check_lease_ms(m->lease_ms, err) < 0 ||
        check_text("spec", m->spec_json, 2, JSON_TEXT_MAX, err) < 0 ||
        check_count("records", m->n_records, RECORDS_MAX, err) < 0 ||
        check_text("provider name", m->provider_name, 0, 64, err) < 0 ||
        check_text("settings", m->settings_json, 0, 64 * KIB, err) < 0 ||
        check_count("sealed bytes", m->sealed_secrets.len, SEALED_MAX, err) < 0 ||
        check_text("audience", m->audience, 0, 128, err) < 0 ||
        check_controls(m->controls, m->n_controls, err) < 0 ||
        check_worker_limit(m->worker_limit, err) < 0)
        return -1;
    for (size_t i = 0; i < m->n_records; i++) {
        if (check_record(m->records[i], err) < 0)
            return -1;
    }
    return 0;
}

static int check_inventory_page(const Hypersdk__V1__InventoryPage *m, struct error *err)
{
    if (check_ref(m->ref, err) < 0 || check_count("VMs", m->n_vms, BUS_PAGE_VMS_MAX, err) < 0)
        return -1;
    if (m->page == 0 || m->page > 100000)
        return error_set(err, ERR_PROTOCOL, "bus: inventory page %u is out of range", m->page);
    for (size_t i = 0; i < m->n_vms; i++) {
        const Hypersdk__V1__InventoryVm *vm = m->vms[i];
        if (check_text("VM id", vm->id, 1, 512, err) < 0 ||
            check_text("VM name", vm->name, 0, 1024, err) < 0 ||
            check_text("VM path", vm->path, 0, 4096, err) < 0 ||
            check_text("power state", vm->power_state, 0, 32, err) < 0 ||
            check_text("VM facts", vm->vm_json, 2, VM_JSON_MAX, err) < 0)
            return -1;
    }
    return 0;
}

static int check_progress(const Hypersdk__V1__TaskProgress *m, struct error *err)
{
    if (check_ref(m->ref, err) < 0 || check_text("job id", m->job_id, 0, ID_MAX, err) < 0 ||
        check_text("phase", m->phase, 0, 32, err) < 0 ||
        check_text("limited by", m->limited_by, 0, 32, err) < 0 ||
        check_count("disks", m->n_disks, DISKS_MAX, err) < 0)
        return -1;
    if (m->bytes_transferred > INT64_MAX || m->bytes_done > INT64_MAX || m->bytes_total > INT64_MAX)
        return error_set(err, ERR_PROTOCOL, "bus: progress is out of range");
    for (size_t i = 0; i < m->n_disks; i++) {
        if (check_text("disk id", m->disks[i]->id, 0, ID_MAX, err) < 0 ||
            check_text("disk file", m->disks[i]->file, 0, BUS_TEXT_MAX, err) < 0 ||
            check_text("disk state", m->disks[i]->state, 0, 32, err) < 0)
            return -1;
    }
    return 0;
}

static int check_jobs_changed(const Hypersdk__V1__JobsChanged *m, struct error *err)
{
    if (check_count("job ids", m->n_job_ids, JOB_IDS_MAX, err) < 0)
        return -1;
    for (size_t i = 0; i < m->n_job_ids; i++) {
        if (check_text("job id", m->job_ids[i], 1, ID_MAX, err) < 0)
            return -1;
    }
    return 0;
}

static int check_fail(const Hypersdk__V1__TaskFail *m, struct error *err)
{
    if (check_ref(m->ref, err) < 0 || check_text("error code", m->error_code, 1, 64, err) < 0 ||
        check_text("error message", m->message, 0, BUS_LOG_MESSAGE_MAX, err) < 0 ||
        check_text("phase", m->phase, 0, 32, err) < 0 ||
        check_text("result", m->result_json, 0, JSON_TEXT_MAX, err) < 0)
        return -1;
    return check_lines(m->lines, m->n_lines, err);
}

static int check_body_to_scheduler(const bus_envelope *m, struct error *err)
{
    switch ((int)m->body_case) {
    case HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST:
        return check_lease_request(m->lease_request, err);
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_RENEW:
        if (check_ref(m->task_renew->ref, err) < 0 ||
            check_text("phase", m->task_renew->phase, 0, 32, err) < 0)
            return -1;
        return check_lines(m->task_renew->lines, m->task_renew->n_lines, err);
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_RECORD:
        if (check_ref(m->task_record->ref, err) < 0)
            return -1;
        return check_record(m->task_record->record, err);
    case HYPERSDK__V1__ENVELOPE__BODY_FINISH_PERMIT:
        return check_ref(m->finish_permit->ref, err);
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH:
        if (check_ref(m->task_finish->ref, err) < 0 ||
            check_text("result", m->task_finish->result_json, 2, JSON_TEXT_MAX, err) < 0)
            return -1;
        return check_lines(m->task_finish->lines, m->task_finish->n_lines, err);
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_FAIL:
        return check_fail(m->task_fail, err);
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_YIELD:
        if (check_ref(m->task_yield->ref, err) < 0 ||
            check_text("reason", m->task_yield->reason, 0, BUS_TEXT_MAX, err) < 0)
            return -1;
        return check_lines(m->task_yield->lines, m->task_yield->n_lines, err);
    case HYPERSDK__V1__ENVELOPE__BODY_INVENTORY_PAGE:
        return check_inventory_page(m->inventory_page, err);
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_PROGRESS:
        return check_progress(m->task_progress, err);
    case HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED:
        return check_jobs_changed(m->jobs_changed, err);
    default:
        return error_set(err, ERR_PROTOCOL, "bus: message kind %d is unknown", (int)m->body_case);
    }
}

static int check_body(const bus_envelope *m, struct error *err)
{
    switch ((int)m->body_case) {
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE:
        return check_task_lease(m->task_lease, err);
    case HYPERSDK__V1__ENVELOPE__BODY_NO_TASK:
        return 0;
    case HYPERSDK__V1__ENVELOPE__BODY_RENEW_REPLY:
        if (!m->renew_reply->lost && check_lease_ms(m->renew_reply->lease_ms, err) < 0)
            return -1;
        if (check_worker_limit(m->renew_reply->worker_limit, err) < 0)
            return -1;
        return check_controls(m->renew_reply->controls, m->renew_reply->n_controls, err);
    case HYPERSDK__V1__ENVELOPE__BODY_ACK:
        return check_text("error", m->ack->error, 0, BUS_LOG_MESSAGE_MAX, err);
    case HYPERSDK__V1__ENVELOPE__BODY_PERMIT_REPLY:
        return check_text("reason", m->permit_reply->reason, 0, BUS_TEXT_MAX, err);
    case HYPERSDK__V1__ENVELOPE__BODY_JOB_CHANGED:
        if (check_text("job id", m->job_changed->job_id, 1, ID_MAX, err) < 0)
            return -1;
        return check_text("event", m->job_changed->event, 1, 64, err);
    case HYPERSDK__V1__ENVELOPE__BODY_WORKER_CHANGED:
        if (check_text("instance", m->worker_changed->instance, 1, ID_MAX, err) < 0)
            return -1;
        return check_text("state", m->worker_changed->state, 1, 32, err);
    case HYPERSDK__V1__ENVELOPE__BODY_TASK_CONTROL:
        return check_control(m->task_control, err);
    case HYPERSDK__V1__ENVELOPE__BODY_SCHEDULER_CHANGED:
        if (check_text("holder", m->scheduler_changed->holder, 1, ID_MAX, err) < 0)
            return -1;
        return check_text("state", m->scheduler_changed->state, 1, 32, err);
    default:
        return check_body_to_scheduler(m, err);
    }
}

int bus_envelope_check(const bus_envelope *envelope, struct error *err)
{
    if (envelope->version != BUS_PROTOCOL_VERSION) {
        return error_set(err, ERR_PROTOCOL,
                         "bus: protocol version %u, this build speaks %u (mixed installations?)",
                         envelope->version, BUS_PROTOCOL_VERSION);
    }
    if (check_text("message id", envelope->message_id, 1, ID_MAX, err) < 0 ||
        check_text("sender", envelope->sender, 1, ID_MAX, err) < 0 ||
        check_text("traceparent", envelope->traceparent, 0, 64, err) < 0 ||
        check_text("publisher epoch", envelope->epoch, 0, ID_MAX, err) < 0)
        return -1;
    return check_body(envelope, err);
}
