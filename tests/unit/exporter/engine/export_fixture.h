/* An export task without bus and source: a worker task that lives in memory (it stands in for
 * common/worker.h) and a provider whose VM is scripted. Everything between them is the real code.
 */
#ifndef TEST_EXPORT_FIXTURE_H
#define TEST_EXPORT_FIXTURE_H

#include "tests/unit/exporter/formats/disk_fixture.h"

#include <dirent.h>

#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/export_record.h"
#include "services/exporter/engine/session.h"
#include "services/exporter/targets/local.h"

#define TEST_RECORDS_MAX 64
#define TEST_LOG_MAX     65536
#define TEST_DISKS_MAX   3

/* ---- the worker ---- */

struct worker_task {
    json_t *spec;
    json_t *settings;
    uint64_t epoch;
    atomic_bool stopped;
    enum worker_stop reason;
    bool refuse_permit;
    bool refuse_writes;
    size_t permits;
    struct {
        char *key;
        char *value;
    } records[TEST_RECORDS_MAX];
    size_t record_count;
    struct strbuf log;
    struct strbuf phases;
    struct worker_progress progress; /* the last one */
    char disk_states[256];           /* every state once, in order */
    void (*on_phase)(struct worker_task *task, const char *phase);
    void (*on_permit)(struct worker_task *task);
    void (*on_write)(struct worker_task *task);
    void (*on_log)(struct worker_task *task, const char *line);
};

__attribute__((unused)) static void task_stop(struct worker_task *task, enum worker_stop reason)
{
    task->reason = reason;
    atomic_store(&task->stopped, true);
}

const char *worker_task_id(const struct worker_task *task)
{
    (void)task;
    return "task-1";
}
const char *worker_task_job_id(const struct worker_task *task)
{
    (void)task;
    return "job-1";
}
uint64_t worker_task_epoch(const struct worker_task *task)
{
    return task->epoch;
}
uint32_t worker_task_attempt(const struct worker_task *task)
{
    (void)task;
    return 1;
}
const json_t *worker_task_spec(const struct worker_task *task)
{
    return task->spec;
}
const char *worker_task_provider(const struct worker_task *task)
{
    (void)task;
    return "lab";
}
const json_t *worker_task_settings(const struct worker_task *task)
{
    return task->settings;
}
const void *worker_task_sealed(const struct worker_task *task, size_t *out_size)
{
    (void)task;
    *out_size = 0;
    return NULL;
}
const atomic_bool *worker_task_stopped(const struct worker_task *task)
{
    return &task->stopped;
}
enum worker_stop worker_task_stop_reason(const struct worker_task *task)
{
    return task->reason;
}
int worker_task_check(const struct worker_task *task, struct error *err)
{
    return atomic_load(&task->stopped) ? error_set(err, ERR_CANCELLED, "stopped") : 0;
}
int worker_task_may_write(const struct worker_task *task, struct error *err)
{
    struct worker_task *mutable = (struct worker_task *)(uintptr_t)task;

    if (task->on_write != NULL)
        task->on_write(mutable);
    return task->refuse_writes || task->reason == WORKER_LOST
               ? error_set(err, ERR_CANCELLED, "lease is lost")
               : 0;
}
void worker_task_log(struct worker_task *task, enum log_level level, const char *format, ...)
{
    char line[2048];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    strbuf_addf(&task->log, "%d %s\n", (int)level, line);
    if (task->on_log != NULL)
        task->on_log(task, line);
}
void worker_task_phase(struct worker_task *task, const char *phase)
{
    strbuf_addf(&task->phases, "%s%s", task->phases.length > 0 ? " " : "", phase);
    if (task->on_phase != NULL)
        task->on_phase(task, phase);
}
void worker_task_progress(struct worker_task *task, const struct worker_progress *progress)
{
    task->progress = *progress;
    for (size_t i = 0; i < progress->disk_count; i++) {
        size_t used = strlen(task->disk_states);
        if (strstr(task->disk_states, progress->disks[i].state) == NULL)
            (void)snprintf(task->disk_states + used, sizeof task->disk_states - used, "%s ",
                           progress->disks[i].state);
    }
}
int worker_task_record_put(struct worker_task *task, const char *key, const char *value,
                           struct error *err)
{
    size_t i = 0;

