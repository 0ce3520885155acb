/* Sending a file while it grows, to a target that is memory: which parts go when, what stays in the
 * file, and going on after the process is gone. */
#include "services/exporter/targets/upload_stream.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/clock.h"
#include "tests/unit/common/unit.h"

#define PART      MIB
#define SIZE_MAX_ (12 * MIB)
#define SIZE      (6 * MIB + 4096)
#define LOG_MAX   64
#define WAIT_MS   30000

struct fake {
    struct target_base base; /* first */
    struct target_class class;
    pthread_mutex_t mutex;
    uint8_t *bytes;         /* of the unfinished upload, then of the object */
    uint32_t sent[LOG_MAX]; /* numbers of parts, in the order they came */
    uint64_t sizes[SIZE_MAX_ / MIB];
    char tags[SIZE_MAX_ / MIB][TARGET_TAG_SIZE];
    size_t sent_count;
    uint64_t size;
    bool exists;
    unsigned int begun;
    unsigned int refuse; /* to complete it, so often */
    uint64_t flip_at;    /* that byte changes when the object is complete; 0: none */
};

static struct fake *fake_of(struct target *target)
{
    return (struct fake *)target;
}

static uint64_t fake_part_size(uint64_t size)
{
    (void)size;
    return PART;
}

static int fake_exists(struct target *target, const struct target_object *object, bool *out,
                       struct error *err)
{
    (void)object;
    (void)err;
    *out = fake_of(target)->exists;
    return 0;
}

static int fake_begin(struct target *target, const struct target_object *object, size_t count,
                      char **out_id, struct error *err)
{
    struct fake *fake = fake_of(target);

    (void)object;
    (void)count;
    (void)err;
    memset(fake->tags, 0, sizeof fake->tags);
    *out_id = xasprintf("u%u", ++fake->begun);
    return 0;
}

/* As servers do: a part of another size is not that part. */
static int fake_held(struct target *target, const struct target_object *object, const char *id,
                     struct target_part *parts, size_t count, struct error *err)
{
    struct fake *fake = fake_of(target);

    (void)object;
    (void)id;
    (void)err;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(parts[i].tag, fake->tags[i]) != 0 || parts[i].size != fake->sizes[i])
            parts[i].tag[0] = '\0';
    }
    return 0;
}

static int fake_put(struct target *target, const struct target_object *object, const char *id,
                    int fd, struct target_part *part, struct error *err)
{
    struct fake *fake = fake_of(target);
    char hex[DIGEST_HEX_SIZE];

    (void)object;
    (void)id;
    LOCK_SCOPE(&fake->mutex);
    if (pread_all(fd, fake->bytes + part->offset, (size_t)part->size, part->offset) < 0)
        return error_set(err, ERR_INTERNAL, "the part cannot be read");
    hex_encode(part->sha256, sizeof part->sha256, hex);
    (void)snprintf(part->tag, sizeof part->tag, "t%.20s", hex);
    fake->sizes[part->number - 1] = part->size;
    memcpy(fake->tags[part->number - 1], part->tag, sizeof part->tag);
    assert_true(fake->sent_count < LOG_MAX);
    fake->sent[fake->sent_count++] = part->number;
    return 0;
}

static int fake_complete(struct target *target, const struct target_object *object, const char *id,
                         const struct target_part *parts, size_t count, struct error *err)
{
    struct fake *fake = fake_of(target);

    (void)id;
    (void)parts;
    (void)count;
    if (fake->refuse > 0) {
        fake->refuse--;
        return error_set(err, ERR_UNAVAILABLE, "not now");
    }
    fake->size = object->size;
    fake->exists = true;
    if (fake->flip_at > 0)
        fake->bytes[fake->flip_at] ^= 1;
    return 0;
}

/* Says that all is well, whatever it is. */
static int fake_verify(struct target *target, const struct target_object *object,
                       const struct target_part *parts, size_t count, bool *out_proved,
                       struct error *err)
{
    (void)target;
    (void)object;
    (void)parts;
    (void)count;
    (void)err;
    *out_proved = true;
    return 0;
}

static int fake_read(struct target *target, const char *name, struct target_range *range,
                     struct error *err)
{
    struct fake *fake = fake_of(target);

    (void)name;
    (void)err;
    range->got = (size_t)min_u64(range->size, fake->size - min_u64(fake->size, range->offset));
    memcpy(range->buffer, fake->bytes + range->offset, range->got);
    return 0;
}

static int fake_remove(struct target *target, const char *name, struct error *err)
{
    (void)name;
    (void)err;
    fake_of(target)->exists = false;
    return 0;
}

