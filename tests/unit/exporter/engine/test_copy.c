/* The copy engine from end to end: content against qemu-img, several outputs in one pass, faults of
 * the source and of the disk, resume. Crashes are in test_copy_crash.c. */
#include <inttypes.h>
#include <signal.h>
#include <sys/resource.h>

#include "common/log.h"
#include "services/exporter/engine/copy.h"
#include "tests/unit/exporter/engine/copy_fixture.h"

struct shape {
    const char *name;
    enum pattern pattern;
    size_t size;
};

static const struct shape shapes[] = {
    {"one sector", PATTERN_RANDOM, SECTOR},         {"one piece", PATTERN_RANDOM, MIB},
    {"odd", PATTERN_RANDOM, 23 * MIB + 3 * SECTOR}, {"sparse", PATTERN_SPARSE, 70 * MIB + SECTOR},
    {"all zero", PATTERN_ZERO, 40 * MIB},
};

static const struct provider *const providers[] = {&file_provider, &stream_provider,
                                                   &local_provider};

static void every_output_of_one_pass_holds_the_disk_as_qemu_reads_it(void **state)
{
    (void)state;
    need_qemu_img();
    for (size_t p = 0; p < ARRAY_LEN(providers); p++) {
        for (size_t s = 0; s < ARRAY_LEN(shapes); s++) {
            struct error err = ERROR_NONE;
            struct test_disk disk = test_disk_make(shapes[s].pattern, shapes[s].size);
            struct provider_session session = {.data = disk.data, .size_bytes = disk.size};
            struct setup setup;
            auto_copy_result result = {0};

            print_message("%s: %s\n", providers[p]->name, shapes[s].name);
            setup_make(&setup, providers[p], &session, "raw qcow2 vmdk");
            assert_ok(copy_disk(&setup.options, &result, &err));
            setup_compare(&setup, &disk, &result);
            assert_false(result.resumed);
            assert_int_equal(result.bytes_transferred, disk.size);
            assert_int_equal(atomic_load(&session.open_now), 0);
            assert_true(result.file_sha256[2].known);
            setup_remove(&setup);
            test_disk_free(&disk);
        }
    }
}

/* ---- big and sparse ---- */

#define BIG_BYTES (4 * GIB + 5 * MIB + 3 * SECTOR)

static const struct extent big_extents[] = {
    {0, 3 * MIB},         {17 * MIB + 4096, 8192}, /* inside of one piece */
    {GIB - MIB, 2 * MIB}, {2 * GIB + 1, 1},
    {3 * GIB, 70 * MIB},  {BIG_BYTES - SECTOR, SECTOR},
};

static void big_bytes(uint64_t offset, uint8_t *out, size_t length)
{
    memset(out, 0, length);
    for (size_t i = 0; i < ARRAY_LEN(big_extents); i++) {
        uint64_t from = max_u64(big_extents[i].offset, offset);
        uint64_t to = min_u64(big_extents[i].offset + big_extents[i].length, offset + length);
        for (uint64_t at = from; at < to; at++)
            out[at - offset] = (uint8_t)(at % 251 + 1);
    }
}

/* Both images hold the same, and that is what big_bytes makes. */
static void compare_big(const struct setup *setup, const struct copy_result *result)
{
    autofree uint8_t *expected = xmalloc(MIB);

    for (size_t i = 1; i < setup->options.output_count; i++) {
        const char *argv[] = {QEMU_IMG,
                              "compare",
                              "-f",
                              setup->outputs[0].format->name,
                              "-F",
                              setup->outputs[i].format->name,
                              setup->paths[0],
                              setup->paths[i],
                              NULL};
        assert_int_equal(run_program(argv), 0);
    }
    for (size_t i = 0; i < leaves_count(result->leaves); i++) {
        uint64_t at = i * MIB;
        size_t n = (size_t)min_u64(MIB, BIG_BYTES - at);
        uint8_t leaf[DIGEST_BYTES];
        bool used = false;
        for (size_t e = 0; e < ARRAY_LEN(big_extents); e++)
            used = used || (big_extents[e].offset < at + n &&
                            big_extents[e].offset + big_extents[e].length > at);
        if (used) {
            big_bytes(at, expected, n);
            leaf_digest(expected, n, leaf);
        } else {
            leaf_digest_zero(n, leaf);
        }
        assert_memory_equal(leaf, leaves_get(result->leaves, i), DIGEST_BYTES);
    }
    for (size_t i = 0; i < setup->options.output_count; i++) {
        struct error err = ERROR_NONE;
        assert_ok(verify_image(setup->paths[i], setup->outputs[i].format->name, result->leaves, 2,
                               NULL, &err));
    }
}

