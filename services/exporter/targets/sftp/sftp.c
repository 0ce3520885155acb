/* Files on an SSH server. An object is written as "<name>.part", by several connections at their
 * own offsets, read back and compared there, and only then renamed. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/clock.h"
#include "services/exporter/targets/sftp/connection.h"

#define PART_BYTES_MIN    (16 * MIB)
#define PART_COUNT_WANTED UINT64_C(9500)
#define PIECE_BYTES       ((size_t)MIB)
#define READ_BYTES        (32 * 1024U) /* of one request; any server answers it whole */
#define READS_AHEAD       32
#define PART_SUFFIX       ".part"
#define PART_STORED       "stored"
#define FILE_MODE         0640
#define DIR_MODE          0750
#define SWEEP_DEPTH       3 /* <vm>/<export id>/<file> */
#define SWEEP_ENTRIES_MAX 100000

struct sftp {
    struct target base; /* first */
    struct sftp_server server;
    char *read_back; /* the object that complete() has compared */
};

static struct sftp *sftp_of(struct target *target)
{
    return (struct sftp *)target;
}

static char *path_of(struct target *target, const char *name)
{
    autofree char *key = target_key(target, name);

    return xasprintf("/%s", key);
}

static char *part_path_of(struct target *target, const char *name)
{
    autofree char *key = target_key(target, name);

    return xasprintf("/%s" PART_SUFFIX, key);
}

/* ---- one thing on one connection, repeated on a new one ---- */

struct step {
    struct target *target;
    const char *path;
    const struct target_object *object;
    int fd;
    struct target_part *part;
    const struct target_part *parts;
    size_t count;
    uint64_t offset;
    void *buffer;
    size_t size;
    size_t got;
    bool found;
    uint64_t found_size;
};

static int perform(struct sftp *sftp, struct step *step,
                   int (*run)(struct sftp_connection *connection, struct step *step,
                              struct error *err),
                   struct error *err)
{
    step->target = &sftp->base;
    for (uint32_t attempt = 0;; attempt++) {
        struct sftp_connection *connection = NULL;
        int rc = target_check(&sftp->base, err);
        if (rc == 0)
            rc = sftp_take(&sftp->server, &connection, err);
        if (rc == 0) {
            rc = run(connection, step, err);
            sftp_give(&sftp->server, connection, rc < 0 && error_is_retryable(err));
        }
        if (rc == 0)
            return 0;
        if (!target_retry(&sftp->base, attempt, 0, err))
            return -1;
    }
}

static int run_stat(struct sftp_connection *connection, struct step *step, struct error *err)
{
    sftp_attributes attributes = sftp_stat(connection->sftp, step->path);

    step->found = attributes != NULL;
    if (attributes == NULL) {
        if (sftp_failed(connection, step->path, err) < 0 && err->code != ERR_NOT_FOUND)
            return -1;
        error_clear(err);
        return 0;
    }
    step->found_size = attributes->size;
    sftp_attributes_free(attributes);
    return 0;
}

static int look(struct sftp *sftp, const char *path, bool *out_found, uint64_t *out_size,
                struct error *err)
{
    struct step step = {.path = path};

    if (perform(sftp, &step, run_stat, err) < 0)
        return -1;
    *out_found = step.found;
    *out_size = step.found_size;
    return 0;
}

/* ---- open, close ---- */

static void sftp_target_close(struct target *target)
{
    struct sftp *sftp = sftp_of(target);

    sftp_server_release(&sftp->server);
    free(sftp->read_back);
    free(sftp);
}

static int sftp_target_open(const struct target_options *options, struct target **out,
                            struct error *err)
{
    struct sftp *sftp = xcalloc(1, sizeof *sftp);
    auto_target *guard = &sftp->base;
    autofree char *path = NULL;
    bool found = false;
    uint64_t size = 0;

    sftp->base.base.class = &target_sftp;
    sftp->base.base.options = *options;
    sftp_server_init(&sftp->server, &sftp->base);
    path = xasprintf("/%s", options->url->path);
    if (look(sftp, path, &found, &size, err) < 0)
        return -1;
    if (!found) {
        return error_set(err, ERR_NOT_FOUND, "sftp: directory '%.200s' does not exist at '%.128s'",
                         path, options->url->host);
    }
    *out = STEAL(guard);
    return 0;
}

