/* See upload.h.
 *
 * Design notes. The calling thread reads the file once, front to back: digests of each part, and of
 * the whole, which must be the one that the export was verified with. A part that is ready goes to
 * the sending threads (sender.h), which read it again from the file: it is in the page cache. */
#include "services/exporter/targets/upload.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/targets/sender.h"

#define STATE_MODE   0640
#define RESTARTS_MAX 1 /* when the server forgot the upload */

struct upload {
    struct target *target;
    const struct upload_file *file;
    int state_fd;         /* -1: none */
    struct sender sender; /* its file, parts and upload id */
};

/* ---- state file ---- */

static json_t *head_line(const struct target *target, const struct upload_file *file,
                         const char *id)
{
    autofree char *url = upload_url_text(target->base.options.url, "");
    uint64_t part_size = target->base.class->part_size(file->object.size);
    json_t *line = json_object();

    json_set_text(line, "url", url);
    json_set_text(line, "name", file->object.name);
    json_put(line, "size", json_integer((json_int_t)file->object.size));
    json_put(line, "part_size", json_integer((json_int_t)part_size));
    json_set_text(line, "sha256", file->sha256);
    json_set_text(line, "id", id);
    return line;
}

static json_t *part_line(const struct target_part *part)
{
    char hex[DIGEST_HEX_SIZE];
    json_t *line = json_object();

    hex_encode(part->sha256, sizeof part->sha256, hex);
    json_put(line, "part", json_integer((json_int_t)part->number));
    json_set_text(line, "sha256", hex);
    json_set_text(line, "tag", part->tag);
    return line;
}

/* NULL: there is none, or it speaks of something else. */
static struct upload_state *state_load(const struct target *target, const struct upload_file *file)
{
    autofree char *url = upload_url_text(target->base.options.url, "");
    auto_upload_state *state = NULL;
    struct error none = ERROR_NONE;
    autofree char *text = NULL;
    size_t size = 0;

    if (file->state_path == NULL ||
        file_read(file->state_path, UPLOAD_STATE_BYTES_MAX, &text, &size, &none) < 0 ||
        upload_state_parse(text, size, &state, &none) < 0)
        return NULL;
    if (state->identity != NULL || strcmp(state->url, url) != 0 ||
        strcmp(state->name, file->object.name) != 0 || state->size != file->object.size ||
        strcmp(state->sha256, file->sha256) != 0 ||
        state->part_size != target->base.class->part_size(file->object.size))
        return NULL;
    return STEAL(state);
}

/* ---- sending ---- */

static int note_part(void *arg, const struct target_part *part, struct error *err)
{
    const struct upload *u = arg;

    return state_line_append(u->state_fd, part_line(part), err);
}

static void hash_whole(void *arg, const void *data, size_t size)
{
    if (EVP_DigestUpdate(arg, data, size) != 1)
        abort();
}

static EVP_MD_CTX *whole_new(void)
{
    EVP_MD_CTX *whole = EVP_MD_CTX_new();

    if (whole == NULL || EVP_DigestInit_ex(whole, EVP_sha256(), NULL) != 1)
        abort(); /* out of memory */
    return whole;
}

static void whole_hex(EVP_MD_CTX *whole, char out[DIGEST_HEX_SIZE])
{
    uint8_t raw[DIGEST_BYTES];

    if (EVP_DigestFinal_ex(whole, raw, NULL) != 1)
        abort();
    hex_encode(raw, sizeof raw, out);
}

static void enqueue(struct upload *u, uint32_t index)
{
    uint64_t stored = 0;

    while (!sender_try_enqueue(&u->sender, index)) {
        (void)sender_has_failed(&u->sender, &stored);
        u->file->progress(u->file->arg, stored);
    }
}

/* Gives a part, just hashed, to the senders unless the target holds it. */
static int offer(struct upload *u, size_t index, const uint8_t *noted, struct error *err)
{
    struct target_part *part = &u->sender.parts[index];
    uint64_t stored = 0;

    if (u->file->may_write(u->file->arg, err) < 0)
        return -1;
    if (part->tag[0] != '\0' && memcmp(noted, part->sha256, sizeof part->sha256) == 0) {
        sender_count(&u->sender, part->size);
    } else {
        part->tag[0] = '\0';
        enqueue(u, (uint32_t)index);
    }
    (void)sender_has_failed(&u->sender, &stored);
    u->file->progress(u->file->arg, stored);
    return 0;
}

