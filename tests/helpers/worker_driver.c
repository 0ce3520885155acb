/* A scripted worker for tests: commands as JSON lines on stdin, answers as JSON lines on stdout.
 * Speaks the real bus, and job_store for what the gateway does to jobs.
 *
 *   worker_driver <configuration file>
 *   {"id": 1, "op": "lease", "instance": "w1", "provider": "vsphere", "kinds": ["export"], ...}
 *   {"id": 1, "reply": "task_lease", "task_id": "task-...", "epoch": 1, "token": "<hex>", ...}
 *
 * Every command runs in its own thread, so that a lease can be parked while others go on; "id"
 * tells whose answer it is. "message_id" repeats a message as it was. Announcements come
 * unasked: {"announce": "control", ...}. End of input ends the program. */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/bus.h"
#include "common/config.h"
#include "common/db.h"
#include "common/id.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/service.h"

#define LINE_BYTES_MAX  ((size_t)(4 * MIB))
#define ITEMS_MAX       600
#define CALL_MS_DEFAULT 10000

static struct bus_client *client;
static struct bus_pusher *pusher;
static struct database_config database;
static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER; /* guards stdout */

static void print(const json_t *json)
{
    autofree char *text = json_text(json);

    LOCK_SCOPE(&output);
    (void)printf("%s\n", text);
    (void)fflush(stdout);
}

static char *text_of(const json_t *object, const char *key)
{
    return (char *)(uintptr_t)json_str(object, key);
}