static int fake_abort(struct target *target, const struct target_object *object, const char *id,
                      struct error *err)
{
    (void)target;
    (void)object;
    (void)id;
    (void)err;
    return 0;
}

static struct upload_url fake_url;
static struct target_settings fake_settings = {.parallel = 2};

static struct fake *fake_new(void)
{
    struct fake *fake = xcalloc(1, sizeof *fake);
    struct error err = ERROR_NONE;

    assert_int_equal(upload_url_parse("s3://bucket", &fake_url, &err), 0);
    fake->class = (struct target_class){.scheme = "fake",
                                        .any_order = true,
                                        .part_size = fake_part_size,
                                        .exists = fake_exists,
                                        .begin = fake_begin,
                                        .held = fake_held,
                                        .put_part = fake_put,
                                        .complete = fake_complete,
                                        .verify = fake_verify,
                                        .read = fake_read,
                                        .remove = fake_remove,
                                        .abort = fake_abort};
    fake->base.class = &fake->class;
    fake->base.options = (struct target_options){.url = &fake_url, .settings = &fake_settings};
    fake->bytes = xcalloc(1, SIZE_MAX_);
    (void)pthread_mutex_init(&fake->mutex, NULL);
    return fake;
}

static void fake_free(struct fake *fake)
{
    (void)pthread_mutex_destroy(&fake->mutex);
    free(fake->bytes);
    free(fake);
}

/* ---- the writer's side ---- */

static char directory[64];
static char *file_path;
static char *state_path;
static uint8_t *content;

static int allowed(void *arg, struct error *err)
{
    (void)arg;
    (void)err;
    return 0;
}

static int note_id(void *arg, const char *id, struct error *err)
{
    (void)arg;
    (void)id;
    (void)err;
    return 0;
}

static void no_progress(void *arg, uint64_t bytes)
{
    (void)arg;
    (void)bytes;
}

