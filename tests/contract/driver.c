/* A provider's vtable by lines of JSON, for tests in Python: one command per line on stdin, one
 * answer per line on stdout: {"ok": {...}} or {"error": {"code", "message"}}. One session.
 *
 * Records are kept in the file named by "records", so that another process can go on with them;
 * {"op": "die", "at": KEY, "when": "before" | "after"} ends the process around that put. */
#include <errno.h>
#include <inttypes.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <fcntl.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/http_client.h"
#include "common/json.h"
#include "common/log.h"
#include "common/paths.h"
#include "services/exporter/engine/provider.h"
#include "services/exporter/engine/session.h"
#include "services/exporter/engine/source.h"

#define LINE_BYTES_MAX  ((size_t)MIB)
#define HEX_BYTES_MAX   4096 /* longer reads are answered by their digest only */
#define READERS_MAX     PROVIDER_PARALLEL_READS_MAX
#define EXTENTS_MAX     1024
#define TAGGED_MAX      16
#define CHUNK_BYTES_MAX ((size_t)(16 * MIB))

extern const struct provider PROVIDER;

static struct {
    struct exporter exporter;
    struct exporter_session session;
    bool open;
    struct frozen_vm *frozen;
    atomic_bool cancelled;
    int64_t cancel_after_ms;
    char *records_path;
    json_t *records;
    char *die_at;
    bool die_after;
} driver;

/* ---- records ---- */

static int records_put(struct task_records *records, const char *key, const char *value,
                       struct error *err)
{
    bool dies = driver.die_at != NULL && strcmp(driver.die_at, key) == 0;
    autofree char *text = NULL;

    (void)records;
    if (dies && !driver.die_after)
        _exit(9);
    json_set_text(driver.records, key, value);
    text = json_text(driver.records);
    if (driver.records_path != NULL &&
        file_write_atomic(driver.records_path, text, strlen(text), 0600, err) < 0)
        return -1;
    if (dies)
        _exit(9);
    return 0;
}

static const char *records_get(struct task_records *records, const char *key)
{
    (void)records;
    return json_string_value(json_object_get(driver.records, key));
}

static struct task_records driver_records = {records_put, records_get};

static int records_load(const char *path, struct error *err)
{
    autofree char *text = NULL;
    size_t size = 0;

    json_decref(driver.records);
    driver.records = json_object();
    free(driver.records_path);
    driver.records_path = path[0] == '\0' ? NULL : xstrdup(path);
    if (driver.records_path == NULL || access(path, F_OK) < 0)
        return 0;
    json_decref(driver.records);
    driver.records = NULL;
    if (file_read(path, MIB, &text, &size, err) < 0)
        return -1;
    return json_parse(text, size, MIB, &driver.records, err);
}

/* ---- commands ---- */

static int op_open(const json_t *command, json_t *answer, struct error *err)
{
    (void)answer;
    driver.exporter.provider = &PROVIDER;
    if (records_load(json_str(command, "records"), err) < 0 ||
        exporter_session_open(
            &driver.exporter,
            &(struct exporter_settings){.plain = json_object_get(command, "settings")},
            &driver.cancelled, &driver.session, err) < 0)
        return -1;
    driver.open = true;
    return 0;
}

static int op_close(const json_t *command, json_t *answer, struct error *err)
{
    (void)command;
    (void)answer;
    (void)err;
    PROVIDER.frozen_free(STEAL(driver.frozen));
    if (driver.open)
        exporter_session_close(&driver.session);
    driver.open = false;
    return 0;
}

static int op_check(const json_t *command, json_t *answer, struct error *err)
{
    struct provider_check check = {0};

    (void)command;
    if (PROVIDER.check(driver.session.session, &check, err) < 0)
        return -1;
    (void)json_object_set_new(answer, "reachable", json_boolean(check.reachable));
    (void)json_object_set_new(answer, "authenticated", json_boolean(check.authenticated));
    json_set_text(answer, "version", check.version);
    json_set_text(answer, "message", check.message);
    return 0;
}

static int add_page(void *arg, const struct vm *vms, size_t count, struct error *err)
{
    json_t *pages = arg;
    json_t *page = json_array();

    (void)err;
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(page, vm_to_json(&vms[i], "test"));
    (void)json_array_append_new(pages, page);
    return 0;
}