    if (task->reason == WORKER_LOST)
        return error_set(err, ERR_CANCELLED, "lease is lost");
    while (i < task->record_count && strcmp(task->records[i].key, key) != 0)
        i++;
    assert_true(i < TEST_RECORDS_MAX);
    if (i == task->record_count) {
        task->records[i].key = xstrdup(key);
        task->records[i].value = NULL;
        task->record_count++;
    }
    free(task->records[i].value);
    task->records[i].value = xstrdup(value);
    return 0;
}
const char *worker_task_record_get(const struct worker_task *task, const char *key)
{
    for (size_t i = 0; i < task->record_count; i++) {
        if (strcmp(task->records[i].key, key) == 0)
            return task->records[i].value;
    }
    return NULL;
}
int worker_task_permit(struct worker_task *task, struct error *err)
{
    task->permits++;
    if (task->on_permit != NULL)
        task->on_permit(task);
    return task->refuse_permit ? error_set(err, ERR_CANCELLED, "job was cancelled") : 0;
}
void worker_task_on_rate(struct worker_task *task,
                         void (*changed)(void *arg, const struct worker_rate *rate), void *arg)
{
    const json_t *bandwidth = json_object_get(task->spec, "bandwidth");
    struct worker_rate rate = {.rate = json_u64(bandwidth, "rate")};

    if (changed != NULL)
        changed(arg, &rate);
}
int worker_task_inventory(struct worker_task *task, const struct worker_inventory_vm *vms,
                          size_t count, bool last, struct error *err)
{
    (void)task, (void)vms, (void)count, (void)last;
    return error_set(err, ERR_NOT_AVAILABLE, "no inventory here");
}

/* ---- the source ---- */

struct scripted_disk {
    struct test_disk content;
    const char *skip_reason;
};

/* One VM with these disks; the snapshot is a number that is 0 when there is none. */
static struct {
    const char *vm_name;
    struct scripted_disk disks[TEST_DISKS_MAX];
    size_t disk_count;
    uint64_t capacity; /* of every disk, instead of its content's size; 0: that */
    uint64_t used_bytes;
    unsigned int snapshot;
    unsigned int snapshots_made;
    unsigned int prepares;
    unsigned int releases;
    bool changed;               /* marks differ from now on */
    enum error_code mark_fails; /* ERR_NONE: it works */
    enum error_code release_fails;
    atomic_uint_fast64_t bytes_read;
    void (*on_read)(uint64_t offset); /* before a read */
    atomic_bool read_fails;           /* for good */
    atomic_bool read_is_busy;         /* fails, but may be tried again */
} source;

struct provider_session {
    const atomic_bool *cancelled;
};
struct provider_disk {
    struct scripted_disk *disk;
    const atomic_bool *cancelled;
};

struct scripted_config {
    char *server;
};
static const struct config_key scripted_keys[] = {
    {"server", CONFIG_STRING, offsetof(struct scripted_config, server), "", 0, 200, 0, "unused"},
    {0},
};