static void holes_over_4_gib_cost_neither_reads_nor_space(void **state)
{
    (void)state;
    need_qemu_img();
    struct error err = ERROR_NONE;
    struct provider_session session = {.at = big_bytes,
                                       .size_bytes = BIG_BYTES,
                                       .extents = big_extents,
                                       .extent_count = ARRAY_LEN(big_extents)};
    struct setup setup;
    struct stat st;
    auto_copy_result result = {0};

    setup_make(&setup, &extents_provider, &session, "raw qcow2 vmdk");
    assert_ok(copy_disk(&setup.options, &result, &err));
    assert_true(result.bytes_transferred <= 80 * MIB);
    assert_int_equal(result.bytes_transferred, result.bytes_data);
    assert_int_equal(stat(setup.paths[0], &st), 0);
    assert_true((uint64_t)st.st_blocks * 512 < 90 * MIB);
    compare_big(&setup, &result);
    setup_remove(&setup);
}

static void zeros_over_4_gib_take_no_space_when_the_source_sends_them(void **state)
{
    (void)state;
    need_qemu_img();
    struct error err = ERROR_NONE;
    struct provider_session session = {.at = big_bytes, .size_bytes = BIG_BYTES};
    struct setup setup;
    auto_copy_result result = {0};

    setup_make(&setup, &file_provider, &session, "qcow2 vmdk");
    assert_ok(copy_disk(&setup.options, &result, &err));
    assert_int_equal(result.bytes_transferred, BIG_BYTES);
    assert_true(result.bytes_data <= 80 * MIB);
    compare_big(&setup, &result);
    setup_remove(&setup);
}

/* ---- faults of the source ---- */

struct one {
    struct test_disk disk;
    struct provider_session session;
    struct setup setup;
};

static void one_make(struct one *one, const struct provider *provider, size_t size,
                     const char *formats)
{
    *one = (struct one){.disk = test_disk_make(PATTERN_RANDOM, size)};
    one->session.data = one->disk.data;
    one->session.size_bytes = size;
    setup_make(&one->setup, provider, &one->session, formats);
}

static void one_remove(struct one *one)
{
    setup_remove(&one->setup);
    test_disk_free(&one->disk);
}

static void one_fails(struct one *one, enum error_code code, const char *part)
{
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};

    assert_int_equal(copy_disk(&one->setup.options, &result, &err), -1);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%s: %s, expected %s with '%s'", error_code_name(err.code), err.message,
                 error_code_name(code), part);
    assert_int_equal(atomic_load(&one->session.open_now), 0);
}

/* Whether anything was resumed depends on how far the last checkpoint came. */
static void one_works_somehow(struct one *one, bool *out_resumed)
{
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};

    assert_ok(copy_disk(&one->setup.options, &result, &err));
    *out_resumed = result.resumed;
    assert_int_equal(result.bytes_transferred + result.bytes_resumed, one->disk.size);
    assert_int_equal(result.bytes_data, one->disk.size);
    setup_compare(&one->setup, &one->disk, &result);
}

static void one_works(struct one *one, bool resumed)
{
    bool was_resumed = false;

    one_works_somehow(one, &was_resumed);
    assert_int_equal(was_resumed, resumed);
}

static void retryable_read_errors_are_retried(void **state)
{
    (void)state;
    need_qemu_img();
    for (size_t p = 0; p < ARRAY_LEN(providers); p++) {
        struct one one;
        one_make(&one, providers[p], 11 * MIB, "raw vmdk");
        one.session.fail_from = 4 * MIB + 100000;
        one.session.fail_reads = 3;
        one.session.fail_code = ERR_UNAVAILABLE;
        one.session.fail_opens = 1;
        one_works(&one, false);
        assert_int_equal(atomic_load(&one.session.bytes), one.disk.size); /* nothing came twice */
        one_remove(&one);
    }
}

static void retries_end_with_the_last_error(void **state)
{
    (void)state;
    struct one one;
    one_make(&one, &file_provider, 11 * MIB, "raw");
    one.setup.options.retries_max = 1;
    one.session.fail_from = 4 * MIB;
    one.session.fail_reads = 1000;
    one.session.fail_code = ERR_TIMEOUT;
    one_fails(&one, ERR_TIMEOUT, "given up after 1 retries: scripted: read failed");
    one_remove(&one);
}