static int hash_parts(struct upload *u, size_t count, bool send, EVP_MD_CTX *whole,
                      struct error *err)
{
    CLEANUP(part_hash_release) struct part_hash h = {.take = hash_whole, .arg = whole};
    uint64_t stored = 0;

    part_hash_init(&h);
    for (size_t i = 0; i < count && !sender_has_failed(&u->sender, &stored); i++) {
        struct target_part *part = &u->sender.parts[i];
        uint8_t noted[DIGEST_BYTES];
        memcpy(noted, part->sha256, sizeof noted);
        if (part_hash_make(&h, u->target, u->sender.fd, part, err) < 0 ||
            (send && offer(u, i, noted, err) < 0))
            return -1;
    }
    return 0;
}

/* Hashes part by part; send: gives those to the senders that the target does not hold. */
static int walk(struct upload *u, size_t count, bool send, struct error *err)
{
    EVP_MD_CTX *whole = whole_new();
    char hex[DIGEST_HEX_SIZE];
    uint64_t stored = 0;
    int rc = hash_parts(u, count, send, whole, err);

    whole_hex(whole, hex);
    EVP_MD_CTX_free(whole);
    if (rc < 0)
        return -1;
    if (sender_has_failed(&u->sender, &stored))
        return 0; /* the senders' error says why */
    if (strcmp(hex, u->file->sha256) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' changed since it was verified: it is not uploaded",
                         u->file->path);
    }
    return 0;
}

static int send_all(struct upload *u, size_t count, struct error *err)
{
    uint32_t threads = (uint32_t)min_u64(u->target->base.options.settings->parallel, count);
    uint64_t stored = 0;
    int rc;

    if (sender_start(&u->sender, threads, err) < 0)
        return -1;
    rc = walk(u, count, true, err);
    if (rc < 0)
        sender_fail(&u->sender, err);
    while (!sender_try_idle(&u->sender, &stored))
        u->file->progress(u->file->arg, stored);
    sender_join(&u->sender);
    if (rc == 0 && u->sender.failed) {
        *err = u->sender.error;
        return -1;
    }
    return rc;
}

/* ---- one attempt ---- */

/* Is the object at the target, under its name, this file? */
static int verify(struct upload *u, size_t count, struct error *err)
{
    const struct upload_file *file = u->file;
    const struct object_check check = {.object = &file->object,
                                       .sha256 = file->sha256,
                                       .parts = u->sender.parts,
                                       .count = count,
                                       .may_write = file->may_write,
                                       .arg = file->arg};

    return object_check(u->target, &check, err);
}

/* The name is taken: by this very file, uploaded before? */
static int accept_existing(struct upload *u, size_t count, struct error *err)
{
    if (walk(u, count, false, err) < 0)
        return -1;
    if (verify(u, count, err) == 0)
        return 0;
    if (err->code == ERR_CORRUPT) {
        error_clear(err);
        return error_set(err, ERR_CONFLICT,
                         "'%.200s' exists at the target with other content and is not replaced",
                         u->file->object.name);
    }
    return -1;
}

/* Takes over what an earlier attempt stored; *out_id NULL: nothing. */
static int recall(struct upload *u, const struct upload_state *state, size_t count, char **out_id,
                  struct error *err)
{
    *out_id = NULL;
    if (state == NULL || state->done || state->part_count != count)
        return 0;
    memcpy(u->sender.parts, state->parts, count * sizeof *u->sender.parts);
    if (u->target->base.class->held(u->target, &u->file->object, state->id, u->sender.parts, count,
                                    err) == 0) {
        *out_id = xstrdup(state->id);
        return 0;
    }
    for (size_t i = 0; i < count; i++)
        u->sender.parts[i].tag[0] = '\0';
    if (err->code != ERR_NOT_FOUND)
        return -1;
    error_clear(err);
    return 0;
}

/* Keeps the first whole_bytes of it. */
static int open_state(struct upload *u, size_t whole_bytes, struct error *err)
{
    if (u->file->state_path == NULL)
        return 0;
    u->state_fd = open(u->file->state_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, STATE_MODE);
    if (u->state_fd < 0 || ftruncate(u->state_fd, (off_t)whole_bytes) < 0) {
        return error_set_errno(err, errno, "state file '%.200s' cannot be written",
                               u->file->state_path);
    }
    if (whole_bytes > 0)
        return 0;
    return state_line_append(u->state_fd, head_line(u->target, u->file, u->sender.id), err);
}

/* What a state that is lost had begun at the target. */
static int abort_old(struct upload *u, struct error *err)
{
    const char *old = u->file->old_id;

    if (old == NULL || old[0] == '\0')
        return 0;
    return u->target->base.class->abort(u->target, &u->file->object, old, err);
}