static int source_stopped(const struct provider_session *session, struct error *err)
{
    return atomic_load(session->cancelled) ? error_set(err, ERR_CANCELLED, "source: stopped") : 0;
}
static int source_open(const void *config, const atomic_bool *cancelled,
                       struct provider_session **out, struct error *err)
{
    (void)config, (void)err;
    *out = xcalloc(1, sizeof **out);
    (*out)->cancelled = cancelled;
    return 0;
}
static void source_close(struct provider_session *session)
{
    free(session);
}
static uint64_t source_size(size_t disk)
{
    return source.capacity != 0 ? source.capacity : source.disks[disk].content.size;
}
static void fill_vm(struct vm *vm)
{
    vm_init(vm);
    vm_set_text(&vm->id, "vm-57");
    vm_set_text(&vm->name, source.vm_name);
    vm_set_text(&vm->path, "/DC0/vm/prod/web-03");
    vm_set_text(&vm->datacenter, "DC0");
    vm_set_text(&vm->guest_id, "debian11_64Guest");
    vm_set_text(&vm->guest_os, "Debian GNU/Linux 11 (64-bit)");
    vm->power = VM_POWER_ON;
    vm->num_cpu = 2;
    vm->memory_mb = 2048;
    vm->firmware = VM_FIRMWARE_UEFI;
    vm->used_bytes = source.used_bytes;
    for (size_t i = 0; i < source.disk_count; i++) {
        struct vm_disk *disk = vm_add_disk(vm);
        autofree char *id = xasprintf("%zu", 2000 + i);
        autofree char *label = xasprintf("Hard disk %zu", i + 1);
        vm_set_text(&disk->id, id);
        vm_set_text(&disk->label, label);
        vm_set_text(&disk->controller_type, "scsi");
        vm_set_text(&disk->controller_model, "pvscsi");
        disk->unit = (uint32_t)i;
        disk->capacity_bytes = source_size(i);
        vm->storage_bytes += disk->capacity_bytes;
        if (source.disks[i].skip_reason != NULL)
            vm_set_text(&disk->skip_reason, source.disks[i].skip_reason);
    }
    struct vm_nic *nic = vm_add_nic(vm);
    vm_set_text(&nic->id, "4000");
    vm_set_text(&nic->mac, "00:0c:29:36:63:62");
    vm_set_text(&nic->network, "VM Network");
    vm_set_text(&nic->model, "vmxnet3");
}
static int source_vm_list(struct provider_session *session,
                          int (*page)(void *arg, const struct vm *vms, size_t count,
                                      struct error *err),
                          void *arg, struct error *err)
{
    auto_vm vm;

    if (source_stopped(session, err) < 0)
        return -1;
    fill_vm(&vm);
    return page(arg, &vm, 1, err);
}
static int source_vm_get(struct provider_session *session, const char *vm_id, struct vm *out,
                         struct error *err)
{
    if (source_stopped(session, err) < 0)
        return -1;
    if (strcmp(vm_id, "vm-57") != 0)
        return error_set(err, ERR_NOT_FOUND, "no VM '%s'", vm_id);
    vm_release(out);
    fill_vm(out);
    return 0;
}
static char *source_mark(size_t disk)
{
    return xasprintf("vm-57 disk %zu snapshot %u%s", disk, source.snapshot,
                     source.changed ? " changed" : "");
}
static int source_prepare(struct provider_session *session, const char *vm_id,
                          const struct prepare_options *options, struct task_records *records,
                          struct frozen_vm **out, struct error *err)
{
    (void)options;
    source.prepares++;
    if (source_stopped(session, err) < 0 || strcmp(vm_id, "vm-57") != 0)
        return -1;
    if (source.snapshot == 0) {
        source.snapshot = ++source.snapshots_made;
        if (records->put(records, "scripted.snapshot", "made", err) < 0)
            return -1;
    }
    *out = xcalloc(1, sizeof **out);
    fill_vm(&(*out)->vm);
    (*out)->method = xstrdup("snapshot-scripted");
    (*out)->disks = xcalloc(source.disk_count, sizeof *(*out)->disks);
    for (size_t i = 0; i < source.disk_count; i++) {
        if (source.disks[i].skip_reason != NULL)
            continue;
        (*out)->disks[(*out)->disk_count++] = (struct frozen_disk){
            .vm_disk_index = i, .size_bytes = source_size(i), .mark = source_mark(i)};
    }
    return 0;
}
static void source_frozen_free(struct frozen_vm *frozen)
{
    if (frozen == NULL)
        return;
    for (size_t i = 0; i < frozen->disk_count; i++)
        free(frozen->disks[i].mark);
    free(frozen->disks);
    free(frozen->method);
    vm_release(&frozen->vm);
    free(frozen);
}
static int source_disk_open(struct provider_session *session, const struct frozen_vm *frozen,
                            size_t index, struct provider_disk **out, struct error *err)
{
    (void)err;
    *out = xcalloc(1, sizeof **out);
    (*out)->disk = &source.disks[frozen->disks[index].vm_disk_index];
    (*out)->cancelled = session->cancelled;
    return 0;
}
static int source_disk_read(struct provider_disk *disk, void *buffer, size_t length,
                            uint64_t offset, struct error *err)
{
    if (source.on_read != NULL)
        source.on_read(offset);
    if (atomic_load(&source.read_fails))
        return error_set(err, ERR_DENIED, "the source refuses to give bytes");
    if (atomic_load(&source.read_is_busy))
        return error_set(err, ERR_UNAVAILABLE, "the source is busy");
    if (atomic_load(disk->cancelled))
        return error_set(err, ERR_CANCELLED, "source: stopped");
    memcpy(buffer, disk->disk->content.data + offset, length);
    atomic_fetch_add(&source.bytes_read, length);
    return 0;
}
static void source_disk_close(struct provider_disk *disk)
{
    free(disk);
}
static int source_disk_mark(struct provider_session *session, const struct frozen_vm *frozen,
                            size_t index, char **out, struct error *err)
{
    if (source_stopped(session, err) < 0)
        return -1;
    if (source.mark_fails != ERR_NONE)
        return error_set(err, source.mark_fails, "no answer about marks");
    *out = source_mark(frozen->disks[index].vm_disk_index);
    return 0;
}
static int source_release(struct provider_session *session, struct task_records *records, bool keep,
                          struct error *err)
{
    (void)records;
    if (source_stopped(session, err) < 0)
        return -1;
    source.releases++;
    if (source.release_fails != ERR_NONE)
        return error_set(err, source.release_fails, "the snapshot stays");
    if (!keep)
        source.snapshot = 0;
    return 0;
}

