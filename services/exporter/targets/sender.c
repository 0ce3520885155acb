/* See sender.h. */
#include "services/exporter/targets/sender.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/digest.h"

#define PIECE_BYTES     ((size_t)MIB)
#define READ_BACK_BYTES ((size_t)(4 * MIB))
#define RISE_AFTER      8          /* parts without trouble */
#define TICK_NS         500000000L /* between two looks at the progress */
#define SECOND_NS       1000000000L

void sender_init(struct sender *s)
{
    (void)pthread_mutex_init(&s->mutex, NULL);
    (void)pthread_cond_init(&s->changed, NULL);
}

void sender_release(struct sender *s)
{
    (void)pthread_mutex_destroy(&s->mutex);
    (void)pthread_cond_destroy(&s->changed);
}

void sender_fail(struct sender *s, const struct error *err)
{
    LOCK_SCOPE(&s->mutex);
    if (!s->failed)
        s->error = *err;
    s->failed = true;
    (void)pthread_cond_broadcast(&s->changed);
}

bool sender_has_failed(struct sender *s, uint64_t *out_stored)
{
    LOCK_SCOPE(&s->mutex);
    *out_stored = s->stored;
    return s->failed;
}

void sender_count(struct sender *s, uint64_t bytes)
{
    LOCK_SCOPE(&s->mutex);
    s->stored += bytes;
}

/* ---- the threads ---- */

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
    if (s->target->base.class->put_part(s->target, s->object, s->id, s->fd, part, err) < 0)
        return -1;
    LOCK_SCOPE(&s->mutex);
    s->stored += part->size;
    return s->note(s->arg, part, err);
}

static void *send_parts(void *arg)
{
    struct sender *s = arg;
    uint32_t index = 0;

    while (take(s, &index)) {
        struct error err = ERROR_NONE;
        if (send_part(s, &s->parts[index], &err) < 0)
            sender_fail(s, &err);
        LOCK_SCOPE(&s->mutex);
        s->active--;
        adapt(s);
        (void)pthread_cond_broadcast(&s->changed);
    }
    return NULL;
}

int sender_start(struct sender *s, uint32_t threads, struct error *err)
{
    assert(threads > 0 && threads <= TARGET_PARALLEL_MAX);
    s->allowed_max = threads;
    s->allowed = threads;
    while (s->thread_count < threads &&
           pthread_create(&s->threads[s->thread_count], NULL, send_parts, s) == 0)
        s->thread_count++;
    return s->thread_count > 0 ? 0 : error_set(err, ERR_INTERNAL, "no thread could be started");
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

bool sender_try_enqueue(struct sender *s, uint32_t index)
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

bool sender_try_idle(struct sender *s, uint64_t *out_stored)
{
    LOCK_SCOPE(&s->mutex);
    *out_stored = s->stored;
    if (s->failed || (s->queued == 0 && s->active == 0))
        return true;
    wait_tick(s);
    *out_stored = s->stored;
    return false;
}

void sender_join(struct sender *s)
{
    {
        LOCK_SCOPE(&s->mutex);
        s->closed = true;
        (void)pthread_cond_broadcast(&s->changed);
    }
    while (s->thread_count > 0)
        (void)pthread_join(s->threads[--s->thread_count], NULL);
}

/* ---- digests ---- */

void part_hash_init(struct part_hash *h)
{
    h->sha256 = EVP_MD_CTX_new();
    h->md5 = EVP_MD_CTX_new();
    h->piece = xmalloc(PIECE_BYTES);
    if (h->sha256 == NULL || h->md5 == NULL)
        abort(); /* out of memory */
}

void part_hash_release(struct part_hash *h)
{
    EVP_MD_CTX_free(h->sha256);
    EVP_MD_CTX_free(h->md5);
    free(h->piece);
}

int part_hash_make(struct part_hash *h, const struct target *target, int fd,
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
        if (EVP_DigestUpdate(h->sha256, h->piece, size) != 1 ||
            EVP_DigestUpdate(h->md5, h->piece, size) != 1)
            abort();
        if (h->take != NULL)
            h->take(h->arg, h->piece, size);
        done += size;
    }
    if (EVP_DigestFinal_ex(h->sha256, part->sha256, NULL) != 1 ||
        EVP_DigestFinal_ex(h->md5, part->md5, NULL) != 1)
        abort();
    return 0;
}