static void set_u64(json_t *object, const char *key, uint64_t value)
{
    (void)json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* ---- messages of a worker ---- */

struct message { /* what an envelope of ours points into */
    const json_t *command;
    bus_envelope envelope;
    struct bus_envelope_store store;
    Hypersdk__V1__TaskRef ref;
    uint8_t token[TOKEN_BYTES];
    Hypersdk__V1__LogLine lines[ITEMS_MAX];
    Hypersdk__V1__LogLine *line_pointers[ITEMS_MAX];
    size_t line_count;
    char *kinds[ITEMS_MAX];
    Hypersdk__V1__Volume volumes[ITEMS_MAX];
    Hypersdk__V1__Volume *volume_pointers[ITEMS_MAX];
    Hypersdk__V1__InventoryVm vms[ITEMS_MAX];
    Hypersdk__V1__InventoryVm *vm_pointers[ITEMS_MAX];
    Hypersdk__V1__Record record;
    union {
        Hypersdk__V1__LeaseRequest lease;
        Hypersdk__V1__TaskRenew renew;
        Hypersdk__V1__TaskRecord record;
        Hypersdk__V1__FinishPermit permit;
        Hypersdk__V1__TaskFinish finish;
        Hypersdk__V1__TaskFail fail;
        Hypersdk__V1__TaskYield yield;
        Hypersdk__V1__InventoryPage page;
        Hypersdk__V1__TaskProgress progress;
        Hypersdk__V1__JobsChanged changed;
    } body;
};

static void fill_ref(struct message *m)
{
    hypersdk__v1__task_ref__init(&m->ref);
    m->ref.task_id = text_of(m->command, "task_id");
    m->ref.epoch = json_u64(m->command, "epoch");
    if (hex_decode(text_of(m->command, "token"), m->token, sizeof m->token))
        m->ref.token = (ProtobufCBinaryData){sizeof m->token, m->token};
}

static void fill_lines(struct message *m)
{
    const json_t *lines = json_object_get(m->command, "lines");
    const json_t *line;
    size_t i;

    json_array_foreach(lines, i, line)
    {
        Hypersdk__V1__LogLine *out = &m->lines[i];
        hypersdk__v1__log_line__init(out);
        out->number = json_u64(line, "number");
        out->at_ms = (int64_t)json_u64(line, "at_ms");
        out->level = text_of(line, "level");
        out->phase = text_of(line, "phase");
        out->message = text_of(line, "message");
        m->line_pointers[m->line_count++] = out;
    }
}

static void lease(struct message *m)
{
    Hypersdk__V1__LeaseRequest *b = &m->body.lease;
    const json_t *list = json_object_get(m->command, "kinds");
    const json_t *item;
    size_t i;

    hypersdk__v1__lease_request__init(b);
    b->instance = text_of(m->command, "instance");
    b->role = text_of(m->command, "role");
    b->provider = text_of(m->command, "provider");
    b->class_ = strcmp(text_of(m->command, "class"), "control") == 0
                    ? HYPERSDK__V1__TASK_CLASS__TASK_CLASS_CONTROL
                    : HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
    json_array_foreach(list, i, item) m->kinds[b->n_task_kinds++] =
        (char *)(uintptr_t)json_string_value(item);
    b->task_kinds = m->kinds;
    json_array_foreach(json_object_get(m->command, "volumes"), i, item)
    {
        hypersdk__v1__volume__init(&m->volumes[i]);
        m->volumes[i].id = (char *)(uintptr_t)json_string_value(item);
        m->volumes[i].path = m->volumes[i].id;
        m->volume_pointers[b->n_volumes++] = &m->volumes[i];
    }
    b->volumes = m->volume_pointers;
    b->slot = (uint32_t)json_u64(m->command, "slot");
    b->slots_total = (uint32_t)json_u64(m->command, "slots_total");
    b->leaving = json_is_true(json_object_get(m->command, "leaving"));
    b->version = text_of(m->command, "version");
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    m->envelope.lease_request = b;
}

static void renew(struct message *m)
{
    hypersdk__v1__task_renew__init(&m->body.renew);
    m->body.renew.ref = &m->ref;
    m->body.renew.phase = text_of(m->command, "phase");
    m->body.renew.n_lines = m->line_count;
    m->body.renew.lines = m->line_pointers;
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_RENEW;
    m->envelope.task_renew = &m->body.renew;
}

static void record(struct message *m)
{
    hypersdk__v1__task_record__init(&m->body.record);
    hypersdk__v1__record__init(&m->record);
    m->record.key = text_of(m->command, "key");
    m->record.value = text_of(m->command, "value");
    m->body.record.ref = &m->ref;
    m->body.record.record = &m->record;
    m->body.record.exclusive = json_is_true(json_object_get(m->command, "exclusive"));
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_RECORD;
    m->envelope.task_record = &m->body.record;
}

static void permit(struct message *m)
{
    hypersdk__v1__finish_permit__init(&m->body.permit);
    m->body.permit.ref = &m->ref;
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_FINISH_PERMIT;
    m->envelope.finish_permit = &m->body.permit;
}

static void finish(struct message *m)
{
    hypersdk__v1__task_finish__init(&m->body.finish);
    m->body.finish.ref = &m->ref;
    m->body.finish.result_json = text_of(m->command, "result");
    m->body.finish.n_lines = m->line_count;
    m->body.finish.lines = m->line_pointers;
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH;
    m->envelope.task_finish = &m->body.finish;
}

static void fail(struct message *m)
{
    hypersdk__v1__task_fail__init(&m->body.fail);
    m->body.fail.ref = &m->ref;
    m->body.fail.error_code = text_of(m->command, "code");
    m->body.fail.message = text_of(m->command, "message");
    m->body.fail.retryable = json_is_true(json_object_get(m->command, "retryable"));
    m->body.fail.result_json = text_of(m->command, "result");
    m->body.fail.n_lines = m->line_count;
    m->body.fail.lines = m->line_pointers;
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FAIL;
    m->envelope.task_fail = &m->body.fail;
}

static void yield(struct message *m)
{
    hypersdk__v1__task_yield__init(&m->body.yield);
    m->body.yield.ref = &m->ref;
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_YIELD;
    m->envelope.task_yield = &m->body.yield;
}

static void page(struct message *m)
{
    const json_t *vm;
    size_t i;

    hypersdk__v1__inventory_page__init(&m->body.page);
    m->body.page.ref = &m->ref;
    m->body.page.page = (uint32_t)json_u64(m->command, "page");
    m->body.page.last = json_is_true(json_object_get(m->command, "last"));
    json_array_foreach(json_object_get(m->command, "vms"), i, vm)
    {
        hypersdk__v1__inventory_vm__init(&m->vms[i]);
        m->vms[i].id = text_of(vm, "id");
        m->vms[i].name = text_of(vm, "name");
        m->vms[i].path = text_of(vm, "path");
        m->vms[i].power_state = text_of(vm, "power_state");
        m->vms[i].vm_json = text_of(vm, "vm");
        m->vm_pointers[m->body.page.n_vms++] = &m->vms[i];
    }
    m->body.page.vms = m->vm_pointers;
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_INVENTORY_PAGE;
    m->envelope.inventory_page = &m->body.page;
}

static void progress(struct message *m)
{
    Hypersdk__V1__TaskProgress *b = &m->body.progress;

    hypersdk__v1__task_progress__init(b);
    b->ref = &m->ref;
    b->job_id = text_of(m->command, "job_id");
    b->phase = text_of(m->command, "phase");
    b->bytes_transferred = json_u64(m->command, "bytes_transferred");
    b->bytes_done = json_u64(m->command, "bytes_done");
    b->bytes_total = json_u64(m->command, "bytes_total");
    b->eta_seconds = -1;
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_PROGRESS;
    m->envelope.task_progress = b;
}

static void changed(struct message *m)
{
    hypersdk__v1__jobs_changed__init(&m->body.changed);
    m->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED;
    m->envelope.jobs_changed = &m->body.changed;
}

/* ---- answers ---- */

static void tell_controls(json_t *out, Hypersdk__V1__TaskControl *const *controls, size_t count)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(list, json_pack("{s:s,s:i}", "task_id", controls[i]->task_id,
                                                    "kind", (int)controls[i]->kind));
    (void)json_object_set_new(out, "controls", list);
}

