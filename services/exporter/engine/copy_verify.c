/* Reading an image back and comparing it with the leaves. */
#include <inttypes.h>
#include <string.h>

#include "common/clock.h"
#include "services/exporter/engine/copy.h"

#define PROGRESS_MS 100
#define POLL_MS     20 /* the caller's thread looks that often */

struct verify {
    const struct image_part *part;
    const struct leaves *leaves;
    const atomic_bool *stopped;
    atomic_size_t next; /* leaf to be read next; they are taken in order */
    atomic_uint_fast64_t bytes_done;
    atomic_uint running;
    pthread_mutex_t mutex; /* guards the next two */
    size_t differs;        /* lowest leaf that failed; SIZE_MAX: none */
    struct error error;
    struct copy_differences *list; /* NULL: the first difference ends it; guarded too */
};

static int open_and_check(const struct verify *verify, struct image **out, struct error *err)
{
    auto_image *image = NULL;

    if (image_open_part(verify->part, &image, err) < 0)
        return -1;
    if (image_size_bytes(image) != leaves_disk_bytes(verify->leaves)) {
        return error_set(
            err, ERR_CORRUPT, "'%.200s' holds a disk of %" PRIu64 " bytes, it should be %" PRIu64,
            verify->part->path, image_size_bytes(image), leaves_disk_bytes(verify->leaves));
    }
    *out = STEAL(image);
    return 0;
}

static int check_leaf(struct verify *verify, struct image *image, size_t index, uint8_t *buffer,
                      struct error *err)
{
    uint64_t offset = index * (uint64_t)LEAF_BYTES;
    size_t length = (size_t)min_u64(LEAF_BYTES, leaves_disk_bytes(verify->leaves) - offset);
    uint8_t digest[DIGEST_BYTES];

    if (image_is_hole(image, offset, length)) {
        leaf_digest_zero(length, digest);
    } else {
        if (image_read(image, buffer, length, offset, err) < 0)
            return -1;
        leaf_digest(buffer, length, digest);
    }
    if (memcmp(digest, leaves_get(verify->leaves, index), DIGEST_BYTES) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' differs from the source in the MiB at offset %" PRIu64,
                         verify->part->path, offset);
    }
    atomic_fetch_add(&verify->bytes_done, length);
    return 0;
}

static void note_error(struct verify *verify, size_t index, const struct error *err)
{
    LOCK_SCOPE(&verify->mutex);
    if (verify->error.code != ERR_NONE && index >= verify->differs)
        return;
    verify->differs = index;
    verify->error = *err;
}

static bool goes_on(struct verify *verify, size_t index)
{
    LOCK_SCOPE(&verify->mutex);
    if (verify->list != NULL && verify->list->count == COPY_DIFFERENCES_MAX)
        return false;
    return verify->error.code == ERR_NONE || index < verify->differs;
}

/* A leaf that differs, or cannot be decoded, where all of them are wanted: true, and the reader
 * goes on. */
static bool note_difference(struct verify *verify, size_t index, struct error *err)
{
    struct copy_differences *list = verify->list;

    if (list == NULL || err->code != ERR_CORRUPT)
        return false;
    error_clear(err);
    LOCK_SCOPE(&verify->mutex);
    if (list->count < COPY_DIFFERENCES_MAX)
        list->leaf[list->count++] = index;
    return true;
}

static void *verify_main(void *arg)
{
    struct verify *verify = arg;
    auto_image *image = NULL;
    autofree uint8_t *buffer = xalloc_aligned(LEAF_BYTES);
    struct error err = ERROR_NONE;

    if (open_and_check(verify, &image, &err) < 0)
        note_error(verify, 0, &err);
    while (image != NULL) {
        size_t index = atomic_fetch_add(&verify->next, 1);
        if (index >= leaves_count(verify->leaves) || !goes_on(verify, index))
            break;
        if (verify->stopped != NULL && atomic_load(verify->stopped))
            (void)error_set(&err, ERR_CANCELLED, "the verification was stopped");
        if (err.code == ERR_NONE && check_leaf(verify, image, index, buffer, &err) < 0 &&
            note_difference(verify, index, &err))
            continue;
        if (err.code != ERR_NONE) {
            note_error(verify, index, &err);
            break;
        }
    }
    atomic_fetch_sub(&verify->running, 1);
    return NULL;
}

static void wait_for_threads(struct verify *verify,
                             void (*progress)(void *arg, uint64_t bytes_done), void *arg)
{
    int64_t next_ms = clock_mono_ms() + PROGRESS_MS;

    while (atomic_load(&verify->running) > 0) {
        clock_sleep_ms(POLL_MS);
        if (progress != NULL && clock_mono_ms() >= next_ms) {
            progress(arg, atomic_load(&verify->bytes_done));
            next_ms = clock_mono_ms() + PROGRESS_MS;
        }
    }
    if (progress != NULL)
        progress(arg, atomic_load(&verify->bytes_done));
}

static int run_verify(struct verify *verify, const struct copy_verify_options *options,
                      struct error *err)
{
    pthread_t started[COPY_READERS_MAX];
    unsigned int count = 0;

    assert(options->threads > 0);
    (void)pthread_mutex_init(&verify->mutex, NULL);
    while (count < options->threads && count < COPY_READERS_MAX) {
        int rc;
        atomic_fetch_add(&verify->running, 1);
        rc = pthread_create(&started[count], NULL, verify_main, verify);
        if (rc != 0) {
            struct error failed = ERROR_NONE;
            atomic_fetch_sub(&verify->running, 1);
            (void)error_set_errno(&failed, rc, "cannot start a thread");
            note_error(verify, 0, &failed);
            break;
        }
        count++;
    }
    wait_for_threads(verify, options->progress, options->arg);
    for (unsigned int i = 0; i < count; i++)
        (void)pthread_join(started[i], NULL);
    (void)pthread_mutex_destroy(&verify->mutex);
    if (verify->error.code == ERR_NONE)
        return 0;
    assert(err->code == ERR_NONE);
    *err = verify->error;
    return -1;
}

int copy_verify(const struct copy_verify_options *options, struct error *err)
{
    struct verify verify = {.part = &options->image,
                            .leaves = options->leaves,
                            .stopped = options->stopped,
                            .differs = SIZE_MAX};

    return run_verify(&verify, options, err);
}

static int compare_leaves(const void *a, const void *b)
{
    size_t left = *(const size_t *)a;
    size_t right = *(const size_t *)b;

    return left < right ? -1 : left > right;
}

int copy_verify_all(const struct copy_verify_options *options, struct copy_differences *out,
                    struct error *err)
{
    struct verify verify = {.part = &options->image,
                            .leaves = options->leaves,
                            .stopped = options->stopped,
                            .differs = SIZE_MAX,
                            .list = out};

    out->count = 0;
    if (run_verify(&verify, options, err) < 0)
        return -1;
    qsort(out->leaf, out->count, sizeof out->leaf[0], compare_leaves);
    return 0;
}
