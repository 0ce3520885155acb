/* Every field of every message is checked: one valid message of each kind, then one fault at a
 * time. */
#include "tests/unit/common/unit.h"

#include "common/bus.h"

#pragma GCC diagnostic ignored "-Wcast-qual" /* the INIT macros of protobuf-c cast const away */

static uint8_t token[16] = "0123456789abcdef";
static char text_ok[] = "x";
static char task_id[] = "task-1";
static char json_ok[] = "{}";
static char exporter[] = "exporter";
static char bad_utf8[] = "\xc3(";

/* A message built once per test, packed and decoded as it would cross the wire. */
struct fixture {
    bus_envelope envelope;
    struct bus_envelope_store store;
    Hypersdk__V1__TaskRef ref;
    struct error err;
};

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);

    bus_envelope_init(&f->envelope, &f->store, "unit", NULL);
    hypersdk__v1__task_ref__init(&f->ref);
    f->ref.task_id = task_id;
    f->ref.epoch = 1;
    f->ref.token = (ProtobufCBinaryData){.len = sizeof token, .data = token};
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    free(*state);
    return 0;
}

static int round_trip(struct fixture *f)
{
    auto_bus_envelope *out = NULL;
    size_t size = hypersdk__v1__envelope__get_packed_size(&f->envelope);
    autofree uint8_t *data = xmalloc(size);

    (void)hypersdk__v1__envelope__pack(&f->envelope, data);
    return bus_envelope_decode(data, size, &out, &f->err);
}

static void expect_ok(struct fixture *f)
{
    assert_ok(round_trip(f), f->err);
}

static void expect_bad(struct fixture *f, const char *message)
{
    assert_fails(round_trip(f), f->err, ERR_PROTOCOL, message);
}

/* Each sets a field to a wrong value, expects the refusal, and puts the old value back. */
#define BREAK(f, field, value, message)     \
    do {                                    \
        __typeof__(field) saved_ = (field); \
        (field) = (value);                  \
        expect_bad((f), (message));         \
        (field) = saved_;                   \
        expect_ok(f);                       \
    } while (0)

static char *long_text(size_t length)
{
    char *text = xcalloc(1, length + 1);

    memset(text, 'a', length);
    return text;
}

static void bytes_that_are_no_message_are_refused(void **state)
{
    struct fixture *f = *state;
    bus_envelope *out = NULL;
    autofree uint8_t *big = xcalloc(1, BUS_MESSAGE_BYTES_MAX + 1);

    assert_fails(bus_envelope_decode("", 0, &out, &f->err), f->err, ERR_PROTOCOL, "version 0");
    assert_fails(bus_envelope_decode("\xff\xff\xff", 3, &out, &f->err), f->err, ERR_PROTOCOL,
                 "cannot be decoded");
    assert_fails(bus_envelope_decode(big, BUS_MESSAGE_BYTES_MAX + 1, &out, &f->err), f->err,
                 ERR_LIMIT, "is over");
    expect_bad(f, "message kind 0");
    assert_null(out);
    bus_envelope_free(NULL);
}

static void the_envelope_itself_is_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__NoTask no_task = HYPERSDK__V1__NO_TASK__INIT;
    autofree char *longer = long_text(129);
    char empty[] = "";

    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_NO_TASK;
    f->envelope.no_task = &no_task;
    expect_ok(f);
    BREAK(f, f->envelope.version, 2, "protocol version 2, this build speaks 1");
    BREAK(f, f->envelope.message_id, empty, "message id");
    BREAK(f, f->envelope.message_id, longer, "message id");
    BREAK(f, f->envelope.sender, empty, "sender");
    BREAK(f, f->envelope.sender, bad_utf8, "sender is not UTF-8");
    BREAK(f, f->envelope.traceparent, longer, "traceparent");
    BREAK(f, f->envelope.epoch, longer, "publisher epoch");
}