static void tell_lease(json_t *out, const Hypersdk__V1__TaskLease *b)
{
    char token[2 * TOKEN_BYTES + 1];
    autofree char *sealed = xcalloc(2, b->sealed_secrets.len + 1);
    json_t *records = json_object();

    json_set_text(out, "reply", "task_lease");
    hex_encode(b->ref->token.data, b->ref->token.len, token);
    hex_encode(b->sealed_secrets.data, b->sealed_secrets.len, sealed);
    json_set_text(out, "task_id", b->ref->task_id);
    set_u64(out, "epoch", b->ref->epoch);
    json_set_text(out, "token", token);
    json_set_text(out, "job_id", b->job_id);
    json_set_text(out, "kind", b->kind);
    set_u64(out, "attempt", b->attempt);
    set_u64(out, "lease_ms", (uint64_t)b->lease_ms);
    (void)json_object_set_new(out, "spec", json_loads(b->spec_json, 0, NULL));
    (void)json_object_set_new(out, "settings", json_loads(b->settings_json, 0, NULL));
    json_set_text(out, "sealed", sealed);
    json_set_text(out, "audience", b->audience);
    json_set_text(out, "provider", b->provider_name);
    for (size_t i = 0; i < b->n_records; i++)
        json_set_text(records, b->records[i]->key, b->records[i]->value);
    (void)json_object_set_new(out, "records", records);
}

static void tell(json_t *out, const bus_envelope *e)
{
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE) {
        tell_lease(out, e->task_lease);
    } else if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_NO_TASK) {
        json_set_text(out, "reply", "no_task");
        set_u64(out, "retry_after_ms", e->no_task->retry_after_ms);
    } else if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_RENEW_REPLY) {
        json_set_text(out, "reply", "renew");
        (void)json_object_set_new(out, "lost", json_boolean(e->renew_reply->lost));
        set_u64(out, "lines_stored", e->renew_reply->lines_stored);
        tell_controls(out, e->renew_reply->controls, e->renew_reply->n_controls);
    } else if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_ACK) {
        json_set_text(out, "reply", "ack");
        (void)json_object_set_new(out, "lost", json_boolean(e->ack->lost));
        (void)json_object_set_new(out, "again", json_boolean(e->ack->again));
        json_set_text(out, "refused", e->ack->error);
    } else if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_PERMIT_REPLY) {
        json_set_text(out, "reply", "permit");
        (void)json_object_set_new(out, "lost", json_boolean(e->permit_reply->lost));
        (void)json_object_set_new(out, "granted", json_boolean(e->permit_reply->granted));
        json_set_text(out, "reason", e->permit_reply->reason);
    }
}