static const struct provider scripted = {
    .name = "vsphere",
    .title = "scripted",
    .parallel_reads_max = 2,
    .config_size = sizeof(struct scripted_config),
    .config_keys = scripted_keys,
    .open = source_open,
    .close = source_close,
    .vm_list = source_vm_list,
    .vm_get = source_vm_get,
    .prepare = source_prepare,
    .frozen_free = source_frozen_free,
    .disk_open = source_disk_open,
    .disk_read = source_disk_read,
    .disk_close = source_disk_close,
    .disk_mark = source_disk_mark,
    .release = source_release,
};

/* ---- one test's world ---- */

static char *world_base;
static struct config_list world_bases;
static struct exporter world_exporter;
static struct worker_task world_task;
static struct error world_err; /* of the last run */
static json_t *world_result;   /* of the last run */

__attribute__((unused)) static void source_add_disk(enum pattern pattern, size_t size)
{
    source.disks[source.disk_count++].content = test_disk_make(pattern, size);
}

static char *below_base(const char *name)
{
    return xasprintf("%s/%s", world_base, name);
}

__attribute__((unused)) static int world_make(void **state)
{
    autofree char *volume = NULL;
    char dir[] = "/tmp/hsdk-export-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    world_base = xstrdup(dir);
    (void)snprintf(test_dir, sizeof test_dir, "%s", dir);
    volume = below_base(LOCAL_VOLUME_NAME);
    write_file(volume, "6b0a51e6-3f0e-4d4f-9a52-6d33ab7b86c2\n", 37);
    world_bases.items = xcalloc(1, sizeof *world_bases.items);
    world_bases.items[0] = xstrdup(dir);
    world_bases.count = 1;
    world_exporter = (struct exporter){
        .provider = &scripted, .bases = world_bases, .limiter = rate_limiter_new()};
    world_exporter.export.chunk_size = 2 * MIB;
    world_exporter.export.max_retries = 2;
    memset(&source, 0, sizeof source);
    source.vm_name = "web-03";
    memset(&world_task, 0, sizeof world_task);
    world_task.epoch = 1;
    world_task.settings = json_object();
    strbuf_init(&world_task.log, TEST_LOG_MAX);
    strbuf_init(&world_task.phases, 1000);
    world_err = (struct error)ERROR_NONE;
    return 0;
}

/* What follows is another task. */
static void forget_records(void)
{
    for (size_t i = 0; i < world_task.record_count; i++) {
        free(world_task.records[i].key);
        free(world_task.records[i].value);
    }
    world_task.record_count = 0;
}

__attribute__((unused)) static int world_remove(void **state)
{
    const char *argv[] = {"/bin/rm", "-rf", world_base, NULL};

    (void)state;
    assert_int_equal(run_program(argv), 0);
    for (size_t i = 0; i < source.disk_count; i++)
        test_disk_free(&source.disks[i].content);
    forget_records();
    strbuf_release(&world_task.log);
    strbuf_release(&world_task.phases);
    json_decref(world_task.spec);
    json_decref(world_task.settings);
    json_decref(world_result);
    world_result = NULL;
    rate_limiter_free(world_exporter.limiter);
    free(world_bases.items[0]);
    free(world_bases.items);
    free(world_base);
    return 0;
}