static int begin(struct upload *u, const struct upload_state *state, size_t count, char **out_id,
                 struct error *err)
{
    if (recall(u, state, count, out_id, err) < 0)
        return -1;
    if (*out_id != NULL) {
        u->sender.id = *out_id;
        return open_state(u, state->whole_bytes, err);
    }
    if (u->file->may_write(u->file->arg, err) < 0 || abort_old(u, err) < 0 ||
        u->target->base.class->begin(u->target, &u->file->object, count, out_id, err) < 0)
        return -1;
    u->sender.id = *out_id;
    if (u->sender.id[0] != '\0' && u->file->note_id(u->file->arg, u->sender.id, err) < 0)
        return -1;
    return open_state(u, 0, err);
}

static int send_and_publish(struct upload *u, size_t count, struct error *err)
{
    const struct target_class *class = u->target->base.class;
    const struct target_object *object = &u->file->object;
    json_t *done;

    if (send_all(u, count, err) < 0) {
        struct error ignored = ERROR_NONE;
        if (err->code == ERR_CORRUPT) /* nothing there is worth keeping */
            (void)class->abort(u->target, object, u->sender.id, &ignored);
        return -1;
    }
    if (u->file->may_write(u->file->arg, err) < 0 ||
        class->complete(u->target, object, u->sender.id, u->sender.parts, count, err) < 0 ||
        verify(u, count, err) < 0)
        return -1;
    done = json_object();
    json_put(done, "done", json_true());
    return state_line_append(u->state_fd, done, err);
}

static void upload_release(struct upload *u)
{
    if (u->sender.fd >= 0)
        (void)close(u->sender.fd);
    if (u->state_fd >= 0)
        (void)close(u->state_fd);
    free(u->sender.parts);
    sender_release(&u->sender);
}

static int open_file(struct upload *u, struct error *err)
{
    const struct upload_file *file = u->file;
    struct stat st;

    u->sender.fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (u->sender.fd < 0 || fstat(u->sender.fd, &st) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot be read", file->path);
    if ((uint64_t)st.st_size != file->object.size)
        return error_set(err, ERR_CORRUPT, "'%.200s' has another size than it had", file->path);
    return 0;
}

static int upload_once(struct target *target, const struct upload_file *file, struct error *err)
{
    CLEANUP(upload_release)
    struct upload u = {
        .target = target,
        .file = file,
        .state_fd = -1,
        .sender = {
            .target = target, .object = &file->object, .fd = -1, .note = note_part, .arg = &u}};
    auto_upload_state *state = state_load(target, file);
    autofree char *id = NULL;
    bool exists = false;
    size_t count;

    sender_init(&u.sender);
    if (target->base.class->exists(target, &file->object, &exists, err) < 0)
        return -1;
    if (exists && state != NULL && state->done)
        return 0;
    if (open_file(&u, err) < 0)
        return -1;
    count = parts_make(target, file->object.size, &u.sender.parts, err);
    if (count == 0)
        return -1;
    if (exists)
        return accept_existing(&u, count, err);
    if (begin(&u, state, count, &id, err) < 0)
        return -1;
    return send_and_publish(&u, count, err);
}

int upload_file(struct target *target, const struct upload_file *file, struct error *err)
{
    for (int restarts = 0;; restarts++) {
        if (upload_once(target, file, err) == 0) {
            file->progress(file->arg, file->object.size);
            return 0;
        }
        if (err->code != ERR_NOT_FOUND || restarts == RESTARTS_MAX)
            return error_wrap(err, "upload");
        error_clear(err); /* the server forgot the upload: its state says nothing any more */
        if (file->state_path != NULL)
            (void)unlink(file->state_path);
    }
}

int upload_fetch(struct target *target, const char *name, size_t size_max, char **out,
                 size_t *out_size, struct error *err)
{
    autofree char *buffer = xmalloc(size_max + 2);
    struct target_range range = {.got = 1};

    while (range.got > 0 && range.offset <= size_max) {
        range.buffer = buffer + range.offset;
        range.size = size_max + 1 - (size_t)range.offset;
        if (target->base.class->read(target, name, &range, err) < 0)
            return -1;
        range.offset += range.got;
    }
    if (range.offset > size_max) {
        return error_set(err, ERR_LIMIT, "'%.200s' at the target is over %zu bytes", name,
                         size_max);
    }
    buffer[range.offset] = '\0';
    *out = STEAL(buffer);
    *out_size = (size_t)range.offset;
    return 0;
}