static void on_announcement(void *arg, const bus_envelope *e)
{
    auto_json *out = json_object();

    (void)arg;
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_CONTROL) {
        json_set_text(out, "announce", "control");
        json_set_text(out, "task_id", e->task_control->task_id);
        set_u64(out, "kind", e->task_control->kind);
    } else if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_JOB_CHANGED) {
        json_set_text(out, "announce", "job");
        json_set_text(out, "job_id", e->job_changed->job_id);
        json_set_text(out, "event", e->job_changed->event);
    } else if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_WORKER_CHANGED) {
        json_set_text(out, "announce", "worker");
        json_set_text(out, "instance", e->worker_changed->instance);
        json_set_text(out, "state", e->worker_changed->state);
    }
    print(out);
}

static void on_gap(void *arg)
{
    (void)arg;
}

/* ---- what the gateway does ---- */

static int submit(struct db *db, const json_t *c, json_t *out, struct error *err)
{
    static const uint8_t hash[32] = {1};
    struct job_submission s = {
        .id = json_object_get(c, "job_id") == NULL ? NULL : json_str(c, "job_id"),
        .name = "",
        .kind = "export",
        .provider = json_str(c, "provider"),
        .provider_kind = json_str(c, "provider_kind"),
        .vm_path = json_str(c, "vm_path"),
        .output_path = "/exports/x",
        .format = "qcow2",
        .definition = json_object_get(c, "definition"),
        .export_spec = json_object_get(c, "export_spec"),
        .convert_spec = json_object_get(c, "convert_spec"),
        .priority = (uint32_t)json_u64(c, "priority"),
        .queue_group = json_object_get(c, "group") == NULL ? NULL : json_str(c, "group"),
        .queue_limit = (uint32_t)json_u64(c, "group_limit"),
        .max_attempts = (uint32_t)json_u64(c, "max_attempts"),
        .retry_initial_ms = (int64_t)json_u64(c, "retry_initial_ms"),
        .retry_max_ms = (int64_t)json_u64(c, "retry_max_ms"),
        .deadline = json_object_get(c, "finish_by") == NULL ? NULL : json_str(c, "finish_by"),
        .depends_on = json_object_get(c, "depends_on"),
        .time_windows = json_object_get(c, "time_windows"),
        .on_window_end =
            json_object_get(c, "on_window_end") == NULL ? NULL : json_str(c, "on_window_end"),
        .submitted_by = "tester",
        .trace_id = json_str(c, "trace_id"),
        .idempotency_key = json_object_get(c, "key") == NULL ? NULL : json_str(c, "key"),
        .idempotency_hash = json_object_get(c, "key") == NULL ? NULL : hash,
    };
    char id[64];
    bool existing = false;

    if (job_store_submit(db, &s, id, &existing, err) < 0)
        return -1;
    json_set_text(out, "job_id", id);
    (void)json_object_set_new(out, "existing", json_boolean(existing));
    return 0;
}

static int job_op(const char *op, const json_t *c, json_t *out, struct error *err)
{
    auto_db *db = db_new(&database, json_str(c, "role"), "worker_driver");

    if (strcmp(op, "submit") == 0)
        return submit(db, c, out, err);
    if (strcmp(op, "cancel") == 0)
        return job_store_cancel(db, json_str(c, "job_id"), "tester", json_str(c, "reason"),
                                json_is_true(json_object_get(c, "discard")), err);
    if (strcmp(op, "pause") == 0)
        return job_store_pause(db, json_str(c, "job_id"), "tester", json_str(c, "reason"), err);
    if (strcmp(op, "resume") == 0)
        return job_store_resume(db, json_str(c, "job_id"), "tester", err);
    if (strcmp(op, "retry") == 0)
        return job_store_retry(db, json_str(c, "job_id"), "tester", err);
    return error_set(err, ERR_INVALID, "unknown op '%.32s'", op);
}

