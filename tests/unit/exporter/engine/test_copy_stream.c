/* The copy engine with disks that come as one stream: all outputs, holes, streams that break and
 * begin anew, what is compared then, and what is never believed. */
#include "tests/unit/exporter/engine/copy_fixture.h"

static struct provider_session session_of(const struct test_disk *disk)
{
    return (struct provider_session){.data = disk->data, .size_bytes = disk->size};
}

static void test_every_output_gets_the_disk(void **state)
{
    static const char *const outputs[] = {"raw",       "qcow2",      "vmdk",
                                          "raw qcow2", "vmdk qcow2", "raw.zst"};
    static const size_t sizes[] = {512, 9 * MIB + 512, 40 * MIB};

    (void)state;
    need_qemu_img();
    for (size_t i = 0; i < ARRAY_LEN(outputs) * ARRAY_LEN(sizes); i++) {
        struct error err = ERROR_NONE;
        struct test_disk disk =
            test_disk_make(i % 2 == 0 ? PATTERN_SPARSE : PATTERN_TEXT, sizes[i % ARRAY_LEN(sizes)]);
        struct provider_session session = session_of(&disk);
        struct copy_result result = {0};
        struct setup setup;
        /* a hole of many chunks in the middle, and one at the end */
        memset(disk.data + disk.size / 4, 0, disk.size / 3);
        memset(disk.data + disk.size - disk.size / 8, 0, disk.size / 8);
        setup_make(&setup, &forward_provider, &session, outputs[i / ARRAY_LEN(sizes)]);
        assert_ok(copy_disk(&setup.options, &result, &err));
        setup_compare(&setup, &disk, &result);
        assert_int_equal(session.opens, 1);
        assert_int_equal(session.open_now, 0);
        copy_result_release(&result);
        setup_remove(&setup);
        test_disk_free(&disk);
    }
}

static void test_a_disk_of_zeros_needs_no_bytes(void **state)
{
    struct error err = ERROR_NONE;
    struct test_disk disk = test_disk_make(PATTERN_ZERO, 33 * MIB);
    struct provider_session session = session_of(&disk);
    struct copy_result result = {0};
    struct setup setup;

    (void)state;
    need_qemu_img();
    setup_make(&setup, &forward_provider, &session, "raw qcow2");
    assert_ok(copy_disk(&setup.options, &result, &err));
    setup_compare(&setup, &disk, &result);
    assert_int_equal(result.bytes_data, 0);
    assert_int_equal(result.bytes_transferred, 0);
    copy_result_release(&result);
    setup_remove(&setup);
    test_disk_free(&disk);
}

/* The stream breaks at `at`, `times` times. */
static void breaks(const char *outputs, uint64_t at, int times)
{
    struct error err = ERROR_NONE;
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 40 * MIB + 512);
    struct provider_session session = session_of(&disk);
    struct copy_result result = {0};
    struct setup setup;

    disk.data[disk.size - 1] = 1;
    session.fail_from = at;
    session.fail_reads = times;
    session.fail_code = ERR_UNAVAILABLE;
    session.delay_ms = 1; /* or it breaks before anything is written */
    setup_make(&setup, &forward_provider, &session, outputs);
    setup.options.checkpoint_bytes = 3 * MIB;
    assert_ok(copy_disk(&setup.options, &result, &err));
    setup_compare(&setup, &disk, &result);
    assert_int_equal(session.opens, times + 1);
    assert_int_equal(session.open_now, 0);
    assert_int_equal(result.resumed, at > 6 * MIB);
    copy_result_release(&result);
    setup_remove(&setup);
    test_disk_free(&disk);
}

static void test_a_broken_stream_begins_anew(void **state)
{
    (void)state;
    need_qemu_img();
    breaks("raw", 25 * MIB, 1);
    breaks("qcow2", 25 * MIB, 2);
    breaks("vmdk qcow2", 25 * MIB, 1);
    breaks("vmdk", 40 * MIB, 1); /* all but the end was written */
    breaks("raw", 0, 1);
}

