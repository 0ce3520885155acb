/* A leased task as its run() sees it: facts, stopping, log lines, records, permit, inventory. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/id.h"
#include "common/json.h"
#include "common/worker_internal.h"

#define SPEC_BYTES_MAX   ((size_t)(512 * KIB)) /* of a 1 MiB message */
#define PAGE_OVERHEAD    4096                  /* envelope, ids, framing */
#define PAGE_VM_OVERHEAD 64

static const struct worker_kind *find_kind(const struct worker *worker, const char *name)
{
    for (size_t i = 0; i < worker->description.kind_count; i++) {
        if (strcmp(worker->description.kinds[i].kind, name) == 0)
            return &worker->description.kinds[i];
    }
    return NULL;
}

static int parse_object(const char *text, json_t **out, struct error *err)
{
    if (text[0] == '\0') {
        *out = json_object();
        return 0;
    }
    return json_parse(text, strlen(text), SPEC_BYTES_MAX, out, err);
}

static void set_record(struct worker_task *task, const char *key, const char *value)
{
    for (size_t i = 0; i < task->record_count; i++) {
        if (strcmp(task->records[i].key, key) == 0) {
            free(task->records[i].value);
            task->records[i].value = xstrdup(value);
            return;
        }
    }
    task->records = xreallocarray(task->records, task->record_count + 1, sizeof *task->records);
    task->records[task->record_count++] = (struct worker_record){xstrdup(key), xstrdup(value)};
}

/* ---- bandwidth ---- */

static void read_rate(struct worker_task *task)
{
    const json_t *bandwidth = json_object_get(task->spec, "bandwidth");

    task->rate = (struct worker_rate){.rate = json_u64(bandwidth, "rate"),
                                      .burst = json_u64(bandwidth, "burst"),
                                      .floor = json_u64(bandwidth, "floor")};
    task->rate_stamp_ms = json_u64(bandwidth, "stamp_ms");
}

/* Comes with every renewal and may overtake itself on the bus: only news counts. */
static void set_rate(struct worker_task *task, const Hypersdk__V1__TaskControl *control)
{
    LOCK_SCOPE(&task->rate_mutex);
    if (control->stamp_ms <= task->rate_stamp_ms)
        return;
    task->rate = (struct worker_rate){control->value, control->burst_bytes, control->floor_bytes};
    task->rate_stamp_ms = control->stamp_ms;
    if (task->on_rate != NULL)
        task->on_rate(task->on_rate_arg, &task->rate);
}

void worker_task_on_rate(struct worker_task *task,
                         void (*changed)(void *arg, const struct worker_rate *rate), void *arg)
{
    LOCK_SCOPE(&task->rate_mutex);
    task->on_rate = changed;
    task->on_rate_arg = arg;
    if (changed != NULL)
        changed(arg, &task->rate);
}

void worker_task_control(struct worker_task *task, const Hypersdk__V1__TaskControl *control)
{
    if (control->kind == HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL) {
        worker_task_stop(task, WORKER_CANCELLED);
    } else if (control->kind == HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_PAUSE) {
        worker_task_stop(task, WORKER_PAUSED);
    } else if (control->kind == HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_DRAIN) {
        worker_task_stop(task, WORKER_DRAINS);
    } else if (control->kind == HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_RATE_LIMIT) {
        set_rate(task, control);
    }
}

void worker_take_limit(const struct worker_task *task, const Hypersdk__V1__WorkerLimit *limit)
{
    const struct worker_description *description = &task->worker->description;

    if (description->limit == NULL)
        return;
    if (limit == NULL) {
        description->limit(description->arg, NULL);
        return;
    }
    description->limit(description->arg, &(struct worker_rate){.rate = limit->bytes_per_second,
                                                               .burst = limit->burst_bytes});
}

int worker_task_new(struct worker *worker, bus_envelope *lease_taken, struct worker_task **out,
                    struct error *err)
{
    auto_worker_task *task = xcalloc(1, sizeof *task);
    pthread_condattr_t attributes;