/* ---- commands ---- */

static const struct {
    const char *op;
    void (*fill)(struct message *m);
    bool push;
} messages[] = {
    {"lease", lease, false},    {"renew", renew, false},   {"record", record, false},
    {"permit", permit, false},  {"finish", finish, false}, {"fail", fail, false},
    {"yield", yield, false},    {"page", page, false},     {"progress", progress, true},
    {"changed", changed, true},
};

static int call(struct message *m, bool push, json_t *out, struct error *err)
{
    int64_t timeout_ms = (int64_t)json_u64(m->command, "timeout_ms");
    auto_bus_envelope *reply = NULL;

    if (push) {
        bus_push(pusher, &m->envelope);
        json_set_text(out, "reply", "pushed");
        return 0;
    }
    if (bus_client_call(client, &m->envelope, timeout_ms == 0 ? CALL_MS_DEFAULT : timeout_ms,
                        &reply, err) < 0)
        return -1;
    tell(out, reply);
    return 0;
}

static int run(const json_t *command, json_t *out, struct error *err)
{
    autofree struct message *m = xcalloc(1, sizeof *m);
    const char *op = json_str(command, "op");
    const char *sender = json_str(command, "instance");

    m->command = command;
    for (size_t i = 0; i < ARRAY_LEN(messages); i++) {
        if (strcmp(op, messages[i].op) != 0)
            continue;
        bus_envelope_init(&m->envelope, &m->store, sender[0] == '\0' ? "driver" : sender, NULL);
        if (json_object_get(command, "message_id") != NULL)
            m->envelope.message_id = text_of(command, "message_id");
        fill_ref(m);
        fill_lines(m);
        messages[i].fill(m);
        return call(m, messages[i].push, out, err);
    }
    return job_op(op, command, out, err);
}

static void *on_command(void *arg)
{
    auto_json *command = arg;
    auto_json *out = json_object();
    struct error err = ERROR_NONE;

    (void)json_object_set(out, "id", json_object_get(command, "id"));
    if (run(command, out, &err) < 0) {
        json_set_text(out, "error", err.message);
        json_set_text(out, "code", error_code_name(err.code));
    }
    print(out);
    return NULL;
}

static int start(const char *path, struct error *err)
{
    static const char *const topics[] = {"job", "worker", "control", NULL};
    static struct bus_config bus;
    auto_config_file *file = NULL;
    auto_strbuf problems;

    strbuf_init(&problems, CONFIG_PROBLEMS_BYTES_MAX);
    if (config_file_load(path, &file, &problems, err) < 0 ||
        config_section(file, "database", &database, &problems, err) < 0 ||
        config_section(file, "bus", &bus, &problems, err) < 0 ||
        bus_client_open(&bus, &client, err) < 0 || bus_pusher_open(&bus, &pusher, err) < 0)
        return -1;
    return bus_subscriber_start(&bus, topics, on_announcement, on_gap, NULL, err);
}

int main(int argc, char **argv)
{
    struct error err = ERROR_NONE;
    char *line = NULL;
    size_t size = 0;

    if (argc != 2 || start(argv[1], &err) < 0) {
        (void)fprintf(stderr, "worker_driver: %s\n", argc == 2 ? err.message : "wants a file");
        return 1;
    }
    while (getline(&line, &size, stdin) > 0) {
        pthread_t thread;
        json_t *command = json_loads(line, 0, NULL);
        if (command == NULL || pthread_create(&thread, NULL, on_command, command) != 0)
            abort(); /* a mistake of the test */
        (void)pthread_detach(thread);
    }
    _exit(0);
}