static void other_read_errors_end_the_copy_at_once(void **state)
{
    static const enum error_code codes[] = {ERR_DENIED, ERR_NOT_FOUND, ERR_PROTOCOL, ERR_INTERNAL,
                                            ERR_SOURCE_CHANGED};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        struct one one;
        one_make(&one, providers[i % ARRAY_LEN(providers)], 11 * MIB, "qcow2");
        one.session.fail_from = 5 * MIB;
        one.session.fail_reads = 1;
        one.session.fail_code = codes[i];
        one_fails(&one, codes[i], "scripted: read failed");
        one_remove(&one);
    }
}

static void a_disk_that_ends_early_has_changed(void **state)
{
    (void)state;
    for (size_t p = 0; p < ARRAY_LEN(providers); p++) {
        struct one one;
        one_make(&one, providers[p], 11 * MIB, "raw vmdk");
        one.session.ends_at = 6 * MIB;
        one_fails(&one, ERR_SOURCE_CHANGED, "the disk has 6291456 bytes now");
        one_remove(&one);
    }
    struct one one;
    one_make(&one, &stream_provider, 11 * MIB, "raw");
    one.session.stream_short = true;
    one_fails(&one, ERR_SOURCE_CHANGED, "the disk ends at");
    one_remove(&one);
}

static void a_mark_that_changed_meanwhile_fails_the_copy(void **state)
{
    (void)state;
    struct one one;
    one_make(&one, &file_provider, 3 * MIB, "qcow2");
    one.session.mark = "another mark";
    one_fails(&one, ERR_SOURCE_CHANGED, "it was 'mark' and is 'another mark' now");
    one_remove(&one);
}

static void more_readers_come_while_that_brings_more(void **state)
{
    (void)state;
    struct one one;
    one_make(&one, &file_provider, 160 * MIB, "raw");
    one.setup.options.readers = 16;
    one.setup.options.hash = false;
    one.session.delay_ms = 60;
    one_works(&one, false);
    print_message("%d connections\n", atomic_load(&one.session.opens));
    assert_true(atomic_load(&one.session.opens) > 4);
    one_remove(&one);
}

/* ---- stopping ---- */

struct stopper {
    atomic_bool stopped;
    atomic_uint_fast64_t *bytes; /* stops when the source gave so many */
    uint64_t after_bytes;
    int64_t at_ms;
};

static void *stop_later(void *arg)
{
    struct stopper *stopper = arg;
    while (atomic_load(stopper->bytes) < stopper->after_bytes)
        clock_sleep_ms(2);
    stopper->at_ms = clock_mono_ms();
    atomic_store(&stopper->stopped, true);
    return NULL;
}

static void a_stop_ends_the_copy_within_a_second(void **state)
{
    static const struct {
        uint64_t hang_at;
        int64_t delay_ms;
    } cases[] = {{4 * MIB, 0}, {UINT64_C(1) << 40, 1}};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct stopper stopper = {.after_bytes = 2 * MIB};
        pthread_t thread;
        struct one one;
        one_make(&one, &stream_provider, 200 * MIB, "raw qcow2 vmdk");
        one.session.hang_at = cases[i].hang_at;
        one.session.delay_ms = cases[i].delay_ms;
        one.session.cancelled = &stopper.stopped;
        stopper.bytes = &one.session.bytes;
        one.setup.options.stopped = &stopper.stopped;
        assert_int_equal(pthread_create(&thread, NULL, stop_later, &stopper), 0);
        one_fails(&one, ERR_CANCELLED, "");
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_true(clock_mono_ms() - stopper.at_ms < 1000);
        one_remove(&one);
    }
}

static void a_stopped_copy_goes_on_where_it_was(void **state)
{
    static const char *const formats[] = {"raw", "qcow2", "vmdk", "raw qcow2 vmdk"};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(formats); f++) {
        /* More than fits in memory: some chunks are through. */
        struct stopper stopper = {.after_bytes = 55 * MIB};
        pthread_t thread;
        struct one one;
        one_make(&one, &file_provider, 70 * MIB + SECTOR, formats[f]);
        one.session.delay_ms = 10;
        one.setup.options.stopped = &stopper.stopped;
        stopper.bytes = &one.session.bytes;
        assert_int_equal(pthread_create(&thread, NULL, stop_later, &stopper), 0);
        one_fails(&one, ERR_CANCELLED, "stopped");
        assert_int_equal(pthread_join(thread, NULL), 0);
        one.setup.options.stopped = NULL;
        one.session.delay_ms = 0;
        one_works(&one, true);
        one_works(&one, true); /* and a finished one is finished again */
        one_remove(&one);
    }
}

/* ---- the journal and the files ---- */