static void a_lease_request_is_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__LeaseRequest m = HYPERSDK__V1__LEASE_REQUEST__INIT;
    Hypersdk__V1__Volume volume = HYPERSDK__V1__VOLUME__INIT;
    Hypersdk__V1__Volume *volumes[] = {&volume};
    char *kinds[] = {exporter};
    char *many[33];
    char empty[] = "";
    char role[] = "cook";
    autofree char *path = long_text(4097);

    for (size_t i = 0; i < ARRAY_LEN(many); i++)
        many[i] = text_ok;
    volume.id = volume.path = text_ok;
    m.instance = text_ok;
    m.role = exporter;
    m.class_ = HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
    m.task_kinds = kinds;
    m.n_task_kinds = 1;
    m.volumes = volumes;
    m.n_volumes = 1;
    m.slots_total = 2;
    m.slot = 1;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    f->envelope.lease_request = &m;
    expect_ok(f);
    BREAK(f, m.instance, empty, "instance");
    BREAK(f, m.role, role, "role 'cook' is unknown");
    BREAK(f, m.class_, HYPERSDK__V1__TASK_CLASS__TASK_CLASS_UNSPECIFIED, "task class 0");
    BREAK(f, m.class_, (Hypersdk__V1__TaskClass)9, "task class 9");
    BREAK(f, m.slot, 2, "slot 2 of 2");
    BREAK(f, m.slots_total, 65, "slot 1 of 65");
    BREAK(f, m.provider, path, "provider");
    BREAK(f, m.host, path, "host");
    BREAK(f, m.version, path, "version");
    BREAK(f, kinds[0], empty, "task kind");
    BREAK(f, volume.id, empty, "volume id");
    BREAK(f, volume.path, path, "volume path");
    m.task_kinds = many;
    m.n_task_kinds = ARRAY_LEN(many);
    expect_bad(f, "33 task kinds");
}

static void a_reference_to_a_task_is_checked_in_every_message(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__FinishPermit m = HYPERSDK__V1__FINISH_PERMIT__INIT;
    char empty[] = "";

    m.ref = &f->ref;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_FINISH_PERMIT;
    f->envelope.finish_permit = &m;
    expect_ok(f);
    BREAK(f, m.ref, NULL, "task reference is missing");
    BREAK(f, f->ref.epoch, 0, "epoch is out of range");
    BREAK(f, f->ref.epoch, UINT64_MAX, "epoch is out of range");
    BREAK(f, f->ref.token.len, 15, "token of 15 bytes");
    BREAK(f, f->ref.task_id, empty, "task id");
}

static void log_lines_are_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__TaskRenew m = HYPERSDK__V1__TASK_RENEW__INIT;
    Hypersdk__V1__LogLine line = HYPERSDK__V1__LOG_LINE__INIT;
    Hypersdk__V1__LogLine *lines[BUS_LOG_LINES_MAX + 1];
    autofree char *message = long_text(BUS_LOG_MESSAGE_MAX + 1);
    char empty[] = "";

    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        lines[i] = &line;
    line.number = 1;
    line.level = text_ok;
    m.ref = &f->ref;
    m.lines = lines;
    m.n_lines = BUS_LOG_LINES_MAX;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_RENEW;
    f->envelope.task_renew = &m;
    expect_ok(f);
    BREAK(f, m.n_lines, ARRAY_LEN(lines), "201 log lines");
    BREAK(f, line.number, 0, "log line number");
    BREAK(f, line.level, empty, "log level");
    BREAK(f, line.message, message, "log message");
    BREAK(f, line.phase, message, "log phase");
    BREAK(f, m.phase, message, "phase");
    BREAK(f, m.ref, NULL, "reference");
}

static void records_are_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__TaskRecord m = HYPERSDK__V1__TASK_RECORD__INIT;
    Hypersdk__V1__Record record = HYPERSDK__V1__RECORD__INIT;
    autofree char *value = long_text(4097);
    char empty[] = "";

    m.ref = &f->ref;
    m.record = &record;
    record.key = text_ok;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_RECORD;
    f->envelope.task_record = &m;
    expect_ok(f);
    BREAK(f, m.record, NULL, "record is missing");
    BREAK(f, record.key, empty, "record key");
    BREAK(f, record.value, value, "record value");
}