/* The task of this world: format, conversion, directory below the base. */
__attribute__((unused)) static void task_wants(const char *format, bool convert, const char *dir)
{
    autofree char *path = below_base(dir);

    json_decref(world_task.spec);
    world_task.spec = json_pack("{s:s, s:s, s:s, s:s, s:b, s:b, s:{s:s}}", "job_id", "job-1", "vm",
                                "web-03", "output_path", path, "format", format, "convert", convert,
                                "verify", true, "tags", "team", "infra");
    assert_non_null(world_task.spec);
}

/* Runs the task once, as one lease. */
__attribute__((unused)) static int run_lease(void)
{
    json_decref(world_result);
    world_result = NULL;
    world_err = (struct error)ERROR_NONE;
    strbuf_reset(&world_task.phases);
    return exporter_run_export(&world_task, &world_exporter, &world_result, &world_err);
}

#define assert_exported()                                                              \
    do {                                                                               \
        if (run_lease() < 0)                                                           \
            fail_msg("%s: %s\n%s", error_code_name(world_err.code), world_err.message, \
                     world_task.log.data);                                             \
    } while (0)

#define assert_fails_with(expected)                                                    \
    do {                                                                               \
        assert_int_equal(run_lease(), -1);                                             \
        if (world_err.code != (expected))                                              \
            fail_msg("%s: %s\n%s", error_code_name(world_err.code), world_err.message, \
                     world_task.log.data);                                             \
    } while (0)

/* Another process takes the task: next epoch, nothing in its way. */
__attribute__((unused)) static void lease_again(void)
{
    world_task.epoch++;
    world_task.reason = WORKER_RUNS;
    atomic_store(&world_task.stopped, false);
    world_task.refuse_permit = false;
    world_task.refuse_writes = false;
    world_task.on_phase = NULL;
    world_task.on_permit = NULL;
    world_task.on_write = NULL;
    world_task.on_log = NULL;
    source.on_read = NULL;
    source.mark_fails = ERR_NONE;
    source.release_fails = ERR_NONE;
    atomic_store(&source.read_fails, false);
    atomic_store(&source.read_is_busy, false);
    atomic_store(&source.bytes_read, 0);
}

static int is_visible(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

/* Names in a directory below the base, sorted, with blanks between. */
__attribute__((unused)) static char *list_dir(const char *dir)
{
    autofree char *path = below_base(dir);
    struct dirent **entries = NULL;
    auto_strbuf sb;
    struct error err = ERROR_NONE;
    char *out = NULL;
    int count = scandir(path, &entries, is_visible, alphasort);

    strbuf_init(&sb, 65536);
    for (int i = 0; i < count; i++) {
        strbuf_addf(&sb, "%s%s", i > 0 ? " " : "", entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    assert_ok(strbuf_finish(&sb, &out, &err));
    return out;
}

__attribute__((unused)) static bool exists_below(const char *name)
{
    autofree char *path = below_base(name);

    return access(path, F_OK) == 0;
}

/* Nothing there may look like an export that is finished. */
__attribute__((unused)) static void assert_nothing_looks_finished(const char *dir)
{
    autofree char *names = list_dir(dir);
    char *rest = NULL;

    for (char *name = strtok_r(names, " ", &rest); name != NULL; name = strtok_r(NULL, " ", &rest))
        if (name[0] != '.' && strstr(name, ".partial") == NULL)
            fail_msg("'%s' looks finished", name);
}

/* Runs a script of /bin/sh with "$1", a directory below the base. */
__attribute__((unused)) static int shell(const char *dir, const char *script)
{
    autofree char *path = below_base(dir);
    const char *argv[] = {"/bin/sh", "-ec", script, "sh", path, NULL};

    return run_program(argv);
}

__attribute__((unused)) static void compare_below(const char *name, const char *format,
                                                  const struct test_disk *disk)
{
    autofree char *path = below_base(name);

    compare_with_qemu(disk, path, format);
}

#endif