static void a_journal_of_another_source_or_other_outputs_is_refused(void **state)
{
    (void)state;
    struct one one;
    one_make(&one, &file_provider, 7 * MIB, "raw");
    one_works(&one, false);
    one.setup.options.identity = "another";
    one_fails(&one, ERR_SOURCE_CHANGED, "another disk");
    one.setup.options.identity = "test identity";
    one.setup.options.chunk_bytes = 4 * MIB;
    one_fails(&one, ERR_SOURCE_CHANGED, "chunk size");
    one.setup.options.chunk_bytes = 3 * MIB;
    one.setup.outputs[0].file_name = "other.img";
    one_fails(&one, ERR_SOURCE_CHANGED, "other outputs");
    one.setup.outputs[0].file_name = "disk.img";
    one.setup.disk.size_bytes = 6 * MIB;
    one_fails(&one, ERR_SOURCE_CHANGED, "bytes");
    one.setup.disk.size_bytes = 7 * MIB;
    one_works(&one, true);
    one_remove(&one);
}

static void a_lost_partial_file_is_written_anew(void **state)
{
    static const char *const formats[] = {"raw", "qcow2", "vmdk"};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(formats); f++) {
        struct one one;
        one_make(&one, &file_provider, 7 * MIB, formats[f]);
        one_works(&one, false);
        assert_int_equal(unlink(one.setup.paths[0]), 0);
        one_works(&one, false);
        assert_int_equal(truncate(one.setup.paths[0], 4096), 0);
        one_works(&one, false);
        one_remove(&one);
    }
}

static void a_journal_is_held_until_the_result_is_released(void **state)
{
    (void)state;
    struct one one;
    struct error err = ERROR_NONE;
    struct error second = ERROR_NONE;
    struct copy_result result = {0};
    struct copy_result none = {0};
    atomic_bool stopped = true; /* does not wait the 10 s out */

    one_make(&one, &file_provider, 3 * MIB, "raw");
    assert_ok(copy_disk(&one.setup.options, &result, &err));
    one.setup.options.stopped = &stopped;
    assert_int_equal(copy_disk(&one.setup.options, &none, &second), -1);
    assert_int_equal(second.code, ERR_CANCELLED);
    assert_non_null(strstr(second.message, "waiting for"));
    copy_result_release(&result);
    one.setup.options.stopped = NULL;
    one_works(&one, true);
    one_remove(&one);
}

/* Every seventh byte of a real journal is cut off there, or flipped: the copy goes on from less and
 * ends with the same bytes. */
static void any_damage_to_the_journal_costs_time_only(void **state)
{
    (void)state;
    struct one one;
    size_t size = 0;

    one_make(&one, &file_provider, 6 * MIB, "raw vmdk");
    one.setup.options.chunk_bytes = MIB;
    one.setup.options.checkpoint_bytes = MIB;
    one.session.delay_ms = 2;
    one_works(&one, false);
    one.session.delay_ms = 0;
    autofree uint8_t *journal = read_file(one.setup.journal, &size);
    print_message("%zu bytes\n", size);
    for (size_t at = 0; at < size; at += 7) {
        struct error err = ERROR_NONE;
        auto_copy_result result = {0};
        autofree uint8_t *bad = xmemdup(journal, size);
        bad[at] ^= 0x10;
        write_file(one.setup.journal, bad, at % 2 == 0 ? size : at);
        assert_ok(copy_disk(&one.setup.options, &result, &err));
        for (size_t i = 0; i < 2; i++)
            assert_ok(verify_image(one.setup.paths[i], one.setup.outputs[i].format->name,
                                   result.leaves, 1, NULL, &err));
    }
    one_remove(&one);
}

/* ---- a full disk, a lost lease ---- */

static void set_file_limit(uint64_t bytes)
{
    struct rlimit limit = {.rlim_cur = bytes, .rlim_max = RLIM_INFINITY};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void a_file_size_limit_is_named_and_the_copy_goes_on_after_it(void **state)
{
    static const char *const formats[] = {"qcow2", "vmdk", "vmdk qcow2"};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(formats); f++) {
        struct one one;
        bool resumed = false;
        one_make(&one, &file_provider, 40 * MIB, formats[f]);
        one.setup.options.checkpoint_bytes = 4 * MIB;
        one.session.delay_ms = 2;
        set_file_limit(20 * MIB);
        one_fails(&one, ERR_LIMIT, test_dir); /* names one of the paths */
        set_file_limit(RLIM_INFINITY);
        one_works_somehow(&one, &resumed);
        one_remove(&one);
    }
}

