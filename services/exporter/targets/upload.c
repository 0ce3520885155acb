/* See upload.h.
 *
 * Design notes. The calling thread reads the file once, front to back: digests of each part, and of
 * the whole, which must be the one that the export was verified with. A part that is ready goes
 * through a short queue to the sending threads, which read it again from the file (it is in the
 * page cache), so memory does not grow with the part size. How many send at a time is halved when
 * the server asks for less and rises again by one for every few parts that went well. */
#include "services/exporter/targets/upload.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"

#define PIECE_BYTES     ((size_t)MIB)
#define READ_BACK_BYTES ((size_t)(4 * MIB))
#define RISE_AFTER      8 /* parts without trouble */
#define STATE_MODE      0640
#define TICK_NS         500000000L /* between two looks at the progress */
#define SECOND_NS       1000000000L
#define RESTARTS_MAX    1 /* when the server forgot the upload */

struct sender {
    struct target *target;
    const struct upload_file *file;
    const char *id;
    int fd;
    int state_fd; /* -1: none */
    struct target_part *parts;

    pthread_mutex_t mutex; /* guards everything below */
    pthread_cond_t changed;
    uint32_t queue[TARGET_PARALLEL_MAX]; /* indices of parts */
    size_t queued;
    bool closed; /* nothing more comes */
    uint32_t active;
    uint32_t allowed;
    uint32_t allowed_max;
    uint32_t good;
    unsigned int slow_downs_seen;
    uint64_t stored;
    bool failed;
    struct error error; /* the first */
};

/* ---- state file ---- */

static int state_append(int fd, json_t *line_taken, struct error *err)
{
    autofree char *text = json_text(line_taken);
    autofree char *line = xasprintf("%s\n", text);

    json_decref(line_taken);
    if (fd < 0)
        return 0;
    if (write_all(fd, line, strlen(line)) < 0 || fdatasync(fd) < 0)
        return error_set_errno(err, errno, "the upload's state file cannot be written");
    return 0;
}

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
    if (strcmp(state->url, url) != 0 || strcmp(state->name, file->object.name) != 0 ||
        state->size != file->object.size || strcmp(state->sha256, file->sha256) != 0 ||
        state->part_size != target->base.class->part_size(file->object.size))
        return NULL;
    return STEAL(state);
}

/* ---- sending ---- */

static void fail(struct sender *s, const struct error *err)
{
    LOCK_SCOPE(&s->mutex);
    if (!s->failed)
        s->error = *err;
    s->failed = true;
    (void)pthread_cond_broadcast(&s->changed);
}

static void adapt(struct sender *s)
{
    unsigned int seen = atomic_load(&s->target->base.slow_downs);

    if (seen != s->slow_downs_seen) {
        s->slow_downs_seen = seen;
        s->allowed = s->allowed > 1 ? s->allowed / 2 : 1;
        s->good = 0;
    } else if (++s->good >= RISE_AFTER) {
        s->good = 0;
        if (s->allowed < s->allowed_max)
            s->allowed++;
    }
}

/* false: there is no more. */
static bool take(struct sender *s, uint32_t *out)
{
    LOCK_SCOPE(&s->mutex);
    while (!s->failed &&
           ((s->queued == 0 && !s->closed) || (s->queued > 0 && s->active >= s->allowed)))
        (void)pthread_cond_wait(&s->changed, &s->mutex);
    if (s->failed || s->queued == 0)
        return false;
    *out = s->queue[0];
    memmove(s->queue, s->queue + 1, --s->queued * sizeof s->queue[0]);
    s->active++;
    (void)pthread_cond_broadcast(&s->changed);
    return true;
}

static int send_part(struct sender *s, struct target_part *part, struct error *err)
{
    if (s->target->base.class->put_part(s->target, &s->file->object, s->id, s->fd, part, err) < 0)
        return -1;
    LOCK_SCOPE(&s->mutex);
    s->stored += part->size;
    return state_append(s->state_fd, part_line(part), err);
}

static void *send_parts(void *arg)
{
    struct sender *s = arg;
    uint32_t index = 0;

    while (take(s, &index)) {
        struct error err = ERROR_NONE;
        if (send_part(s, &s->parts[index], &err) < 0)
            fail(s, &err);
        LOCK_SCOPE(&s->mutex);
        s->active--;
        adapt(s);
        (void)pthread_cond_broadcast(&s->changed);
    }
    return NULL;
}