/* ---- objects ---- */

size_t parts_make(const struct target *target, uint64_t size, struct target_part **out,
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

static int not_uploaded(const struct object_check *check, struct error *err)
{
    return error_set(err, ERR_CORRUPT, "'%.200s' at the target is not what was uploaded",
                     check->object->name);
}

/* Bytes [from, to) of the object into the digest; less when it ends before. */
static int read_back(struct target *target, const struct object_check *check, uint64_t from,
                     uint64_t to, EVP_MD_CTX *const into[2], struct error *err)
{
    autofree unsigned char *buffer = xmalloc(READ_BACK_BYTES);
    struct target_range range = {.offset = from, .buffer = buffer, .got = 1};

    for (; range.offset < to && range.got > 0; range.offset += range.got) {
        range.size = (size_t)min_u64(to - range.offset, READ_BACK_BYTES);
        if (check->may_write(check->arg, err) < 0 ||
            target->base.class->read(target, check->object->name, &range, err) < 0)
            return -1;
        for (size_t i = 0; i < 2; i++) {
            if (into[i] != NULL && EVP_DigestUpdate(into[i], buffer, range.got) != 1)
                abort();
        }
        if (check->take != NULL &&
            check->take(check->arg, range.offset, buffer, range.got, err) < 0)
            return -1;
    }
    return 0;
}

static int read_part(struct target *target, const struct object_check *check,
                     const struct target_part *part, EVP_MD_CTX *whole, EVP_MD_CTX *of_part,
                     struct error *err)
{
    uint8_t raw[DIGEST_BYTES];

    if (EVP_DigestInit_ex(of_part, EVP_sha256(), NULL) != 1)
        abort();
    if (read_back(target, check, part->offset, part->offset + part->size,
                  (EVP_MD_CTX *[]){whole, of_part}, err) < 0)
        return -1;
    if (EVP_DigestFinal_ex(of_part, raw, NULL) != 1)
        abort();
    return memcmp(raw, part->sha256, sizeof raw) == 0 ? 0 : not_uploaded(check, err);
}

/* Part by part, against what was sent of each. */
static int read_parts(struct target *target, const struct object_check *check, EVP_MD_CTX *whole,
                      struct error *err)
{
    EVP_MD_CTX *of_part = EVP_MD_CTX_new();
    int rc = 0;

    if (of_part == NULL)
        abort(); /* out of memory */
    for (size_t i = 0; i < check->count && rc == 0; i++)
        rc = read_part(target, check, &check->parts[i], whole, of_part, err);
    EVP_MD_CTX_free(of_part);
    return rc;
}

int object_check(struct target *target, const struct object_check *check, struct error *err)
{
    EVP_MD_CTX *whole;
    uint8_t raw[DIGEST_BYTES];
    char hex[DIGEST_HEX_SIZE];
    bool proved = false;
    int rc;

    if (target->base.class->verify(target, check->object, check->parts, check->count, &proved,
                                   err) < 0)
        return -1;
    if (proved && check->sha256 != NULL)
        return 0;
    whole = EVP_MD_CTX_new();
    if (whole == NULL || EVP_DigestInit_ex(whole, EVP_sha256(), NULL) != 1)
        abort(); /* out of memory */
    rc = check->sha256 == NULL
             ? read_parts(target, check, whole, err)
             : read_back(target, check, 0, check->object->size, (EVP_MD_CTX *[]){whole, NULL}, err);
    if (rc == 0 && EVP_DigestFinal_ex(whole, raw, NULL) != 1)
        abort();
    EVP_MD_CTX_free(whole);
    if (rc < 0)
        return -1;
    hex_encode(raw, sizeof raw, hex);
    if (check->sha256 == NULL) {
        memcpy(check->out_sha256, hex, sizeof hex);
        return 0;
    }
    return strcmp(hex, check->sha256) == 0 ? 0 : not_uploaded(check, err);
}

/* ---- the state file ---- */

int state_line_append(int fd, json_t *line_taken, struct error *err)
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