static void a_full_file_system_is_named_and_the_copy_goes_on_after_it(void **state)
{
    static const char *const formats[] = {"raw", "qcow2", "vmdk"};
    (void)state;
    need_qemu_img();
    autofree char *mount_point = test_path("small");
    const char *mount[] = {"/bin/mount", "-t",   "tmpfs",     "-o",
                           "size=16m",   "none", mount_point, NULL};
    const char *bigger[] = {"/bin/mount", "-o", "remount,size=64m", mount_point, NULL};
    const char *unmount[] = {"/bin/umount", mount_point, NULL};
    assert_int_equal(mkdir(mount_point, 0700), 0);
    for (size_t f = 0; f < ARRAY_LEN(formats); f++) {
        if (run_program(mount) != 0) {
            print_message("SKIP: no tmpfs can be mounted here\n");
            skip();
        }
        struct one one;
        bool resumed = false;
        one_make(&one, &stream_provider, 30 * MIB, formats[f]);
        autofree char *path = xasprintf("%s/disk.partial", mount_point);
        autofree char *journal = xasprintf("%s/disk.journal", mount_point);
        one.setup.outputs[0].path = path;
        free(one.setup.paths[0]);
        one.setup.paths[0] = xstrdup(path);
        free(one.setup.journal);
        one.setup.journal = xstrdup(journal);
        one.setup.options.journal_path = journal;
        one.setup.options.checkpoint_bytes = 3 * MIB;
        one.session.delay_ms = 1;
        one_fails(&one, ERR_LIMIT, path);
        assert_int_equal(run_program(bigger), 0);
        one_works_somehow(&one, &resumed);
        one_remove(&one);
        assert_int_equal(run_program(unmount), 0);
    }
}

static int unmount_small(void **state)
{
    autofree char *mount_point = test_path("small");
    const char *unmount[] = {"/bin/umount", "-q", "-l", mount_point, NULL};
    (void)state;
    set_file_limit(RLIM_INFINITY);
    (void)run_program(unmount); /* mounted only when the test failed */
    return 0;
}

struct lease {
    atomic_int left; /* writes that are allowed */
    atomic_int asked;
};

static int may_write(void *arg, struct error *err)
{
    struct lease *lease = arg;
    atomic_fetch_add(&lease->asked, 1);
    if (atomic_fetch_sub(&lease->left, 1) <= 0)
        return error_set(err, ERR_CONFLICT, "scripted: the lease is lost");
    return 0;
}

static void a_lost_lease_ends_the_copy_before_the_next_write(void **state)
{
    (void)state;
    struct one one;
    struct lease lease = {.left = 5};
    struct stat st;

    one_make(&one, &file_provider, 40 * MIB, "vmdk");
    one.setup.options.may_write = may_write;
    one.setup.options.arg = &lease;
    one_fails(&one, ERR_CONFLICT, "the lease is lost");
    assert_int_equal(stat(one.setup.paths[0], &st), 0);
    assert_true(st.st_size <= (off_t)(6 * MIB));
    one_remove(&one);
}

/* ---- bounds and progress ---- */

/* A sink that takes a while, or stands still until it is let go. */
struct sink {
    int unused;
};
static atomic_uint_fast64_t slow_written;
static atomic_bool slow_blocked;
static int64_t slow_ms;

static int slow_open(const struct sink_options *options, struct sink **out, struct error *err)
{
    (void)options;
    (void)err;
    *out = xcalloc(1, sizeof **out);
    return 0;
}

static int slow_write(struct sink *sink, uint64_t offset, const void *data, size_t length,
                      struct error *err)
{
    (void)sink;
    (void)offset;
    (void)data;
    (void)err;
    while (atomic_load(&slow_blocked))
        clock_sleep_ms(2);
    clock_sleep_ms(slow_ms);
    atomic_fetch_add(&slow_written, length);
    return 0;
}

static int slow_zero(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    return slow_write(sink, offset, NULL, (size_t)length, err);
}

static int slow_state(struct sink *sink, struct strbuf *text, struct error *err)
{
    (void)sink;
    (void)err;
    strbuf_add(text, "slow");
    return 0;
}

static int slow_nothing(struct sink *sink, struct error *err)
{
    (void)sink;
    (void)err;
    return 0;
}

static void slow_close(struct sink *sink)
{
    free(sink);
}

static bool slow_sha256(const struct sink *sink, char out[65])
{
    (void)sink;
    (void)out;
    return false;
}

static const struct sink_format slow_formats[] = {
    {"slow", ".slow", 0, slow_open, NULL, NULL, slow_write, slow_zero, slow_state, slow_nothing,
     NULL, slow_nothing, slow_close, slow_sha256},
    {"slow-ordered", ".slow", SINK_ORDERED, slow_open, NULL, NULL, slow_write, slow_zero,
     slow_state, slow_nothing, NULL, slow_nothing, slow_close, slow_sha256},
};

static void *run_copy(void *arg)
{
    struct one *one = arg;
    one_fails(one, ERR_CANCELLED, "stopped");
    return NULL;
}