static uint64_t sftp_part_size(uint64_t object_size)
{
    uint64_t size = object_size / PART_COUNT_WANTED + (object_size % PART_COUNT_WANTED != 0);

    return max_u64(PART_BYTES_MIN, round_up_u64(size, MIB));
}

static int sftp_exists(struct target *target, const struct target_object *object, bool *out,
                       struct error *err)
{
    autofree char *path = path_of(target, object->name);
    uint64_t size = 0;

    return look(sftp_of(target), path, out, &size, err);
}

/* ---- writing ---- */

/* The directories between the URL's path, which must exist, and the file. */
static int make_dirs(struct sftp_connection *connection, const struct step *step, struct error *err)
{
    autofree char *dir = path_of(step->target, step->object->name);
    autofree char *base = path_of(step->target, "");
    char *slash = dir + strlen(base);

    while ((slash = strchr(slash, '/')) != NULL) {
        sftp_attributes there;
        *slash = '\0';
        there = sftp_stat(connection->sftp, dir);
        if (there == NULL && sftp_mkdir(connection->sftp, dir, DIR_MODE) < 0 &&
            (there = sftp_stat(connection->sftp, dir)) == NULL)
            return sftp_failed(connection, dir, err);
        sftp_attributes_free(there);
        *slash++ = '/';
    }
    return 0;
}

static int run_begin(struct sftp_connection *connection, struct step *step, struct error *err)
{
    sftp_file file;

    if (make_dirs(connection, step, err) < 0)
        return -1;
    file = sftp_open(connection->sftp, step->path, O_WRONLY | O_CREAT | O_TRUNC, FILE_MODE);
    if (file == NULL)
        return sftp_failed(connection, step->path, err);
    (void)sftp_close(file);
    return 0;
}

static int sftp_begin(struct target *target, const struct target_object *object, size_t part_count,
                      char **out_id, struct error *err)
{
    autofree char *path = part_path_of(target, object->name);
    struct step step = {.path = path, .object = object};

    (void)part_count;
    if (perform(sftp_of(target), &step, run_begin, err) < 0)
        return -1;
    *out_id = xstrdup(PART_SUFFIX);
    return 0;
}

static int sftp_held(struct target *target, const struct target_object *object, const char *id,
                     struct target_part *parts, size_t count, struct error *err)
{
    autofree char *path = part_path_of(target, object->name);
    bool found = false;
    uint64_t size = 0;

    (void)id;
    if (look(sftp_of(target), path, &found, &size, err) < 0)
        return -1;
    if (!found)
        return error_set(err, ERR_NOT_FOUND, "sftp: '%.300s' is gone", path);
    for (size_t i = 0; i < count; i++) {
        if (!range_is_inside(parts[i].offset, parts[i].size, size) ||
            strcmp(parts[i].tag, PART_STORED) != 0)
            parts[i].tag[0] = '\0';
    }
    return 0;
}

static int write_part(struct sftp_connection *connection, sftp_file file, const struct step *step,
                      struct error *err)
{
    autofree char *piece = xmalloc(PIECE_BYTES);
    uint64_t done = 0;

    if (sftp_seek64(file, step->part->offset) < 0)
        return sftp_failed(connection, step->path, err);
    while (done < step->part->size) {
        size_t size = (size_t)min_u64(step->part->size - done, PIECE_BYTES);
        if (target_pay(step->target, size, err) < 0 || target_check(step->target, err) < 0)
            return -1;
        if (pread_all(step->fd, piece, size, step->part->offset + done) < 0)
            return error_set_errno(err, errno, "the file cannot be read");
        for (size_t sent = 0; sent < size;) {
            size_t chunk = (size_t)min_u64(size - sent, connection->write_bytes);
            ssize_t written = sftp_write(file, piece + sent, chunk);
            if (written <= 0)
                return sftp_failed(connection, step->path, err);
            sent += (size_t)written;
        }
        done += size;
    }
    return 0;
}

static int run_put(struct sftp_connection *connection, struct step *step, struct error *err)
{
    sftp_file file = sftp_open(connection->sftp, step->path, O_WRONLY, FILE_MODE);
    int rc;

    if (file == NULL)
        return sftp_failed(connection, step->path, err);
    rc = write_part(connection, file, step, err);
    if (sftp_close(file) < 0 && rc == 0)
        rc = sftp_failed(connection, step->path, err);
    return rc;
}