static void the_end_of_a_task_is_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__TaskFinish finish = HYPERSDK__V1__TASK_FINISH__INIT;
    Hypersdk__V1__TaskFail fail = HYPERSDK__V1__TASK_FAIL__INIT;
    Hypersdk__V1__TaskYield yield = HYPERSDK__V1__TASK_YIELD__INIT;
    autofree char *longer = long_text(BUS_LOG_MESSAGE_MAX + 1);
    char empty[] = "";

    finish.ref = fail.ref = yield.ref = &f->ref;
    finish.result_json = json_ok;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH;
    f->envelope.task_finish = &finish;
    expect_ok(f);
    BREAK(f, finish.result_json, empty, "result");
    BREAK(f, finish.ref, NULL, "reference");
    fail.error_code = text_ok;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_FAIL;
    f->envelope.task_fail = &fail;
    expect_ok(f);
    BREAK(f, fail.error_code, empty, "error code");
    BREAK(f, fail.message, longer, "error message");
    BREAK(f, fail.result_json, bad_utf8, "result is not UTF-8");
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_YIELD;
    f->envelope.task_yield = &yield;
    expect_ok(f);
    BREAK(f, yield.reason, longer, "reason");
}

static void an_inventory_page_is_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__InventoryPage m = HYPERSDK__V1__INVENTORY_PAGE__INIT;
    Hypersdk__V1__InventoryVm vm = HYPERSDK__V1__INVENTORY_VM__INIT;
    Hypersdk__V1__InventoryVm *vms[BUS_PAGE_VMS_MAX + 1];
    autofree char *longer = long_text(64 * KIB + 1);
    char empty[] = "";

    for (size_t i = 0; i < ARRAY_LEN(vms); i++)
        vms[i] = &vm;
    vm.id = text_ok;
    vm.vm_json = json_ok;
    m.ref = &f->ref;
    m.page = 1;
    m.vms = vms;
    m.n_vms = BUS_PAGE_VMS_MAX;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_INVENTORY_PAGE;
    f->envelope.inventory_page = &m;
    expect_ok(f);
    BREAK(f, m.n_vms, ARRAY_LEN(vms), "501 VMs");
    BREAK(f, m.page, 0, "inventory page 0");
    m.n_vms = 1;
    BREAK(f, vm.id, empty, "VM id");
    BREAK(f, vm.vm_json, longer, "VM facts");
    BREAK(f, vm.name, bad_utf8, "VM name is not UTF-8");
    BREAK(f, vm.path, longer, "VM path");
    BREAK(f, vm.power_state, longer, "power state");
}

static void progress_and_wake_ups_are_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__TaskProgress m = HYPERSDK__V1__TASK_PROGRESS__INIT;
    Hypersdk__V1__DiskProgress disk = HYPERSDK__V1__DISK_PROGRESS__INIT;
    Hypersdk__V1__DiskProgress *disks[65];
    Hypersdk__V1__JobsChanged jobs = HYPERSDK__V1__JOBS_CHANGED__INIT;
    autofree char *longer = long_text(1025);
    char empty[] = "";
    char *ids[] = {text_ok};

    for (size_t i = 0; i < ARRAY_LEN(disks); i++)
        disks[i] = &disk;
    m.ref = &f->ref;
    m.disks = disks;
    m.n_disks = 64;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_PROGRESS;
    f->envelope.task_progress = &m;
    expect_ok(f);
    BREAK(f, m.n_disks, 65, "65 disks");
    BREAK(f, m.bytes_done, UINT64_MAX, "progress is out of range");
    BREAK(f, m.limited_by, longer, "limited by");
    BREAK(f, disk.file, longer, "disk file");
    BREAK(f, disk.state, longer, "disk state");
    BREAK(f, disk.id, longer, "disk id");
    jobs.job_ids = ids;
    jobs.n_job_ids = 1;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED;
    f->envelope.jobs_changed = &jobs;
    expect_ok(f);
    BREAK(f, ids[0], empty, "job id");
}

