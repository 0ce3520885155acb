/* The copy engine from end to end: content against qemu-img, several outputs in one pass,
 * verification. Faults are in test_copy_faults.c, bounds in test_copy_flow.c. */
#include "common/log.h"
#include "services/exporter/engine/copy.h"
#include "tests/unit/exporter/engine/copy_one.h"

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
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(verify_names_the_first_mib_that_differs),
    };
    log_init("test", LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