static int sftp_put_part(struct target *target, const struct target_object *object, const char *id,
                         int fd, struct target_part *part, struct error *err)
{
    autofree char *path = part_path_of(target, object->name);
    struct step step = {.path = path, .object = object, .fd = fd, .part = part};

    (void)id;
    if (perform(sftp_of(target), &step, run_put, err) < 0)
        return -1;
    memcpy(part->tag, PART_STORED, sizeof PART_STORED);
    return 0;
}

/* ---- reading ---- */

/* Requests ahead of the answers, or every 32 KiB would cost a round trip. */
static int read_ahead(struct sftp_connection *connection, sftp_file file, struct step *step,
                      struct error *err)
{
    uint32_t ids[READS_AHEAD];
    size_t asked = 0;
    size_t oldest = 0;
    size_t newest = 0;

    step->got = 0;
    if (sftp_seek64(file, step->offset) < 0)
        return sftp_failed(connection, step->path, err);
    for (;;) {
        int got;
        while (newest - oldest < READS_AHEAD && asked < step->size) {
            uint32_t size = (uint32_t)min_u64(step->size - asked, READ_BYTES);
            int id = sftp_async_read_begin(file, size);
            if (id < 0)
                return sftp_failed(connection, step->path, err);
            ids[newest++ % READS_AHEAD] = (uint32_t)id;
            asked += size;
        }
        if (oldest == newest)
            return 0;
        got = sftp_async_read(file, (char *)step->buffer + step->got,
                              (uint32_t)min_u64(step->size - step->got, READ_BYTES),
                              ids[oldest++ % READS_AHEAD]);
        if (got < 0)
            return sftp_failed(connection, step->path, err);
        step->got += (size_t)got;
        /* A short answer: what was asked behind it is not where it belongs. */
        if (got == 0 || (got < (int)READ_BYTES && step->got < step->size)) {
            step->size = step->got;
            for (; oldest < newest; oldest++) {
                char rest[READ_BYTES];
                if (sftp_async_read(file, rest, READ_BYTES, ids[oldest % READS_AHEAD]) < 0)
                    return sftp_failed(connection, step->path, err);
            }
            return 0;
        }
    }
}

static int run_read(struct sftp_connection *connection, struct step *step, struct error *err)
{
    sftp_file file = sftp_open(connection->sftp, step->path, O_RDONLY, 0);
    int rc;

    if (file == NULL)
        return sftp_failed(connection, step->path, err);
    rc = read_ahead(connection, file, step, err);
    (void)sftp_close(file);
    return rc;
}

static int read_path(struct target *target, const char *path, struct target_range *range,
                     struct error *err)
{
    struct step step = {
        .path = path, .offset = range->offset, .buffer = range->buffer, .size = range->size};

    if (target_pay(target, range->size, err) < 0 ||
        perform(sftp_of(target), &step, run_read, err) < 0)
        return -1;
    range->got = step.got;
    return 0;
}

static int sftp_target_read(struct target *target, const char *name, struct target_range *range,
                            struct error *err)
{
    autofree char *path = path_of(target, name);

    return read_path(target, path, range, err);
}

/* ---- publishing ---- */

static int compare_part(struct target *target, const char *path, const struct target_part *part,
                        unsigned char *buffer, EVP_MD_CTX *sha256, struct error *err)
{
    struct target_range range = {.buffer = buffer};
    uint8_t raw[32];

    if (EVP_DigestInit_ex(sha256, EVP_sha256(), NULL) != 1)
        abort();
    for (uint64_t done = 0; done < part->size; done += range.got) {
        range.offset = part->offset + done;
        range.size = (size_t)min_u64(part->size - done, PIECE_BYTES);
        if (read_path(target, path, &range, err) < 0)
            return -1;
        if (range.got == 0)
            break;
        if (EVP_DigestUpdate(sha256, buffer, range.got) != 1)
            abort();
    }
    if (EVP_DigestFinal_ex(sha256, raw, NULL) != 1)
        abort();
    if (memcmp(raw, part->sha256, sizeof raw) == 0)
        return 0;
    /* Retryable: a server that crashed may have lost what it had acknowledged. */
    return error_set(err, ERR_UNAVAILABLE, "sftp: part %" PRIu32 " of '%.300s' came back changed",
                     part->number, path);
}