static int op_list(const json_t *command, json_t *answer, struct error *err)
{
    json_t *pages = json_array();

    (void)command;
    (void)json_object_set_new(answer, "pages", pages);
    return PROVIDER.vm_list(driver.session.session, add_page, pages, err);
}

static int op_get(const json_t *command, json_t *answer, struct error *err)
{
    auto_vm vm;

    vm_init(&vm);
    if (PROVIDER.vm_get(driver.session.session, json_str(command, "vm"), &vm, err) < 0)
        return -1;
    (void)json_object_set_new(answer, "vm", vm_to_json(&vm, "test"));
    return 0;
}

static int op_tags(const json_t *command, json_t *answer, struct error *err)
{
    const json_t *vms = json_object_get(command, "vms");
    const char *ids[TAGGED_MAX] = {NULL};
    struct vm_tags tags[TAGGED_MAX] = {{0}};
    size_t count = min_u64(json_array_size(vms), TAGGED_MAX);
    int rc;

    for (size_t i = 0; i < count; i++)
        ids[i] = json_string_value(json_array_get(vms, i));
    rc = PROVIDER.vm_tags(driver.session.session, ids, count, tags, err);
    for (size_t i = 0; i < count; i++) {
        json_t *vm = json_object();
        vm_tags_to_json(&tags[i], NULL, vm);
        (void)json_object_set_new(answer, ids[i], vm);
        vm_tags_release(&tags[i]);
    }
    return rc;
}

static int op_find(const json_t *command, json_t *answer, struct error *err)
{
    autofree char *id = NULL;

    if (exporter_vm_find(&driver.session, json_str(command, "vm"), &id, err) < 0)
        return -1;
    json_set_text(answer, "id", id);
    return 0;
}

static int op_prepare(const json_t *command, json_t *answer, struct error *err)
{
    const json_t *o = json_object_get(command, "options");
    const char *name = json_str(o, "snapshot_name");
    const char *method = json_str(o, "method");
    struct prepare_options options = {
        .job_id = json_str(o, "job_id"),
        .method = method[0] == '\0' ? NULL : method,
        .snapshot = json_is_true(json_object_get(o, "snapshot")),
        .snapshot_name = name[0] == '\0' ? NULL : name,
        .snapshot_memory = json_is_true(json_object_get(o, "snapshot_memory")),
        .snapshot_quiesce = json_is_true(json_object_get(o, "snapshot_quiesce")),
        .delete_snapshot = !json_is_false(json_object_get(o, "delete_snapshot")),
        .consolidate = !json_is_false(json_object_get(o, "consolidate")),
        .timeout_ms = (int64_t)json_u64(o, "timeout_ms"),
    };
    json_t *disks = json_array();

    PROVIDER.frozen_free(STEAL(driver.frozen));
    (void)json_object_set_new(answer, "disks", disks);
    if (PROVIDER.prepare(driver.session.session, json_str(command, "vm"), &options, &driver_records,
                         &driver.frozen, err) < 0)
        return -1;
    json_set_text(answer, "method", driver.frozen->method);
    (void)json_object_set_new(answer, "vm", vm_to_json(&driver.frozen->vm, "test"));
    for (size_t i = 0; i < driver.frozen->disk_count; i++)
        (void)json_array_append_new(
            disks,
            json_pack("{s:I, s:s, s:s}", "size", (json_int_t)driver.frozen->disks[i].size_bytes,
                      "mark", driver.frozen->disks[i].mark, "id",
                      driver.frozen->vm.disks[driver.frozen->disks[i].vm_disk_index].id));
    return 0;
}

struct buffer {
    uint8_t *data;
    size_t length;
    size_t room;
};

static int take(void *arg, const void *data, size_t length, struct error *err)
{
    struct buffer *buffer = arg;

    if (length > buffer->room - buffer->length)
        return error_set(err, ERR_INTERNAL, "more bytes than asked for");
    memcpy(buffer->data + buffer->length, data, length);
    buffer->length += length;
    return 0;
}

