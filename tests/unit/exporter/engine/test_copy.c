/* The copy engine from end to end: content against qemu-img, several outputs in one pass, faults of
 * the source and of the disk, resume. Crashes are in test_copy_crash.c. */
#include <inttypes.h>
#include <signal.h>
#include <sys/resource.h>

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

static const struct provider *const providers[] = {&file_provider, &stream_provider};

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_output_of_one_pass_holds_the_disk_as_qemu_reads_it),
    };
    (void)signal(SIGXFSZ, SIG_IGN);
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