static int run_remove(struct sftp_connection *connection, struct step *step, struct error *err)
{
    if (sftp_unlink(connection->sftp, step->path) < 0 &&
        sftp_failed(connection, step->path, err) < 0 && err->code != ERR_NOT_FOUND)
        return -1;
    error_clear(err);
    return 0;
}

static int compare_parts(struct target *target, const char *path, const struct target_part *parts,
                         size_t count, struct error *err)
{
    autofree unsigned char *buffer = xmalloc(PIECE_BYTES);
    EVP_MD_CTX *sha256 = EVP_MD_CTX_new();
    int rc = 0;

    if (sha256 == NULL)
        abort(); /* out of memory */
    for (size_t i = 0; i < count && rc == 0; i++)
        rc = compare_part(target, path, &parts[i], buffer, sha256, err);
    EVP_MD_CTX_free(sha256);
    return rc;
}

/* Bytes that only the server's memory has are not there yet. */
static int run_sync(struct sftp_connection *connection, struct step *step, struct error *err)
{
    sftp_file file;
    int rc;

    if (!sftp_extension_supported(connection->sftp, "fsync@openssh.com", "1"))
        return 0;
    file = sftp_open(connection->sftp, step->path, O_WRONLY, 0);
    if (file == NULL)
        return sftp_failed(connection, step->path, err);
    rc = sftp_fsync(file) < 0 ? sftp_failed(connection, step->path, err) : 0;
    (void)sftp_close(file);
    return rc;
}

static int run_rename(struct sftp_connection *connection, struct step *step, struct error *err)
{
    autofree char *to = path_of(step->target, step->object->name);
    sftp_attributes there = sftp_stat(connection->sftp, to);

    if (there != NULL) {
        sftp_attributes_free(there);
        return error_set(err, ERR_CONFLICT, "sftp: '%.300s' exists already and is not replaced",
                         to);
    }
    return sftp_rename(connection->sftp, step->path, to) < 0 ? sftp_failed(connection, to, err) : 0;
}

static int publish(struct sftp *sftp, const struct target_object *object, const char *path,
                   const struct target_part *parts, size_t count, struct error *err)
{
    struct step step = {.path = path, .object = object};
    struct error ignored = ERROR_NONE;

    if (perform(sftp, &step, run_sync, err) < 0)
        return -1;
    if (compare_parts(&sftp->base, path, parts, count, err) < 0) {
        /* Nobody knows which of its parts are right: the next attempt begins anew. */
        if (error_is_retryable(err))
            (void)perform(sftp, &step, run_remove, &ignored);
        return -1;
    }
    return perform(sftp, &step, run_rename, err);
}

static int sftp_complete(struct target *target, const struct target_object *object, const char *id,
                         const struct target_part *parts, size_t count, struct error *err)
{
    struct sftp *sftp = sftp_of(target);
    autofree char *path = part_path_of(target, object->name);
    autofree char *final_path = path_of(target, object->name);
    bool found = false;
    uint64_t size = 0;

    (void)id;
    if (look(sftp, path, &found, &size, err) < 0)
        return -1;
    if (!found) { /* renamed before, and the answer was lost? verify() reads it */
        return look(sftp, final_path, &found, &size, err) < 0 || found
                   ? (found ? 0 : -1)
                   : error_set(err, ERR_NOT_FOUND, "sftp: '%.300s' is gone", path);
    }
    if (size != object->size)
        return error_set(err, ERR_UNAVAILABLE, "sftp: '%.300s' has %" PRIu64 " bytes", path, size);
    if (publish(sftp, object, path, parts, count, err) < 0)
        return -1;
    free(sftp->read_back);
    sftp->read_back = xstrdup(object->name);
    return 0;
}

static int sftp_verify(struct target *target, const struct target_object *object,
                       const struct target_part *parts, size_t count, bool *out_proved,
                       struct error *err)
{
    struct sftp *sftp = sftp_of(target);
    autofree char *path = path_of(target, object->name);
    bool found = false;
    uint64_t size = 0;

    (void)parts;
    (void)count;
    if (look(sftp, path, &found, &size, err) < 0)
        return -1;
    if (!found)
        return error_set(err, ERR_NOT_FOUND, "sftp: '%.300s' does not exist", path);
    if (size != object->size) {
        return error_set(err, ERR_CORRUPT, "'%.200s' has %" PRIu64 " bytes at the target",
                         object->name, size);
    }
    *out_proved = sftp->read_back != NULL && strcmp(sftp->read_back, object->name) == 0;
    return 0;
}