/* What was read and not written can only lie in memory. */
static void a_blocked_output_holds_the_readers_within_the_bound(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(slow_formats); f++) {
        struct one one;
        atomic_bool stopped = false;
        pthread_t thread;
        uint64_t before = 1;
        uint64_t now = 0;

        one_make(&one, &stream_provider, 200 * MIB, "raw");
        one.setup.outputs[0].format = &slow_formats[f];
        one.setup.options.journal_path = NULL;
        one.setup.options.stopped = &stopped;
        atomic_store(&slow_blocked, true);
        atomic_store(&slow_written, 0);
        slow_ms = 0;
        assert_int_equal(pthread_create(&thread, NULL, run_copy, &one), 0);
        while (now == 0 || now != before) { /* until nothing moves any more */
            before = now;
            clock_sleep_ms(300);
            now = atomic_load(&one.session.bytes);
        }
        print_message("%s: %ju MiB in memory\n", slow_formats[f].name, (uintmax_t)(now / MIB));
        assert_true(now <= (COPY_PIECES_PER_READER * 4 + 1) * MIB);
        assert_true(now >= 8 * MIB);
        atomic_store(&stopped, true);
        atomic_store(&slow_blocked, false);
        assert_int_equal(pthread_join(thread, NULL), 0);
        one_remove(&one);
    }
}

static void *run_working_copy(void *arg)
{
    one_works(arg, false);
    return NULL;
}

/* All wait for the first piece: the others may go on up to the bound, and nothing locks up. */
static void a_held_first_piece_bounds_what_waits_behind_it(void **state)
{
    static const char *const formats[] = {"vmdk", "vmdk raw qcow2"};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(formats); f++) {
        struct one one;
        atomic_bool held = true;
        pthread_t thread;
        uint64_t before = 1;
        uint64_t now = 0;

        one_make(&one, &file_provider, 150 * MIB, formats[f]);
        one.setup.options.chunk_bytes = 10 * MIB;
        one.session.held = &held;
        one.session.hold_below = 1;
        assert_int_equal(pthread_create(&thread, NULL, run_working_copy, &one), 0);
        while (now == 0 || now != before) {
            before = now;
            clock_sleep_ms(300);
            now = atomic_load(&one.session.bytes);
        }
        print_message("%ju MiB wait\n", (uintmax_t)(now / MIB));
        assert_true(now <= COPY_PIECES_PER_READER * 4 * MIB);
        atomic_store(&held, false);
        assert_int_equal(pthread_join(thread, NULL), 0);
        one_remove(&one);
    }
}

#define WINDOW_BYTES (20 * MIB)

struct spool {
    const char *path;
    atomic_bool held; /* the first piece */
    uint64_t allowed; /* the file's bytes, by what was let in */
    uint64_t largest, over;
    unsigned int calls;
    bool full; /* all that was let in is there; the rest may come */
};

static int spool_begin(void *arg, uint64_t final_bytes, struct error *err)
{
    (void)arg, (void)final_bytes, (void)err;
    return 0;
}

static void spool_advance(void *arg, uint64_t final_bytes)
{
    (void)arg, (void)final_bytes;
}

static int spool_has_room(void *arg, uint64_t disk_end, uint64_t claimed, bool *out,
                          struct error *err)
{
    struct spool *spool = arg;
    struct stat st;

    (void)disk_end;
    if (stat(spool->path, &st) < 0)
        return error_set_errno(err, errno, "'%s'", spool->path);
    spool->largest = (uint64_t)st.st_size;
    if (spool->largest > spool->allowed + spool->allowed / 100 + MIB / 8 && !spool->full)
        spool->over = spool->largest;
    *out = spool->full || spool->largest + claimed <= WINDOW_BYTES;
    if (!*out || ++spool->calls > WINDOW_BYTES / (3 * MIB))
        atomic_store(&spool->held, false);
    if (spool->full)
        return 0;
    if (*out) {
        spool->allowed = max_u64(spool->allowed, spool->largest + claimed);
        return 0;
    }
    spool->full = claimed <= 3 * MIB; /* of the next chunk alone */
    return 0;
}

/* What readers hold, and what waits behind a late piece, counts as if it were in the file. */
static void a_follower_hears_how_far_an_ordered_output_will_grow(void **state)
{
    (void)state;
    struct one one;
    struct spool spool = {.held = true};
    const struct copy_follower follower = {spool_begin, spool_advance, spool_has_room, &spool};

    need_qemu_img();
    one_make(&one, &file_provider, 60 * MIB, "vmdk");
    spool.path = one.setup.paths[0];
    one.session.held = &spool.held;
    one.session.hold_below = 1;
    one.setup.options.follower = &follower;
    one_works(&one, false);
    assert_true(spool.full);
    assert_int_equal(spool.over, 0);
    assert_in_range(spool.allowed, WINDOW_BYTES - 4 * MIB, WINDOW_BYTES);
    one_remove(&one);
}