    task->worker = worker;
    task->lease = lease_taken;
    task->facts = lease_taken->task_lease;
    task->ref = *task->facts->ref; /* shares its buffers */
    (void)pthread_mutex_init(&task->mutex, NULL);
    (void)pthread_mutex_init(&task->renew_mutex, NULL);
    (void)pthread_mutex_init(&task->rate_mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&task->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    if (!traceparent_trace_id(lease_taken->traceparent, task->trace_id))
        task->trace_id[0] = '\0';
    task->kind = find_kind(worker, task->facts->kind);
    if (task->kind == NULL) {
        return error_set(err, ERR_PROTOCOL, "task kind '%.32s' was not asked for",
                         task->facts->kind);
    }
    if (parse_object(task->facts->spec_json, &task->spec, err) < 0 ||
        parse_object(task->facts->settings_json, &task->settings, err) < 0)
        return error_wrap(err, "task '%.64s'", task->facts->ref->task_id);
    for (size_t i = 0; i < task->facts->n_records && i < WORKER_RECORDS_MAX; i++)
        set_record(task, task->facts->records[i]->key, task->facts->records[i]->value);
    read_rate(task);
    for (size_t i = 0; i < task->facts->n_controls; i++)
        worker_task_control(task, task->facts->controls[i]);
    worker_take_limit(task, task->facts->worker_limit);
    *out = STEAL(task);
    return 0;
}

void worker_task_free(struct worker_task *task)
{
    for (size_t i = 0; i < task->line_count; i++) {
        free(task->lines[i].phase);
        free(task->lines[i].message);
    }
    free(task->lines);
    for (size_t i = 0; i < task->record_count; i++) {
        free(task->records[i].key);
        free(task->records[i].value);
    }
    free(task->records);
    free(task->progress_disks);
    free(task->phase);
    json_decref(task->spec);
    json_decref(task->settings);
    bus_envelope_free(task->lease);
    (void)pthread_cond_destroy(&task->changed);
    (void)pthread_mutex_destroy(&task->mutex);
    (void)pthread_mutex_destroy(&task->renew_mutex);
    (void)pthread_mutex_destroy(&task->rate_mutex);
    free(task);
}

/* ---- facts ---- */

const char *worker_task_id(const struct worker_task *task)
{
    return task->ref.task_id;
}

const char *worker_task_job_id(const struct worker_task *task)
{
    return task->facts->job_id;
}

uint64_t worker_task_epoch(const struct worker_task *task)
{
    return task->ref.epoch;
}

uint32_t worker_task_attempt(const struct worker_task *task)
{
    return task->facts->attempt;
}

const json_t *worker_task_spec(const struct worker_task *task)
{
    return task->spec;
}

const char *worker_task_provider(const struct worker_task *task)
{
    return task->facts->provider_name;
}

const json_t *worker_task_settings(const struct worker_task *task)
{
    return task->settings;
}

const void *worker_task_sealed(const struct worker_task *task, size_t *out_size)
{
    *out_size = task->facts->sealed_secrets.len;
    return task->facts->sealed_secrets.data;
}

/* ---- stopping ---- */

void worker_task_kick(struct worker_task *task)
{
    LOCK_SCOPE(&task->mutex);
    task->kicked = true;
    (void)pthread_cond_broadcast(&task->changed);
}

int64_t worker_task_deadline_ms(const struct worker_task *task)
{
    return atomic_load(&task->lease_deadline_ms);
}

/* The first reason stays, but a lost lease beats all: nothing may be written any more. */
void worker_task_stop(struct worker_task *task, enum worker_stop reason)
{
    int runs = WORKER_RUNS;

    if (!atomic_compare_exchange_strong(&task->reason, &runs, (int)reason) && reason == WORKER_LOST)
        atomic_store(&task->reason, (int)WORKER_LOST);
    atomic_store(&task->stopped, true);
    LOCK_SCOPE(&task->mutex);
    (void)pthread_cond_broadcast(&task->changed);
}

const atomic_bool *worker_task_stopped(const struct worker_task *task)
{
    return &task->stopped;
}

enum worker_stop worker_task_stop_reason(const struct worker_task *task)
{
    return (enum worker_stop)atomic_load(&task->reason);
}

bool worker_task_hands_back(const struct worker_task *task)
{
    enum worker_stop reason = worker_task_stop_reason(task);

    return reason == WORKER_DRAINS || reason == WORKER_PAUSED;
}

int worker_task_check(const struct worker_task *task, struct error *err)
{
    switch (worker_task_stop_reason(task)) {
    case WORKER_RUNS:
        return 0;
    case WORKER_CANCELLED:
        return error_set(err, ERR_CANCELLED, "the job was cancelled");
    case WORKER_LOST:
        return error_set(err, ERR_CANCELLED, "the lease of the task is lost");
    case WORKER_DRAINS:
        return error_set(err, ERR_CANCELLED, "the worker is being drained");
    case WORKER_PAUSED:
        return error_set(err, ERR_CANCELLED, "the job is paused");
    }
    return 0;
}

int worker_task_may_write(const struct worker_task *task, struct error *err)
{
    if (worker_task_stop_reason(task) == WORKER_LOST)
        return error_set(err, ERR_CANCELLED, "the lease of the task is lost");
    if (clock_mono_ms() >= worker_task_deadline_ms(task))
        return error_set(err, ERR_CANCELLED, "the lease of the task could not be renewed in time");
    return 0;
}

/* ---- requests that must not be lost ---- */

void worker_task_envelope(const struct worker_task *task, bus_envelope *out,
                          struct bus_envelope_store *store)
{
    bus_envelope_init(out, store, task->worker->instance, task->lease->traceparent);
}

static bool out_of_time(const struct worker_task *task)
{
    /* After SIGTERM the drain is bounded by the caller of worker_run: it ends the process. */
    return worker_task_stop_reason(task) == WORKER_LOST;
}

static bool is_again(const bus_envelope *reply)
{
    return reply->body_case == HYPERSDK__V1__ENVELOPE__BODY_ACK && reply->ack->again;
}

/* The error that an answer is which carries something else than was asked for. */
static void not_expected(const bus_envelope *reply, struct error *err)
{
    if (reply->body_case != HYPERSDK__V1__ENVELOPE__BODY_ACK) {
        (void)error_set(err, ERR_PROTOCOL, "scheduler answers with body %d", (int)reply->body_case);
    } else {
        (void)error_set(err, reply->ack->again ? ERR_UNAVAILABLE : ERR_INTERNAL,
                        "scheduler: %.300s", reply->ack->error);
    }
}

/* A claim may have to wait as long as another task works: who shall stop does not wait on. */
static bool gives_up(const struct worker_task *task, const bus_envelope *request, struct error *err)
{
    return request->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_RECORD &&
           request->task_record->exclusive && worker_task_check(task, err) < 0;
}

int worker_task_ask(struct worker_task *task, bus_envelope *request,
                    Hypersdk__V1__Envelope__BodyCase expected, bus_envelope **out,
                    struct error *err)
{
    struct log_throttle throttle = {0};