static void a_lease_is_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__TaskLease m = HYPERSDK__V1__TASK_LEASE__INIT;
    Hypersdk__V1__TaskControl control = HYPERSDK__V1__TASK_CONTROL__INIT;
    Hypersdk__V1__TaskControl *controls[17];
    autofree char *longer = long_text(512 * KIB + 1);
    char empty[] = "";

    for (size_t i = 0; i < ARRAY_LEN(controls); i++)
        controls[i] = &control;
    control.kind = HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL;
    m.ref = &f->ref;
    m.kind = text_ok;
    m.lease_ms = 30000;
    m.spec_json = json_ok;
    m.controls = controls;
    m.n_controls = 1;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE;
    f->envelope.task_lease = &m;
    expect_ok(f);
    BREAK(f, m.kind, empty, "kind");
    BREAK(f, m.lease_ms, 999, "lease of 999 ms");
    BREAK(f, m.lease_ms, 3600001, "lease of 3600001 ms");
    BREAK(f, m.spec_json, empty, "spec");
    BREAK(f, m.spec_json, longer, "spec");
    BREAK(f, m.n_controls, 17, "17 controls");
    BREAK(f, control.kind, HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_UNSPECIFIED, "control kind 0");
    BREAK(f, control.kind, (Hypersdk__V1__ControlKind)3, "control kind 3");
    BREAK(f, control.kind, (Hypersdk__V1__ControlKind)6, "control kind 6");
}

static void answers_are_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__RenewReply renew = HYPERSDK__V1__RENEW_REPLY__INIT;
    Hypersdk__V1__Ack ack = HYPERSDK__V1__ACK__INIT;
    Hypersdk__V1__PermitReply permit = HYPERSDK__V1__PERMIT_REPLY__INIT;
    autofree char *longer = long_text(BUS_LOG_MESSAGE_MAX + 1);

    renew.lease_ms = 30000;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_RENEW_REPLY;
    f->envelope.renew_reply = &renew;
    expect_ok(f);
    BREAK(f, renew.lease_ms, 0, "lease of 0 ms");
    renew.lost = true;
    renew.lease_ms = 0;
    expect_ok(f); /* a lost lease has no length */
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_ACK;
    f->envelope.ack = &ack;
    expect_ok(f);
    BREAK(f, ack.error, longer, "error");
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_PERMIT_REPLY;
    f->envelope.permit_reply = &permit;
    expect_ok(f);
    BREAK(f, permit.reason, longer, "reason");
}

static void announcements_are_checked(void **state)
{
    struct fixture *f = *state;
    Hypersdk__V1__JobChanged job = HYPERSDK__V1__JOB_CHANGED__INIT;
    Hypersdk__V1__WorkerChanged worker = HYPERSDK__V1__WORKER_CHANGED__INIT;
    Hypersdk__V1__SchedulerChanged scheduler = HYPERSDK__V1__SCHEDULER_CHANGED__INIT;
    Hypersdk__V1__TaskControl control = HYPERSDK__V1__TASK_CONTROL__INIT;
    char empty[] = "";

    job.job_id = job.event = worker.instance = worker.state = text_ok;
    scheduler.holder = scheduler.state = text_ok;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOB_CHANGED;
    f->envelope.job_changed = &job;
    expect_ok(f);
    BREAK(f, job.job_id, empty, "job id");
    BREAK(f, job.event, empty, "event");
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_WORKER_CHANGED;
    f->envelope.worker_changed = &worker;
    expect_ok(f);
    BREAK(f, worker.instance, empty, "instance");
    BREAK(f, worker.state, empty, "state");
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_SCHEDULER_CHANGED;
    f->envelope.scheduler_changed = &scheduler;
    expect_ok(f);
    BREAK(f, scheduler.holder, empty, "holder");
    BREAK(f, scheduler.state, empty, "state");
    control.kind = HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_DRAIN;
    f->envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_CONTROL;
    f->envelope.task_control = &control;
    expect_ok(f);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(bytes_that_are_no_message_are_refused),
        TEST(the_envelope_itself_is_checked),
        TEST(a_lease_request_is_checked),
        TEST(a_reference_to_a_task_is_checked_in_every_message),
        TEST(log_lines_are_checked),
        TEST(records_are_checked),
        TEST(the_end_of_a_task_is_checked),
        TEST(an_inventory_page_is_checked),
        TEST(progress_and_wake_ups_are_checked),
        TEST(a_lease_is_checked),
        TEST(answers_are_checked),
        TEST(announcements_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