static void test_it_is_not_tried_for_ever(void **state)
{
    struct error err = ERROR_NONE;
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 8 * MIB);
    struct provider_session session = session_of(&disk);
    struct copy_result result = {0};
    struct setup setup;

    (void)state;
    session.fail_from = 4 * MIB;
    session.fail_reads = 1000;
    session.fail_code = ERR_UNAVAILABLE;
    setup_make(&setup, &forward_provider, &session, "raw");
    setup.options.retries_max = 1;
    assert_int_equal(copy_disk(&setup.options, &result, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_non_null(strstr(err.message, "given up after 2 streams"));
    assert_int_equal(session.opens, 2);
    setup_remove(&setup);
    test_disk_free(&disk);
}

static void test_an_error_that_stays_ends_it_at_once(void **state)
{
    struct error err = ERROR_NONE;
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 8 * MIB);
    struct provider_session session = session_of(&disk);
    struct copy_result result = {0};
    struct setup setup;

    (void)state;
    session.fail_from = 8 * MIB - 1; /* the look behind the last byte */
    session.fail_reads = 1;
    session.fail_code = ERR_CORRUPT;
    setup_make(&setup, &forward_provider, &session, "raw");
    assert_int_equal(copy_disk(&setup.options, &result, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_int_equal(session.opens, 1);
    setup_remove(&setup);
    test_disk_free(&disk);
}

/* A later worker goes on with the files: it reads all, compares what is there, writes the rest. */
static void test_what_is_there_is_compared(void **state)
{
    struct error err = ERROR_NONE;
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 30 * MIB);
    struct provider_session session = session_of(&disk);
    struct copy_result result = {0};
    struct setup setup;

    (void)state;
    need_qemu_img();
    session.fail_from = 20 * MIB;
    session.fail_reads = 1;
    session.fail_code = ERR_DENIED;
    session.delay_ms = 1; /* or it breaks before anything is written */
    setup_make(&setup, &forward_provider, &session, "raw vmdk");
    setup.options.checkpoint_bytes = 3 * MIB;
    assert_int_equal(copy_disk(&setup.options, &result, &err), -1);

    /* other bytes in what was noted */
    err = (struct error)ERROR_NONE;
    disk.data[MIB + 5] ^= 1;
    assert_int_equal(copy_disk(&setup.options, &result, &err), -1);
    assert_int_equal(err.code, ERR_SOURCE_CHANGED);
    assert_non_null(strstr(err.message, "MiB at offset 1048576"));

    /* the right ones; what was noted is not written again: a change of the file shows that */
    err = (struct error)ERROR_NONE;
    disk.data[MIB + 5] ^= 1;
    int fd = open(setup.paths[0], O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite_all(fd, "X", 1, 100), 0);
    assert_int_equal(close(fd), 0);
    assert_ok(copy_disk(&setup.options, &result, &err));
    assert_true(result.resumed && result.bytes_resumed >= 9 * MIB);
    fd = open(setup.paths[0], O_WRONLY | O_CLOEXEC);
    size_t size = 0;
    autofree uint8_t *raw = read_file(setup.paths[0], &size);
    assert_int_equal(raw[100], 'X');
    assert_int_equal(pwrite_all(fd, disk.data + 100, 1, 100), 0);
    assert_int_equal(close(fd), 0);
    setup_compare(&setup, &disk, &result);
    copy_result_release(&result);
    setup_remove(&setup);
    test_disk_free(&disk);
}

static void test_a_complete_journal_opens_no_stream(void **state)
{
    struct error err = ERROR_NONE;
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 9 * MIB);
    struct provider_session session = session_of(&disk);
    struct copy_result result = {0};
    struct setup setup;

    (void)state;
    setup_make(&setup, &forward_provider, &session, "qcow2");
    assert_ok(copy_disk(&setup.options, &result, &err));
    copy_result_release(&result);
    assert_ok(copy_disk(&setup.options, &result, &err));
    assert_int_equal(session.opens, 1);
    assert_int_equal(result.bytes_resumed, disk.size);
    copy_result_release(&result);
    setup_remove(&setup);
    test_disk_free(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_output_gets_the_disk),
        cmocka_unit_test(test_a_disk_of_zeros_needs_no_bytes),
        cmocka_unit_test(test_a_broken_stream_begins_anew),
        cmocka_unit_test(test_it_is_not_tried_for_ever),
        cmocka_unit_test(test_an_error_that_stays_ends_it_at_once),
        cmocka_unit_test(test_what_is_there_is_compared),
        cmocka_unit_test(test_a_complete_journal_opens_no_stream),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