/* By disk_stream when the provider has it and it is wanted. */
static int read_disk(struct provider_disk *disk, bool stream, void *data, size_t length,
                     uint64_t offset, struct error *err)
{
    struct buffer buffer = {data, 0, length};

    if (!stream || PROVIDER.disk_stream == NULL)
        return PROVIDER.disk_read(disk, data, length, offset, err);
    if (PROVIDER.disk_stream(disk, length, offset, take, &buffer, err) < 0)
        return -1;
    return buffer.length == length ? 0 : error_set(err, ERR_INTERNAL, "fewer bytes than asked for");
}

static int op_read(const json_t *command, json_t *answer, struct error *err)
{
    size_t length = json_u64(command, "length");
    autofree uint8_t *buffer = NULL;
    struct provider_disk *disk = NULL;
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char hex[2 * HEX_BYTES_MAX + 1];
    int rc;

    if (length > CHUNK_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "too long");
    buffer = xmalloc(length + 1);
    if (PROVIDER.disk_open(driver.session.session, driver.frozen, json_u64(command, "disk"), &disk,
                           err) < 0)
        return -1;
    rc = read_disk(disk, json_is_true(json_object_get(command, "stream")), buffer, length,
                   json_u64(command, "offset"), err);
    PROVIDER.disk_close(disk);
    if (rc < 0)
        return -1;
    (void)SHA256(buffer, length, digest);
    hex_encode(digest, sizeof digest, hex);
    json_set_text(answer, "sha256", hex);
    if (length <= HEX_BYTES_MAX) {
        hex_encode(buffer, length, hex);
        json_set_text(answer, "hex", hex);
    }
    return 0;
}

struct reader {
    pthread_t thread;
    size_t disk;
    uint64_t size;
    size_t chunk;
    bool stream;
    int fd;
    atomic_uint_fast64_t *next;
    struct error error;
};

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    struct provider_disk *disk = NULL;
    autofree uint8_t *buffer = xmalloc(r->chunk);

    if (PROVIDER.disk_open(driver.session.session, driver.frozen, r->disk, &disk, &r->error) < 0)
        return NULL;
    for (;;) {
        uint64_t offset = atomic_fetch_add(r->next, r->chunk);
        size_t length = r->chunk;
        if (offset >= r->size)
            break;
        length = min_u64(length, r->size - offset);
        if (read_disk(disk, r->stream, buffer, length, offset, &r->error) < 0)
            break;
        if (pwrite_all(r->fd, buffer, length, offset) < 0) {
            (void)error_set_errno(&r->error, errno, "writing");
            break;
        }
    }
    PROVIDER.disk_close(disk);
    return NULL;
}

/* The whole disk into a file, by several readers at a time. */
static int op_copy(const json_t *command, json_t *answer, struct error *err)
{
    struct reader readers[READERS_MAX];
    size_t count = json_u64(command, "readers");
    size_t chunk = json_u64(command, "chunk");
    atomic_uint_fast64_t next = 0;
    autoclose int fd =
        open(json_str(command, "file"), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);

    (void)answer;
    if (fd < 0 || count == 0 || count > READERS_MAX || chunk == 0 || chunk > CHUNK_BYTES_MAX)
        return error_set(err, ERR_INVALID, "file, readers or chunk");
    for (size_t i = 0; i < count; i++) {
        size_t disk = json_u64(command, "disk");
        readers[i] = (struct reader){.disk = disk,
                                     .size = driver.frozen->disks[disk].size_bytes,
                                     .chunk = chunk,
                                     .stream = json_is_true(json_object_get(command, "stream")),
                                     .fd = fd,
                                     .next = &next};
        if (pthread_create(&readers[i].thread, NULL, reader_main, &readers[i]) != 0)
            abort();
    }
    for (size_t i = 0; i < count; i++) {
        (void)pthread_join(readers[i].thread, NULL);
        if (readers[i].error.code != ERR_NONE && err->code == ERR_NONE)
            *err = readers[i].error;
    }
    return err->code == ERR_NONE ? 0 : -1;
}

/* Everything of an open stream into fd; with `stop_at` the process ends there, as kill -9 does. */
static int pull(struct provider_stream *stream, uint64_t size, int fd, uint64_t stop_at,
                struct error *err)
{
    struct provider_parcel parcel = {0};
    autofree uint8_t *buffer = xmalloc(PROVIDER_PARCEL_BYTES);
    int rc = 0;

