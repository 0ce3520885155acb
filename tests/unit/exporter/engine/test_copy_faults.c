/* The copy engine when something goes wrong: errors of the source, a stop, a journal that does not
 * fit, a full disk, a lost lease; and how it goes on. Crashes are in test_copy_crash.c. */
#include <inttypes.h>
#include <signal.h>
#include <sys/resource.h>

#include "common/log.h"
#include "services/exporter/engine/copy.h"
#include "tests/unit/exporter/engine/copy_one.h"

static const struct provider *const providers[] = {&file_provider, &stream_provider,
                                                   &local_provider};

/* ---- faults of the source ---- */

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

static void a_stop_ends_the_copy_at_once(void **state)
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
        /* the first would hang for ever, the second has most of its bytes to come */
        assert_true(clock_mono_ms() - stopper.at_ms < 10000);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(retryable_read_errors_are_retried),
        cmocka_unit_test(retries_end_with_the_last_error),
        cmocka_unit_test(other_read_errors_end_the_copy_at_once),
        cmocka_unit_test(a_disk_that_ends_early_has_changed),
        cmocka_unit_test(a_mark_that_changed_meanwhile_fails_the_copy),
        cmocka_unit_test(a_stop_ends_the_copy_at_once),
        cmocka_unit_test(a_stopped_copy_goes_on_where_it_was),
        cmocka_unit_test(a_journal_of_another_source_or_other_outputs_is_refused),
        cmocka_unit_test(a_lost_partial_file_is_written_anew),
        cmocka_unit_test(a_journal_is_held_until_the_result_is_released),
        cmocka_unit_test(any_damage_to_the_journal_costs_time_only),
        cmocka_unit_test(a_file_size_limit_is_named_and_the_copy_goes_on_after_it),
        cmocka_unit_test_teardown(a_full_file_system_is_named_and_the_copy_goes_on_after_it,
                                  unmount_small),
        cmocka_unit_test(a_lost_lease_ends_the_copy_before_the_next_write),
    };
    (void)signal(SIGXFSZ, SIG_IGN);
    log_init("test", LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