/* Mutex held: waits for news, but not so long that nobody hears of the bytes under way. */
static void wait_tick(struct sender *s)
{
    struct timespec until;

    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += TICK_NS;
    if (until.tv_nsec >= SECOND_NS) {
        until.tv_sec++;
        until.tv_nsec -= SECOND_NS;
    }
    (void)pthread_cond_timedwait(&s->changed, &s->mutex, &until);
}

/* true: it is in the queue, or sending has failed; else it has waited for a while. */
static bool try_enqueue(struct sender *s, uint32_t index)
{
    LOCK_SCOPE(&s->mutex);
    if (!s->failed && s->queued == s->allowed_max) {
        wait_tick(s);
        return false;
    }
    if (!s->failed)
        s->queue[s->queued++] = index;
    (void)pthread_cond_broadcast(&s->changed);
    return true;
}

static bool has_failed(struct sender *s, uint64_t *out_stored)
{
    LOCK_SCOPE(&s->mutex);
    *out_stored = s->stored;
    return s->failed;
}

/* ---- digests ---- */

struct hashing {
    EVP_MD_CTX *whole;
    EVP_MD_CTX *sha256;
    EVP_MD_CTX *md5;
    unsigned char *piece;
};

static void hashing_release(struct hashing *h)
{
    EVP_MD_CTX_free(h->whole);
    EVP_MD_CTX_free(h->sha256);
    EVP_MD_CTX_free(h->md5);
    free(h->piece);
}

static void hashing_init(struct hashing *h)
{
    h->whole = EVP_MD_CTX_new();
    h->sha256 = EVP_MD_CTX_new();
    h->md5 = EVP_MD_CTX_new();
    h->piece = xmalloc(PIECE_BYTES);
    if (h->whole == NULL || h->sha256 == NULL || h->md5 == NULL ||
        EVP_DigestInit_ex(h->whole, EVP_sha256(), NULL) != 1)
        abort(); /* out of memory */
}

static void hash(EVP_MD_CTX *context, const void *data, size_t size)
{
    if (EVP_DigestUpdate(context, data, size) != 1)
        abort();
}

static void hash_end(EVP_MD_CTX *context, uint8_t *out)
{
    if (EVP_DigestFinal_ex(context, out, NULL) != 1)
        abort();
}

static int hash_part(struct hashing *h, const struct target *target, int fd,
                     struct target_part *part, struct error *err)
{
    if (EVP_DigestInit_ex(h->sha256, EVP_sha256(), NULL) != 1 ||
        EVP_DigestInit_ex(h->md5, EVP_md5(), NULL) != 1)
        abort();
    for (uint64_t done = 0; done < part->size;) {
        size_t size = (size_t)min_u64(part->size - done, PIECE_BYTES);
        if (target_check(target, err) < 0)
            return -1;
        if (pread_all(fd, h->piece, size, part->offset + done) < 0)
            return error_set_errno(err, errno, "the file cannot be read");
        hash(h->whole, h->piece, size);
        hash(h->sha256, h->piece, size);
        hash(h->md5, h->piece, size);
        done += size;
    }
    hash_end(h->sha256, part->sha256);
    hash_end(h->md5, part->md5);
    return 0;
}

static void enqueue(struct sender *s, uint32_t index)
{
    uint64_t stored = 0;

    while (!try_enqueue(s, index)) {
        (void)has_failed(s, &stored);
        s->file->progress(s->file->arg, stored);
    }
}

/* Hashes part by part; send: gives those to the senders that the target does not hold. */
static int walk(struct sender *s, size_t count, bool send, struct error *err)
{
    CLEANUP(hashing_release) struct hashing h = {0};
    uint8_t raw[DIGEST_BYTES];
    char hex[DIGEST_HEX_SIZE];
    uint64_t stored = 0;

    hashing_init(&h);
    for (size_t i = 0; i < count && !has_failed(s, &stored); i++) {
        struct target_part *part = &s->parts[i];
        uint8_t noted[DIGEST_BYTES];
        memcpy(noted, part->sha256, sizeof noted);
        if (hash_part(&h, s->target, s->fd, part, err) < 0)
            return -1;
        if (!send)
            continue;
        if (s->file->may_write(s->file->arg, err) < 0)
            return -1;
        if (part->tag[0] != '\0' && memcmp(noted, part->sha256, sizeof noted) == 0) {
            LOCK_SCOPE(&s->mutex);
            s->stored += part->size;
        } else {
            part->tag[0] = '\0';
            enqueue(s, (uint32_t)i);
        }
        s->file->progress(s->file->arg, stored);
    }
    if (has_failed(s, &stored))
        return 0; /* the senders' error says why */
    hash_end(h.whole, raw);
    hex_encode(raw, sizeof raw, hex);
    if (strcmp(hex, s->file->sha256) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' changed since it was verified: it is not uploaded",
                         s->file->path);
    }
    return 0;
}