struct seen {
    int64_t first_ms, last_ms;
    unsigned int calls;
    uint64_t last;
    unsigned int source, disk; /* how often that limited */
};

static void see(void *arg, const struct copy_progress *progress)
{
    struct seen *seen = arg;
    int64_t now = clock_mono_ms();

    assert_true(progress->bytes_done >= seen->last);
    seen->last = progress->bytes_done;
    if (seen->calls++ == 0)
        seen->first_ms = now;
    seen->last_ms = now;
    seen->source += strcmp(progress->limited_by, "source") == 0;
    seen->disk += strcmp(progress->limited_by, "disk") == 0;
}

static void progress_tells_what_limits(void **state)
{
    static const struct {
        const struct provider *provider;
        int64_t read_ms, write_ms;
    } cases[] = {{&file_provider, 40, 0},
                 {&file_provider, 0, 20},
                 {&local_provider, 40, 0},
                 {&local_provider, 0, 20}};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct one one;
        struct error err = ERROR_NONE;
        struct seen seen = {0};
        auto_copy_result result = {0};

        one_make(&one, cases[i].provider, 120 * MIB, "raw");
        one.setup.outputs[0].format = &slow_formats[0];
        one.setup.options.journal_path = NULL;
        one.setup.options.progress = see;
        one.setup.options.arg = &seen;
        one.session.delay_ms = cases[i].read_ms;
        slow_ms = cases[i].write_ms;
        assert_ok(copy_disk(&one.setup.options, &result, &err));
        if (cases[i].write_ms == 0)
            assert_true(seen.source > 0 && seen.disk == 0);
        else
            assert_true(seen.disk > 0);
        assert_int_equal(seen.last, one.disk.size);
        assert_true(seen.calls > 3);
        assert_true(seen.calls - 1 <= (seen.last_ms - seen.first_ms) / 100 + 1);
        one_remove(&one);
    }
}

/* ---- without journal ---- */

static atomic_uint syncs;
static atomic_uint_fast64_t written;
static unsigned int failing_sync; /* 0: none */

static int count_sync(struct sink *sink, struct error *err)
{
    if (atomic_fetch_add(&syncs, 1) + 1 == failing_sync)
        return error_set_errno(err, ENOSPC, "sync");
    return sink_qcow2.sync(sink, err);
}

/* What comes behind 8 MiB waits for the first sync. */
static int write_behind_sync(struct sink *sink, uint64_t offset, const void *data, size_t length,
                             struct error *err)
{
    int64_t deadline = clock_mono_ms() + 20000;

    while (atomic_load(&written) >= 8 * MIB && atomic_load(&syncs) == 0) {
        if (clock_mono_ms() > deadline)
            return error_set(err, ERR_TIMEOUT, "nothing is synced");
        clock_sleep_ms(1);
    }
    atomic_fetch_add(&written, length);
    return sink_qcow2.write(sink, offset, data, length, err);
}

static void without_journal_the_disk_writes_while_the_copy_goes_on(void **state)
{
    (void)state;
    struct error err = ERROR_NONE;
    struct sink_format format = sink_qcow2;
    struct one one;
    auto_copy_result result = {0};

    one_make(&one, &local_provider, 40 * MIB, "qcow2");
    format.sync = count_sync;
    format.write = write_behind_sync;
    one.setup.outputs[0].format = &format;
    one.setup.options.journal_path = NULL;
    one.setup.options.readers = 1; /* so chunks are done when it waits */
    one.setup.options.chunk_bytes = 2 * MIB;
    one.setup.options.checkpoint_bytes = 2 * MIB;
    assert_ok(copy_disk(&one.setup.options, &result, &err));
    setup_compare(&one.setup, &one.disk, &result);
    atomic_store(&syncs, 0);
    atomic_store(&written, 0);
    failing_sync = 1;
    one_fails(&one, ERR_LIMIT, "sync");
    one_remove(&one);
}

static void wrong_options_are_refused(void **state)
{
    static const uint64_t chunks[] = {0, MIB + 1, 65 * MIB, MIB - 1};
    (void)state;
    struct one one;
    one_make(&one, &file_provider, 3 * MIB, "raw");
    for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
        one.setup.options.chunk_bytes = chunks[i];
        one_fails(&one, ERR_INVALID, "chunk size");
    }
    one.setup.options.chunk_bytes = 64 * MIB;
    one.setup.disk.size_bytes = 1000;
    one_fails(&one, ERR_INVALID, "disk size");
    one_remove(&one);
}