    while (!out_of_time(task)) {
        struct error why = ERROR_NONE;
        auto_bus_envelope *reply = NULL;
        uint64_t held = 0;
        if (bus_client_call(task->worker->client, request, WORKER_CALL_MS, &reply, &why) == 0)
            atomic_store(&task->worker->contact_ms, clock_mono_ms());
        if (reply != NULL && reply->body_case == expected && !is_again(reply)) {
            *out = STEAL(reply);
            return 0;
        }
        if (reply != NULL)
            not_expected(reply, &why);
        if (!error_is_retryable(&why)) {
            *err = why;
            return -1;
        }
        if (gives_up(task, request, err))
            return -1;
        if (log_throttle_pass(&throttle, why.message, &held))
            LOG(WARN, "scheduler_silent", F_STR("task_id", task->ref.task_id), F_ERR(&why));
        if (why.code != ERR_TIMEOUT)
            clock_sleep_ms(WORKER_AGAIN_MS); /* answered at once: no busy loop */
    }
    return error_set(err, ERR_CANCELLED, "the lease of the task is lost");
}

static int ask_ack(struct worker_task *task, bus_envelope *request, struct error *err)
{
    auto_bus_envelope *reply = NULL;

    if (worker_task_ask(task, request, HYPERSDK__V1__ENVELOPE__BODY_ACK, &reply, err) < 0)
        return -1;
    if (reply->ack->lost) {
        worker_task_stop(task, WORKER_LOST);
        return error_set(err, ERR_CANCELLED, "the lease of the task is lost");
    }
    if (reply->ack->error[0] != '\0')
        return error_set(err, ERR_INTERNAL, "scheduler: %.300s", reply->ack->error);
    return 0;
}

/* ---- log lines ---- */

void worker_task_phase(struct worker_task *task, const char *phase)
{
    autofree char *clean = utf8_clean(phase, WORKER_PHASE_MAX);

    LOCK_SCOPE(&task->mutex);
    if (task->phase != NULL && strcmp(task->phase, clean) == 0)
        return;
    free(task->phase);
    task->phase = STEAL(clean);
    task->kicked = true;
    (void)pthread_cond_broadcast(&task->changed);
}

static void wait_for_room(struct worker_task *task)
{
    while (task->line_count >= WORKER_LINES_PENDING_MAX &&
           worker_task_stop_reason(task) != WORKER_LOST)
        (void)pthread_cond_wait(&task->changed, &task->mutex);
}

void worker_task_log(struct worker_task *task, enum log_level level, const char *format, ...)
{
    char text[BUS_LOG_MESSAGE_MAX + 5]; /* the last character whole, so that it is cut off whole */
    autofree char *message = NULL;
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    /* One line that is not UTF-8 would make the scheduler refuse every renewal. */
    message = utf8_clean(text, BUS_LOG_MESSAGE_MAX);
    if (log_enabled(level)) {
        const struct log_field fields[] = {F_STR("task_id", task->ref.task_id),
                                           F_STR("message", message)};
        log_write(level, "task_log", fields, ARRAY_LEN(fields));
    }
    LOCK_SCOPE(&task->mutex);
    wait_for_room(task);
    if (worker_task_stop_reason(task) == WORKER_LOST)
        return; /* nobody takes it any more */
    task->lines = xreallocarray(task->lines, task->line_count + 1, sizeof *task->lines);
    task->lines[task->line_count++] = (struct worker_line){
        .number = ++task->line_number,
        .at_ms = clock_wall_ms(),
        .level = level,
        .phase = xstrdup(task->phase == NULL ? "" : task->phase),
        .message = STEAL(message),
    };
    (void)pthread_cond_broadcast(&task->changed);
}

/* ---- records ---- */

static int check_record(const struct worker_task *task, const char *key, const char *value,
                        struct error *err)
{
    bool is_new = worker_task_record_get(task, key) == NULL;