    for (uint64_t at = 0; at < size && rc == 0; at += PROVIDER_PARCEL_BYTES) {
        uint64_t end = min_u64(at + PROVIDER_PARCEL_BYTES, size);
        uint64_t next = 0;
        memset(buffer, 0, PROVIDER_PARCEL_BYTES);
        if (stop_at > 0 && at >= stop_at)
            _exit(9);
        rc = PROVIDER.stream_next(stream, &next, err);
        if (rc == 0 && next < end) {
            rc = PROVIDER.stream_fetch(stream, end, &parcel, err);
            if (rc == 0)
                rc = PROVIDER.stream_decode(stream, &parcel, at, buffer, (size_t)(end - at), err);
        }
        if (rc == 0 && pwrite_all(fd, buffer, (size_t)(end - at), at) < 0)
            rc = error_set_errno(err, errno, "writing");
    }
    free(parcel.data);
    return rc;
}

/* A disk that comes as a stream, whole, into a file. */
static int op_pull(const json_t *command, json_t *answer, struct error *err)
{
    struct provider_stream *stream = NULL;
    size_t disk = json_u64(command, "disk");
    autoclose int fd =
        open(json_str(command, "file"), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    int rc;

    (void)answer;
    if (fd < 0 || !driver.frozen->forward_only)
        return error_set(err, ERR_INVALID, "file, or the disks are no streams");
    if (PROVIDER.stream_open(driver.session.session, driver.frozen, disk, &stream, err) < 0)
        return -1;
    while (json_object_get(command, "pause_until") != NULL &&
           access(json_str(command, "pause_until"), F_OK) < 0)
        clock_sleep_ms(20);
    rc = pull(stream, driver.frozen->disks[disk].size_bytes, fd, json_u64(command, "stop_at"), err);
    PROVIDER.stream_close(stream);
    return rc;
}

static int op_mark(const json_t *command, json_t *answer, struct error *err)
{
    autofree char *mark = NULL;

    if (PROVIDER.disk_mark(driver.session.session, driver.frozen, json_u64(command, "disk"), &mark,
                           err) < 0)
        return -1;
    json_set_text(answer, "mark", mark);
    return 0;
}

/* One answer of disk_changes; "room": for how many extents. */
static int op_changes(const json_t *command, json_t *answer, struct error *err)
{
    size_t room = json_u64(command, "room");
    autofree struct extent *items = NULL;
    struct extent_list list = {.count_max = room == 0 ? EXTENTS_MAX : room};
    struct changes_query query = {.disk_index = json_u64(command, "disk"),
                                  .since = json_str(command, "since"),
                                  .offset = json_u64(command, "offset")};
    json_t *extents = json_array();

    (void)json_object_set_new(answer, "extents", extents);
    if (list.count_max > EXTENTS_MAX)
        return error_set(err, ERR_LIMIT, "too many");
    if (PROVIDER.disk_changes == NULL)
        return error_set(err, ERR_NOT_AVAILABLE, "no disk_changes");
    list.items = items = xcalloc(list.count_max, sizeof *items);
    if (PROVIDER.disk_changes(driver.session.session, driver.frozen, &query, &list, err) < 0 ||
        extent_list_check(&list, query.offset, driver.frozen->disks[query.disk_index].size_bytes,
                          "the answer", err) < 0)
        return -1;
    for (size_t i = 0; i < list.count; i++) {
        (void)json_array_append_new(
            extents, json_pack("[I, I]", (json_int_t)items[i].offset, (json_int_t)items[i].length));
    }
    (void)json_object_set_new(answer, "end", json_integer((json_int_t)list.end));
    return 0;
}

static int op_track(const json_t *command, json_t *answer, struct error *err)
{
    struct tracking_options options = {.on = json_is_true(json_object_get(command, "on")),
                                       .job_id = json_str(command, "job_id")};
    bool changed = false;

    if (PROVIDER.set_tracking(driver.session.session, json_str(command, "vm"), &options,
                              &driver_records, &changed, err) < 0)
        return -1;
    (void)json_object_set_new(answer, "changed", json_boolean(changed));
    return 0;
}

static void drive_told(void *arg, const char *drive)
{
    (void)json_array_append_new(arg, json_string(drive));
}

static int op_eject(const json_t *command, json_t *answer, struct error *err)
{
    json_t *drives = json_array();

    (void)json_object_set_new(answer, "drives", drives);
    return PROVIDER.remove_cdroms(driver.session.session, json_str(command, "vm"), &driver_records,
                                  drive_told, drives, err);
}

static int op_release(const json_t *command, json_t *answer, struct error *err)
{
    (void)answer;
    return PROVIDER.release(driver.session.session, &driver_records,
                            json_is_true(json_object_get(command, "keep")), err);
}

static int op_records(const json_t *command, json_t *answer, struct error *err)
{
    (void)command;
    (void)err;
    (void)json_object_set(answer, "records", driver.records);
    return 0;
}

static int op_die(const json_t *command, json_t *answer, struct error *err)
{
    (void)answer;
    (void)err;
    free(driver.die_at);
    driver.die_at = xstrdup(json_str(command, "at"));
    driver.die_after = strcmp(json_str(command, "when"), "after") == 0;
    return 0;
}

static void *canceller(void *arg)
{
    (void)arg;
    clock_sleep_ms(driver.cancel_after_ms);
    atomic_store(&driver.cancelled, true);
    return NULL;
}

static int op_cancel(const json_t *command, json_t *answer, struct error *err)
{
    pthread_t thread;

    (void)answer;
    (void)err;
    driver.cancel_after_ms = (int64_t)json_u64(command, "after_ms");
    if (pthread_create(&thread, NULL, canceller, NULL) != 0)
        abort();
    (void)pthread_detach(thread);
    return 0;
}

static int op_uncancel(const json_t *command, json_t *answer, struct error *err)
{
    (void)command;
    (void)answer;
    (void)err;
    atomic_store(&driver.cancelled, false);
    return 0;
}

static const struct {
    const char *name;
    int (*run)(const json_t *command, json_t *answer, struct error *err);
    bool session; /* needs an open one */
    bool frozen;
} ops[] = {
    {"open", op_open, false, false},       {"close", op_close, false, false},
    {"check", op_check, true, false},      {"list", op_list, true, false},
    {"get", op_get, true, false},          {"find", op_find, true, false},
    {"prepare", op_prepare, true, false},  {"read", op_read, true, true},
    {"copy", op_copy, true, true},         {"pull", op_pull, true, true},
    {"mark", op_mark, true, true},         {"changes", op_changes, true, true},
    {"track", op_track, true, false},      {"release", op_release, true, false},
    {"records", op_records, false, false}, {"die", op_die, false, false},
    {"cancel", op_cancel, false, false},   {"uncancel", op_uncancel, false, false},
    {"eject", op_eject, true, false},      {"tags", op_tags, true, false},
};

static int perform(const json_t *command, json_t *answer, struct error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(ops); i++) {
        if (strcmp(ops[i].name, json_str(command, "op")) != 0)
            continue;
        if ((ops[i].session && !driver.open) || (ops[i].frozen && driver.frozen == NULL))
            return error_set(err, ERR_INVALID, "not open, or nothing is prepared");
        return ops[i].run(command, answer, err);
    }
    return error_set(err, ERR_INVALID, "unknown op");
}

static void answer_line(const char *line)
{
    auto_json *command = NULL;
    auto_json *answer = json_object();
    auto_json *whole = NULL;
    autofree char *text = NULL;
    struct error err = ERROR_NONE;

    if (json_parse(line, strlen(line), LINE_BYTES_MAX, &command, &err) == 0 &&
        perform(command, answer, &err) == 0)
        whole = json_pack("{s:O}", "ok", answer);
    else
        whole = json_pack("{s:{s:s, s:s}}", "error", "code", error_code_name(err.code), "message",
                          err.message);
    text = json_text(whole);
    (void)printf("%s\n", text);
    (void)fflush(stdout);
}

int main(void)
{
    autofree char *line = NULL;
    size_t size = 0;
    struct error err = ERROR_NONE;

    log_init("driver", LOG_LEVEL_DEBUG);
    http_global_init();
    driver.records = json_object();
    while (getline(&line, &size, stdin) > 0)
        answer_line(line);
    (void)op_close(NULL, NULL, &err);
    json_decref(driver.records);
    free(driver.records_path);
    free(driver.die_at);
    return 0;
}