static int make_directory(void **state)
{
    (void)state;
    (void)snprintf(directory, sizeof directory, "/tmp/hsdk-stream-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return -1;
    file_path = xasprintf("%s/file", directory);
    state_path = xasprintf("%s/state", directory);
    content = xmalloc(SIZE);
    for (size_t i = 0; i < SIZE; i++)
        content[i] = (uint8_t)(i * 2654435761U >> 13);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    (void)unlink(file_path);
    (void)unlink(state_path);
    free(file_path);
    free(state_path);
    free(content);
    return rmdir(directory);
}

static struct upload_stream_spec spec_of(const char *old_id)
{
    return (struct upload_stream_spec){.name = "vm/exp-1/disk",
                                       .size_max = SIZE_MAX_,
                                       .identity = "one",
                                       .state_path = state_path,
                                       .head_last = true,
                                       .old_id = old_id,
                                       .may_write = allowed,
                                       .note_id = note_id};
}

/* The file as it stands before its front is written. */
static void write_body(void)
{
    autofree uint8_t *body = xmalloc(SIZE);
    int fd = open(file_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    memcpy(body, content, SIZE);
    memset(body, 0, 4096);
    assert_true(fd >= 0);
    assert_int_equal(pwrite_all(fd, body, SIZE, 0), 0);
    assert_int_equal(close(fd), 0);
    (void)unlink(state_path);
}

static void write_front(void)
{
    int fd = open(file_path, O_WRONLY | O_CLOEXEC);

    assert_int_equal(pwrite_all(fd, content, 4096, 0), 0);
    assert_int_equal(close(fd), 0);
}

static struct upload_stream *open_stream(struct fake *fake, const struct upload_stream_spec *spec,
                                         uint64_t final, bool anew)
{
    struct upload_stream *stream = NULL;
    struct error err = ERROR_NONE;
    bool is_anew = !anew;

    assert_int_equal(upload_stream_open((struct target *)fake, spec, &stream, &is_anew, &err), 0);
    assert_int_equal(is_anew, anew);
    assert_int_equal(upload_stream_begin(stream, file_path, final, &err), 0);
    return stream;
}

static void wait_until_sent(struct fake *fake, size_t count)
{
    int64_t until_ms = clock_mono_ms() + WAIT_MS;

    for (;;) {
        {
            LOCK_SCOPE(&fake->mutex);
            if (fake->sent_count >= count)
                return;
        }
        if (clock_mono_ms() > until_ms)
            fail_msg("%zu parts did not come", count);
        clock_sleep_ms(5);
    }
}

static void finish_and_compare(struct fake *fake, struct upload_stream *stream)
{
    struct error err = ERROR_NONE;
    char sha256[DIGEST_HEX_SIZE];
    char wanted[DIGEST_HEX_SIZE];
    uint8_t raw[DIGEST_BYTES];

    if (upload_stream_finish(stream, SIZE, no_progress, sha256, &err) < 0)
        fail_msg("%s", err.message);
    assert_int_equal(EVP_Digest(content, SIZE, raw, NULL, EVP_sha256(), NULL), 1);
    hex_encode(raw, sizeof raw, wanted);
    assert_string_equal(sha256, wanted);
    assert_true(fake->exists && fake->size == SIZE);
    assert_true(memcmp(fake->bytes, content, SIZE) == 0);
}

/* How many of the file's bytes take room. */
static uint64_t room_taken(void)
{
    struct stat st;

    assert_int_equal(stat(file_path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static bool was_sent(const struct fake *fake, size_t from, uint32_t number)
{
    for (size_t i = from; i < fake->sent_count; i++) {
        if (fake->sent[i] == number)
            return true;
    }
    return false;
}

/* ---- tests ---- */

static void a_front_that_is_written_last_goes_out_last(void **state)
{
    struct fake *fake = fake_new();
    const struct upload_stream_spec spec = spec_of(NULL);
    struct upload_stream *stream;

    (void)state;
    write_body();
    stream = open_stream(fake, &spec, 0, true);
    upload_stream_advance(stream, 5 * MIB + 100);
    wait_until_sent(fake, 4);
    assert_false(was_sent(fake, 0, 1));
    write_front();
    finish_and_compare(fake, stream);
    assert_int_equal(fake->sent_count, 7);
    assert_true(was_sent(fake, 7 - (size_t)fake_settings.parallel, 1)); /* two parts go at once */
    upload_stream_close(stream);
    /* gone: parts 2 to 5; the front stays for who has to go on, and what no checkpoint covered */
    assert_true(room_taken() >= 2 * MIB && room_taken() <= 3 * MIB);
    fake_free(fake);
}

/* As the header of a tar's member that is still written. */
static void what_is_held_back_goes_out_when_the_hold_moves(void **state)
{
    struct fake *fake = fake_new();
    const struct upload_stream_spec spec = spec_of(NULL);
    struct upload_stream *stream;

    (void)state;
    write_body();
    stream = open_stream(fake, &spec, 0, true);
    upload_stream_hold(stream, 2 * MIB + 512);
    upload_stream_advance(stream, 5 * MIB);
    wait_until_sent(fake, 3);
    assert_true(was_sent(fake, 0, 2) && was_sent(fake, 0, 4) && was_sent(fake, 0, 5));
    assert_false(was_sent(fake, 0, 3));
    upload_stream_hold(stream, 5 * MIB);
    wait_until_sent(fake, 4);
    assert_true(was_sent(fake, 0, 3));
    write_front();
    finish_and_compare(fake, stream);
    upload_stream_close(stream);
    assert_int_equal(fake->sent_count, 7);
    fake_free(fake);
}

static void a_target_that_wants_order_is_refused(void **state)
{
    struct fake *fake = fake_new();
    struct upload_stream_spec spec = spec_of(NULL);
    struct upload_stream *stream = NULL;
    struct error err = ERROR_NONE;
    bool anew;

    (void)state;
    write_body();
    fake->class.any_order = false;
    assert_fails(upload_stream_open((struct target *)fake, &spec, &stream, &anew, &err), err,
                 ERR_NOT_AVAILABLE, "only in order: choose format ovf, vmdk or raw");
    assert_int_equal(fake->begun, 0);
    spec.head_last = false;
    error_clear(&err);
    assert_int_equal(upload_stream_open((struct target *)fake, &spec, &stream, &anew, &err), 0);
    upload_stream_close(stream);
    fake_free(fake);
}

static void what_is_there_is_not_sent_again(void **state)
{
    struct fake *fake = fake_new();
    const struct upload_stream_spec first = spec_of(NULL);
    const struct upload_stream_spec spec = spec_of("u1");
    struct upload_stream *stream;

    (void)state;
    write_body();
    stream = open_stream(fake, &first, 0, true);
    upload_stream_advance(stream, 4 * MIB);
    wait_until_sent(fake, 3);
    upload_stream_close(stream);
    assert_int_equal(fake->sent_count, 3);

    stream = open_stream(fake, &spec, 4 * MIB, false);
    write_front();
    finish_and_compare(fake, stream);
    upload_stream_close(stream);
    for (uint32_t number = 2; number <= 4; number++)
        assert_false(was_sent(fake, 3, number));
    assert_int_equal(fake->sent_count, 7);
    assert_int_equal(fake->begun, 1);

    stream = open_stream(fake, &spec, 4 * MIB, false); /* nobody wrote down that it is done */
    finish_and_compare(fake, stream);
    upload_stream_close(stream);
    assert_int_equal(fake->sent_count, 7);
    fake_free(fake);
}

/* The last part is shorter than the others, and was sent before the first. */
static void a_short_part_is_known_again(void **state)
{
    struct fake *fake = fake_new();
    const struct upload_stream_spec first = spec_of(NULL);
    const struct upload_stream_spec spec = spec_of("u1");
    struct error err = ERROR_NONE;
    char sha256[DIGEST_HEX_SIZE];
    struct upload_stream *stream;

    (void)state;
    write_body();
    fake->refuse = 1;
    stream = open_stream(fake, &first, 0, true);
    upload_stream_advance(stream, 4 * MIB);
    write_front();
    assert_fails(upload_stream_finish(stream, SIZE, no_progress, sha256, &err), err,
                 ERR_UNAVAILABLE, "not now");
    upload_stream_close(stream);
    assert_int_equal(fake->sent_count, 7);
    stream = open_stream(fake, &spec, 4 * MIB, false);
    finish_and_compare(fake, stream);
    upload_stream_close(stream);
    assert_int_equal(fake->sent_count, 7);
    fake_free(fake);
}

static void a_writer_that_lost_what_is_there_begins_anew(void **state)
{
    struct fake *fake = fake_new();
    const struct upload_stream_spec first = spec_of(NULL);
    const struct upload_stream_spec spec = spec_of("u1");
    struct upload_stream *stream = NULL;
    struct error err = ERROR_NONE;
    bool anew = true;

    (void)state;
    write_body();
    stream = open_stream(fake, &first, 0, true);
    upload_stream_advance(stream, 4 * MIB);
    wait_until_sent(fake, 3);
    upload_stream_close(stream);
    assert_int_equal(upload_stream_open((struct target *)fake, &spec, &stream, &anew, &err), 0);
    assert_false(anew);
    assert_fails(upload_stream_begin(stream, file_path, MIB, &err), err, ERR_UNAVAILABLE,
                 "before what the target has of it");
    upload_stream_close(stream);
    write_body();
    stream = open_stream(fake, &spec, 0, true);
    write_front();
    finish_and_compare(fake, stream);
    upload_stream_close(stream);
    fake_free(fake);
}

/* The target says that all is well: every part is compared nevertheless. */
static void a_changed_byte_is_found_when_it_is_read_back(void **state)
{
    struct fake *fake = fake_new();
    const struct upload_stream_spec spec = spec_of(NULL);
    struct error err = ERROR_NONE;
    char sha256[DIGEST_HEX_SIZE];
    struct upload_stream *stream;

    (void)state;
    write_body();
    fake->flip_at = 3 * MIB + 17;
    stream = open_stream(fake, &spec, 0, true);
    write_front();
    assert_fails(upload_stream_finish(stream, SIZE, no_progress, sha256, &err), err,
                 ERR_UNAVAILABLE, "is not what was uploaded");
    upload_stream_close(stream);
    assert_int_equal(access(state_path, F_OK), -1);
    fake_free(fake);
}

static void a_file_that_grew_too_large_begins_anew(void **state)
{
    struct fake *fake = fake_new();
    const struct upload_stream_spec spec = spec_of(NULL);
    struct upload_stream_spec again = spec_of("u1");
    struct error err = ERROR_NONE;
    struct upload_stream *stream;
    bool room = false;

    (void)state;
    write_body();
    stream = open_stream(fake, &spec, 0, true);
    assert_int_equal(upload_stream_has_room(stream, SIZE_MAX_, &room, &err), 0);
    assert_true(room);
    assert_fails(upload_stream_has_room(stream, SIZE_MAX_ + 1, &room, &err), err, ERR_UNAVAILABLE,
                 "the next attempt begins anew");
    upload_stream_close(stream);
    stream = open_stream(fake, &again, 0, true);
    upload_stream_close(stream);
    assert_int_equal(fake->begun, 2);
    fake_free(fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_front_that_is_written_last_goes_out_last),
        cmocka_unit_test(what_is_held_back_goes_out_when_the_hold_moves),
        cmocka_unit_test(a_target_that_wants_order_is_refused),
        cmocka_unit_test(what_is_there_is_not_sent_again),
        cmocka_unit_test(a_short_part_is_known_again),
        cmocka_unit_test(a_writer_that_lost_what_is_there_begins_anew),
        cmocka_unit_test(a_changed_byte_is_found_when_it_is_read_back),
        cmocka_unit_test(a_file_that_grew_too_large_begins_anew),
    };

    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