    if (key[0] == '\0' || strlen(key) > WORKER_RECORD_KEY_MAX ||
        strlen(value) > WORKER_RECORD_VALUE_MAX) {
        return error_set(err, ERR_LIMIT, "record '%.64s' of %zu bytes is over %d", key,
                         strlen(value), WORKER_RECORD_VALUE_MAX);
    }
    if (!utf8_is_valid(key) || !utf8_is_valid(value))
        return error_set(err, ERR_INVALID, "record '%.64s' is not UTF-8", key);
    if (is_new && task->record_count >= WORKER_RECORDS_MAX) {
        return error_set(err, ERR_LIMIT, "record '%.64s': the task has %d already", key,
                         WORKER_RECORDS_MAX);
    }
    return 0;
}

static int put_record(struct worker_task *task, const char *key, const char *value, bool exclusive,
                      struct error *err)
{
    Hypersdk__V1__Record record;
    Hypersdk__V1__TaskRecord body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    if (check_record(task, key, value, err) < 0)
        return -1;
    hypersdk__v1__record__init(&record);
    hypersdk__v1__task_record__init(&body);
    record.key = (char *)(uintptr_t)key;
    record.value = (char *)(uintptr_t)value;
    body.ref = &task->ref;
    body.record = &record;
    body.exclusive = exclusive;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_RECORD;
    envelope.task_record = &body;
    if (ask_ack(task, &envelope, err) < 0)
        return error_wrap(err, "record '%s'", key);
    LOCK_SCOPE(&task->mutex);
    set_record(task, key, value);
    return 0;
}

int worker_task_record_put(struct worker_task *task, const char *key, const char *value,
                           struct error *err)
{
    return put_record(task, key, value, false, err);
}

int worker_task_record_claim(struct worker_task *task, const char *key, const char *value,
                             struct error *err)
{
    return put_record(task, key, value, true, err);
}

const char *worker_task_record_get(const struct worker_task *task, const char *key)
{
    struct worker_task *t = (struct worker_task *)(uintptr_t)task;

    LOCK_SCOPE(&t->mutex);
    for (size_t i = 0; i < t->record_count; i++) {
        if (strcmp(t->records[i].key, key) == 0)
            return t->records[i].value;
    }
    return NULL;
}

/* ---- permit ---- */

int worker_task_permit(struct worker_task *task, struct error *err)
{
    Hypersdk__V1__FinishPermit body;
    struct bus_envelope_store store;
    auto_bus_envelope *reply = NULL;
    bus_envelope envelope;

    if (atomic_load(&task->permitted))
        return worker_task_may_write(task, err);
    hypersdk__v1__finish_permit__init(&body);
    body.ref = &task->ref;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_FINISH_PERMIT;
    envelope.finish_permit = &body;
    if (worker_task_ask(task, &envelope, HYPERSDK__V1__ENVELOPE__BODY_PERMIT_REPLY, &reply, err) <
        0)
        return -1;
    if (reply->permit_reply->lost) {
        worker_task_stop(task, WORKER_LOST);
        return error_set(err, ERR_CANCELLED, "the lease of the task is lost");
    }
    if (!reply->permit_reply->granted) {
        worker_task_stop(task, WORKER_CANCELLED);
        return error_set(err, ERR_CANCELLED, "not allowed to finish: %.200s",
                         reply->permit_reply->reason);
    }
    atomic_store(&task->permitted, true);
    return worker_task_may_write(task, err);
}

/* ---- inventory ---- */

static size_t vm_bytes(const struct worker_inventory_vm *vm)
{
    return strlen(vm->id) + strlen(vm->name) + strlen(vm->path) + strlen(vm->power_state) +
           strlen(vm->vm_json) + PAGE_VM_OVERHEAD;
}

static void fill_vm(Hypersdk__V1__InventoryVm *out, const struct worker_inventory_vm *vm)
{
    hypersdk__v1__inventory_vm__init(out);
    out->id = (char *)(uintptr_t)vm->id;
    out->name = (char *)(uintptr_t)vm->name;
    out->path = (char *)(uintptr_t)vm->path;
    out->power_state = (char *)(uintptr_t)vm->power_state;
    out->vm_json = (char *)(uintptr_t)vm->vm_json;
}

static int send_page(struct worker_task *task, const struct worker_inventory_vm *vms, size_t count,
                     bool last, struct error *err)
{
    autofree Hypersdk__V1__InventoryVm *items = xcalloc(count + 1, sizeof *items);
    autofree Hypersdk__V1__InventoryVm **pointers = xcalloc(count + 1, sizeof *pointers);
    Hypersdk__V1__InventoryPage body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    hypersdk__v1__inventory_page__init(&body);
    for (size_t i = 0; i < count; i++) {
        fill_vm(&items[i], &vms[i]);
        pointers[i] = &items[i];
    }
    body.ref = &task->ref;
    body.page = ++task->page;
    body.last = last;
    body.n_vms = count;
    body.vms = pointers;
    worker_task_envelope(task, &envelope, &store);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_INVENTORY_PAGE;
    envelope.inventory_page = &body;
    return ask_ack(task, &envelope, err);
}

int worker_task_inventory(struct worker_task *task, const struct worker_inventory_vm *vms,
                          size_t count, bool last, struct error *err)
{
    size_t start = 0;

    do {
        size_t bytes = PAGE_OVERHEAD;
        size_t n = 0;
        while (start + n < count && n < BUS_PAGE_VMS_MAX &&
               bytes + vm_bytes(&vms[start + n]) <= BUS_PAGE_BYTES_MAX)
            bytes += vm_bytes(&vms[start + n++]);
        if (n == 0 && start < count) {
            return error_set(err, ERR_LIMIT, "facts of VM '%.64s' are too long for the bus",
                             vms[start].name);
        }
        if (send_page(task, vms + start, n, last && start + n == count, err) < 0)
            return -1;
        start += n;
    } while (start < count);
    return 0;
}