static void chunks_of_any_size_give_the_same_disk(void **state)
{
    static const uint64_t chunks[] = {MIB, 5 * MIB, 10 * MIB, 64 * MIB};
    static const unsigned int readers[] = {1, 3, 16, 2};
    (void)state;
    need_qemu_img();
    for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
        struct one one;
        one_make(&one, providers[i % ARRAY_LEN(providers)], 75 * MIB + SECTOR, "vmdk raw");
        one.setup.options.chunk_bytes = chunks[i];
        one.setup.options.readers = readers[i];
        one_works(&one, false);
        one_remove(&one);
    }
}

/* ---- verify ---- */

static void verify_names_the_first_mib_that_differs(void **state)
{
    (void)state;
    struct one one;
    struct error err = ERROR_NONE;
    struct error found = ERROR_NONE;
    struct error cut = ERROR_NONE;
    struct error stop = ERROR_NONE;
    atomic_bool stopped = true;
    auto_copy_result result = {0};
    uint8_t byte = 0;

    one_make(&one, &file_provider, 30 * MIB + SECTOR, "raw");
    assert_ok(copy_disk(&one.setup.options, &result, &err));
    int fd = open(one.setup.paths[0], O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    for (uint64_t at = 29 * MIB; at >= 17 * MIB; at -= 3 * MIB) {
        assert_int_equal(pread_all(fd, &byte, 1, at + 77), 0);
        byte ^= 1;
        assert_int_equal(pwrite_all(fd, &byte, 1, at + 77), 0);
    }
    assert_int_equal(verify_image(one.setup.paths[0], "raw", result.leaves, 4, NULL, &found), -1);
    assert_int_equal(found.code, ERR_CORRUPT);
    assert_non_null(strstr(found.message, "in the MiB at offset 17825792"));
    assert_int_equal(verify_image(one.setup.paths[0], "raw", result.leaves, 4, &stopped, &stop),
                     -1);
    assert_int_equal(stop.code, ERR_CANCELLED);
    assert_int_equal(ftruncate(fd, 30 * MIB), 0);
    assert_int_equal(verify_image(one.setup.paths[0], "raw", result.leaves, 4, NULL, &cut), -1);
    assert_int_equal(cut.code, ERR_CORRUPT);
    (void)close(fd);
    one_remove(&one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_output_of_one_pass_holds_the_disk_as_qemu_reads_it),
        cmocka_unit_test(chunks_of_any_size_give_the_same_disk),
        cmocka_unit_test(holes_over_4_gib_cost_neither_reads_nor_space),
        cmocka_unit_test(zeros_over_4_gib_take_no_space_when_the_source_sends_them),
        cmocka_unit_test(retryable_read_errors_are_retried),
        cmocka_unit_test(retries_end_with_the_last_error),
        cmocka_unit_test(other_read_errors_end_the_copy_at_once),
        cmocka_unit_test(a_disk_that_ends_early_has_changed),
        cmocka_unit_test(a_mark_that_changed_meanwhile_fails_the_copy),
        cmocka_unit_test(more_readers_come_while_that_brings_more),
        cmocka_unit_test(a_stop_ends_the_copy_within_a_second),
        cmocka_unit_test(a_stopped_copy_goes_on_where_it_was),
        cmocka_unit_test(a_journal_of_another_source_or_other_outputs_is_refused),
        cmocka_unit_test(a_lost_partial_file_is_written_anew),
        cmocka_unit_test(a_journal_is_held_until_the_result_is_released),
        cmocka_unit_test(any_damage_to_the_journal_costs_time_only),
        cmocka_unit_test(a_file_size_limit_is_named_and_the_copy_goes_on_after_it),
        cmocka_unit_test_teardown(a_full_file_system_is_named_and_the_copy_goes_on_after_it,
                                  unmount_small),
        cmocka_unit_test(a_lost_lease_ends_the_copy_before_the_next_write),
        cmocka_unit_test(a_blocked_output_holds_the_readers_within_the_bound),
        cmocka_unit_test(a_held_first_piece_bounds_what_waits_behind_it),
        cmocka_unit_test(a_follower_hears_how_far_an_ordered_output_will_grow),
        cmocka_unit_test(progress_tells_what_limits),
        cmocka_unit_test(without_journal_the_disk_writes_while_the_copy_goes_on),
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(verify_names_the_first_mib_that_differs),
    };
    (void)signal(SIGXFSZ, SIG_IGN);
    log_init("test", LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