/* ---- remains ---- */

static int sftp_target_remove(struct target *target, const char *name, struct error *err)
{
    autofree char *path = path_of(target, name);
    struct step step = {.path = path};

    return perform(sftp_of(target), &step, run_remove, err);
}

static int sftp_abort(struct target *target, const struct target_object *object, const char *id,
                      struct error *err)
{
    autofree char *path = part_path_of(target, object->name);
    struct step step = {.path = path, .object = object};

    (void)id;
    return perform(sftp_of(target), &step, run_remove, err);
}

struct sweep {
    struct target *target;
    uint64_t before_s;
    size_t seen;
    size_t removed;
};

static bool is_part(const char *name)
{
    size_t length = strlen(name);

    return length > strlen(PART_SUFFIX) &&
           strcmp(name + length - strlen(PART_SUFFIX), PART_SUFFIX) == 0;
}

/* Three levels deep at most: sweep_entry stops there. */
static int sweep_dir(struct sftp_connection *connection, const char *path, int depth,
                     struct sweep *sweep, struct error *err);

/* NOLINTNEXTLINE(misc-no-recursion): depth is checked */
static int sweep_entry(struct sftp_connection *connection, const char *dir,
                       const struct sftp_attributes_struct *entry, int depth, struct sweep *sweep,
                       struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, entry->name);
    bool directory = entry->type == SSH_FILEXFER_TYPE_DIRECTORY;

    if (target_check(sweep->target, err) < 0)
        return -1;
    if (entry->name[0] == '.' || ++sweep->seen > SWEEP_ENTRIES_MAX)
        return 0;
    /* only export directories hold files of ours */
    if (directory && depth < SWEEP_DEPTH &&
        (depth + 1 < SWEEP_DEPTH || strncmp(entry->name, "exp-", 4) == 0))
        return sweep_dir(connection, path, depth + 1, sweep, err);
    if (directory || depth != SWEEP_DEPTH || !is_part(entry->name) ||
        entry->mtime >= sweep->before_s)
        return 0;
    if (sftp_unlink(connection->sftp, path) == 0)
        sweep->removed++;
    return 0;
}

/* NOLINTNEXTLINE(misc-no-recursion): depth is checked */
static int sweep_dir(struct sftp_connection *connection, const char *path, int depth,
                     struct sweep *sweep, struct error *err)
{
    sftp_dir dir = sftp_opendir(connection->sftp, path);
    sftp_attributes entry;
    int rc = 0;

    if (dir == NULL)
        return 0; /* not ours to read, or gone meanwhile */
    while (rc == 0 && (entry = sftp_readdir(connection->sftp, dir)) != NULL) {
        rc = sweep_entry(connection, path, entry, depth, sweep, err);
        sftp_attributes_free(entry);
    }
    (void)sftp_closedir(dir);
    return rc;
}

static int run_sweep(struct sftp_connection *connection, struct step *step, struct error *err)
{
    struct sweep *sweep = step->buffer;

    sweep->target = step->target;
    return sweep_dir(connection, step->path, 1, sweep, err);
}

static int sftp_sweep(struct target *target, int64_t age_ms, size_t *out_count, struct error *err)
{
    autofree char *path = xasprintf("/%s", target->base.options.url->path);
    struct sweep sweep = {.before_s = (uint64_t)(clock_wall_ms() - age_ms) / 1000};
    struct step step = {.path = path, .buffer = &sweep};
    int rc = perform(sftp_of(target), &step, run_sweep, err);

    *out_count = sweep.removed;
    return rc;
}

const struct target_class target_sftp = {
    .scheme = "sftp",
    .any_order = true,
    .open = sftp_target_open,
    .close = sftp_target_close,
    .part_size = sftp_part_size,
    .exists = sftp_exists,
    .begin = sftp_begin,
    .held = sftp_held,
    .put_part = sftp_put_part,
    .complete = sftp_complete,
    .verify = sftp_verify,
    .read = sftp_target_read,
    .remove = sftp_target_remove,
    .abort = sftp_abort,
    .sweep = sftp_sweep,
};