/* After the last part was queued: until all are through. */
static void wait_idle(struct sender *s)
{
    for (;;) {
        uint64_t stored;
        {
            LOCK_SCOPE(&s->mutex);
            if (s->failed || (s->queued == 0 && s->active == 0))
                return;
            wait_tick(s);
            stored = s->stored;
        }
        s->file->progress(s->file->arg, stored);
    }
}

static int send_all(struct sender *s, size_t count, struct error *err)
{
    pthread_t threads[TARGET_PARALLEL_MAX];
    size_t started = 0;
    int rc = -1;

    s->allowed_max = (uint32_t)min_u64(s->target->base.options.settings->parallel, count);
    s->allowed = s->allowed_max;
    for (; started < s->allowed_max; started++) {
        if (pthread_create(&threads[started], NULL, send_parts, s) != 0)
            break;
    }
    if (started == 0)
        return error_set(err, ERR_INTERNAL, "no thread could be started");
    rc = walk(s, count, true, err);
    if (rc < 0)
        fail(s, err);
    {
        LOCK_SCOPE(&s->mutex);
        s->closed = true;
        (void)pthread_cond_broadcast(&s->changed);
    }
    wait_idle(s);
    for (size_t i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    if (rc == 0 && s->failed) {
        *err = s->error;
        return -1;
    }
    return rc;
}

/* ---- one attempt ---- */

static size_t make_parts(const struct target *target, uint64_t size, struct target_part **out,
                         struct error *err)
{
    uint64_t part_size = target->base.class->part_size(size);
    uint64_t count = max_u64(1, size / part_size + (size % part_size != 0));
    struct target_part *parts;

    if (count > TARGET_PARTS_MAX) {
        (void)error_set(err, ERR_LIMIT, "%" PRIu64 " bytes are too many for one object", size);
        return 0;
    }
    parts = xcalloc(count, sizeof *parts);
    for (size_t i = 0; i < count; i++) {
        parts[i].number = (uint32_t)i + 1;
        parts[i].offset = i * part_size;
        parts[i].size = min_u64(part_size, size - parts[i].offset);
    }
    *out = parts;
    return (size_t)count;
}

static int read_back(struct target *target, const struct upload_file *file, struct error *err)
{
    autofree unsigned char *buffer = xmalloc(READ_BACK_BYTES);
    CLEANUP(hashing_release) struct hashing h = {0};
    struct target_range range = {.buffer = buffer, .got = 1};
    uint8_t raw[DIGEST_BYTES];
    char hex[DIGEST_HEX_SIZE];

    hashing_init(&h);
    for (; range.offset < file->object.size && range.got > 0; range.offset += range.got) {
        range.size = (size_t)min_u64(file->object.size - range.offset, READ_BACK_BYTES);
        if (file->may_write(file->arg, err) < 0 ||
            target->base.class->read(target, file->object.name, &range, err) < 0)
            return -1;
        hash(h.whole, buffer, range.got);
    }
    hash_end(h.whole, raw);
    hex_encode(raw, sizeof raw, hex);
    return strcmp(hex, file->sha256) == 0
               ? 0
               : error_set(err, ERR_CORRUPT, "'%.200s' at the target is not what was uploaded",
                           file->object.name);
}

/* Is the object at the target, under its name, this file? */
static int verify(struct target *target, const struct upload_file *file,
                  const struct target_part *parts, size_t count, struct error *err)
{
    bool proved = false;

    if (target->base.class->verify(target, &file->object, parts, count, &proved, err) < 0)
        return -1;
    return proved ? 0 : read_back(target, file, err);
}

/* The name is taken: by this very file, uploaded before? */
static int accept_existing(struct sender *s, size_t count, struct error *err)
{
    if (walk(s, count, false, err) < 0)
        return -1;
    if (verify(s->target, s->file, s->parts, count, err) == 0)
        return 0;
    if (err->code == ERR_CORRUPT) {
        error_clear(err);
        return error_set(err, ERR_CONFLICT,
                         "'%.200s' exists at the target with other content and is not replaced",
                         s->file->object.name);
    }
    return -1;
}

/* Takes over what an earlier attempt stored; *out_id NULL: nothing. */
static int recall(struct sender *s, const struct upload_state *state, size_t count, char **out_id,
                  struct error *err)
{
    *out_id = NULL;
    if (state == NULL || state->done || state->part_count != count)
        return 0;
    memcpy(s->parts, state->parts, count * sizeof *s->parts);
    if (s->target->base.class->held(s->target, &s->file->object, state->id, s->parts, count, err) ==
        0) {
        *out_id = xstrdup(state->id);
        return 0;
    }
    for (size_t i = 0; i < count; i++)
        s->parts[i].tag[0] = '\0';
    if (err->code != ERR_NOT_FOUND)
        return -1;
    error_clear(err);
    return 0;
}

/* Keeps the first whole_bytes of it. */
static int open_state(struct sender *s, size_t whole_bytes, struct error *err)
{
    if (s->file->state_path == NULL)
        return 0;
    s->state_fd = open(s->file->state_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, STATE_MODE);
    if (s->state_fd < 0 || ftruncate(s->state_fd, (off_t)whole_bytes) < 0) {
        return error_set_errno(err, errno, "state file '%.200s' cannot be written",
                               s->file->state_path);
    }
    if (whole_bytes > 0)
        return 0;
    return state_append(s->state_fd, head_line(s->target, s->file, s->id), err);
}

/* What a state that is lost had begun at the target. */
static int abort_old(struct sender *s, struct error *err)
{
    const char *old = s->file->old_id;

    if (old == NULL || old[0] == '\0')
        return 0;
    return s->target->base.class->abort(s->target, &s->file->object, old, err);
}

static int begin(struct sender *s, const struct upload_state *state, size_t count, char **out_id,
                 struct error *err)
{
    if (recall(s, state, count, out_id, err) < 0)
        return -1;
    if (*out_id != NULL) {
        s->id = *out_id;
        return open_state(s, state->whole_bytes, err);
    }
    if (s->file->may_write(s->file->arg, err) < 0 || abort_old(s, err) < 0 ||
        s->target->base.class->begin(s->target, &s->file->object, count, out_id, err) < 0)
        return -1;
    s->id = *out_id;
    if (s->id[0] != '\0' && s->file->note_id(s->file->arg, s->id, err) < 0)
        return -1;
    return open_state(s, 0, err);
}

static int send_and_publish(struct sender *s, size_t count, struct error *err)
{
    const struct target_class *class = s->target->base.class;
    const struct target_object *object = &s->file->object;
    json_t *done;

    if (send_all(s, count, err) < 0) {
        struct error ignored = ERROR_NONE;
        if (err->code == ERR_CORRUPT) /* nothing there is worth keeping */
            (void)class->abort(s->target, object, s->id, &ignored);
        return -1;
    }
    if (s->file->may_write(s->file->arg, err) < 0 ||
        class->complete(s->target, object, s->id, s->parts, count, err) < 0 ||
        verify(s->target, s->file, s->parts, count, err) < 0)
        return -1;
    done = json_object();
    json_put(done, "done", json_true());
    return state_append(s->state_fd, done, err);
}

static void sender_release(struct sender *s)
{
    if (s->fd >= 0)
        (void)close(s->fd);
    if (s->state_fd >= 0)
        (void)close(s->state_fd);
    free(s->parts);
    (void)pthread_mutex_destroy(&s->mutex);
    (void)pthread_cond_destroy(&s->changed);
}

static int upload_once(struct target *target, const struct upload_file *file, struct error *err)
{
    CLEANUP(sender_release)
    struct sender s = {.target = target, .file = file, .fd = -1, .state_fd = -1};
    auto_upload_state *state = state_load(target, file);
    autofree char *id = NULL;
    bool exists = false;
    struct stat st;
    size_t count;

    (void)pthread_mutex_init(&s.mutex, NULL);
    (void)pthread_cond_init(&s.changed, NULL);
    if (target->base.class->exists(target, &file->object, &exists, err) < 0)
        return -1;
    if (exists && state != NULL && state->done)
        return 0;
    s.fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (s.fd < 0 || fstat(s.fd, &st) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot be read", file->path);
    if ((uint64_t)st.st_size != file->object.size)
        return error_set(err, ERR_CORRUPT, "'%.200s' has another size than it had", file->path);
    count = make_parts(target, file->object.size, &s.parts, err);
    if (count == 0)
        return -1;
    if (exists)
        return accept_existing(&s, count, err);
    if (begin(&s, state, count, &id, err) < 0)
        return -1;
    return send_and_publish(&s, count, err);
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
