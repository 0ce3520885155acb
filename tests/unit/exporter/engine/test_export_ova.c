/* The export task with format ova: one package, read by strangers' programs, and interrupted. */
#include "tests/unit/exporter/engine/export_fixture.h"

#include "services/exporter/formats/ova.h"

#define SMALL (3 * MIB + 4096)
#define LARGE (24 * MIB)

static void two_disks(void)
{
    source_add_disk(PATTERN_RANDOM, LARGE);
    source_add_disk(PATTERN_TEXT, SMALL);
}

/* GNU tar lists and unpacks it, OpenSSL confirms the digest list, qemu-img reads the disks. */
static void assert_strangers_read_it(void)
{
    assert_int_equal(
        shell("web-03",
              "cd \"$1\" && sha256sum --strict -c checksums.txt && "
              "test \"$(tar tf web-03.ova | tr '\\n' ' ')\" = "
              "\"web-03.ovf web-03.mf web-03-disk1.vmdk web-03-disk2.vmdk \" && "
              "mkdir ../unpacked && tar xf web-03.ova -C ../unpacked && cd ../unpacked && "
              "openssl dgst -sha256 web-03.ovf web-03-disk1.vmdk web-03-disk2.vmdk | "
              "sed 's/^SHA2-256/SHA256/' | cmp - web-03.mf"),
        0);
    compare_below("unpacked/web-03-disk1.vmdk", "vmdk", &source.disks[0].content);
    compare_below("unpacked/web-03-disk2.vmdk", "vmdk", &source.disks[1].content);
}

static void a_package_holds_all_that_an_ovf_export_has(void **state)
{
    (void)state;
    need_qemu_img();
    two_disks();
    task_wants("ova", false, "web-03");
    assert_exported();
    autofree char *names = list_dir("web-03");
    assert_string_equal(names, "artifact-manifest.json checksums.txt export.json manifest.yaml "
                               "web-03-disk1.leaves web-03-disk2.leaves web-03.ova");
    assert_strangers_read_it();
    assert_int_equal(atomic_load(&source.bytes_read), LARGE + SMALL);
    assert_int_equal(json_array_size(json_object_get(world_result, "exported_files")), 1);
    const json_t *manifest = json_object_get(json_object_get(world_result, "export"), "manifest");
    const json_t *disk = json_array_get(json_object_get(manifest, "disks"), 1);
    assert_string_equal(json_str(disk, "source_format"), "ova");
    assert_string_equal(json_str(disk, "relative_path"), "web-03.ova");
    assert_string_equal(json_str(disk, "member"), "web-03-disk2.vmdk");
    assert_non_null(strstr(world_task.log.data, "verified: web-03-disk2.vmdk"));
}

static void another_reader_of_descriptors_takes_it(void **state)
{
    (void)state;
    if (access("build/peers/ovf-reader", X_OK) != 0) {
        print_message("SKIP: build/peers/ovf-reader is not built (make test-peers)\n");
        skip();
    }
    two_disks();
    task_wants("ova", false, "web-03");
    assert_exported();
    assert_int_equal(shell("web-03",
                           "mkdir \"$1\"/../u && tar xf \"$1\"/web-03.ova -C \"$1\"/../u && "
                           "build/peers/ovf-reader \"$1\"/../u/web-03.ovf"),
                     0);
}

static void a_conversion_stands_beside_the_package(void **state)
{
    (void)state;
    need_qemu_img();
    two_disks();
    task_wants("ova", true, "web-03");
    assert_exported();
    compare_below("web-03/web-03-disk1.qcow2", "qcow2", &source.disks[0].content);
    compare_below("web-03/web-03-disk2.qcow2", "qcow2", &source.disks[1].content);
    assert_strangers_read_it();
    assert_int_equal(atomic_load(&source.bytes_read), LARGE + SMALL);
}

static void long_names_are_cut_inside_of_the_package(void **state)
{
    static char name[201]; /* of 2-byte characters */

    (void)state;
    for (size_t i = 0; i + 1 < sizeof name; i += 2)
        memcpy(name + i, "\xc3\xa4", 2);
    source.vm_name = name;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ova", false, "web-03");
    json_object_set_new(world_task.spec, "vm", json_string("vm-57"));
    assert_exported();
    assert_int_equal(shell("web-03", "cd \"$1\" && tar tf *.ova | head -n 1 | grep -q '\\.ovf$' && "
                                     "mkdir u && tar xf *.ova -C u && test $(ls u | wc -l) -eq 3"),
                     0);
}

/* ---- interrupted ---- */

static bool second_disk;

static void lose_lease_in_the_first_disk(uint64_t offset)
{
    if (offset >= LARGE / 2)
        task_stop(&world_task, WORKER_LOST);
}

static void lose_lease_in_the_second_disk(uint64_t offset)
{
    if (second_disk && offset >= MIB)
        task_stop(&world_task, WORKER_LOST);
}

static void note_second_disk(struct worker_task *task, const char *line)
{
    (void)task;
    second_disk = second_disk || strstr(line, "web-03-disk1.vmdk:") != NULL;
}

static void a_kill_in_any_disk_loses_no_byte(void **state)
{
    (void)state;
    need_qemu_img();
    two_disks();
    task_wants("ova", true, "web-03");
    source.on_read = lose_lease_in_the_first_disk;
    assert_fails_with(ERR_CANCELLED);
    assert_nothing_looks_finished("web-03");
    lease_again();
    second_disk = false;
    world_task.on_log = note_second_disk;
    source.on_read = lose_lease_in_the_second_disk;
    assert_fails_with(ERR_CANCELLED);
    assert_true(atomic_load(&source.bytes_read) < LARGE + SMALL); /* the first went on */
    assert_nothing_looks_finished("web-03");
    lease_again();
    assert_exported();
    assert_true(atomic_load(&source.bytes_read) <= SMALL);
    assert_strangers_read_it();
}

static unsigned int writes_left;

static void die_after_some_writes(struct worker_task *task)
{
    if (strstr(task->phases.data, "packaging") == NULL)
        return;
    if (writes_left == 0)
        task_stop(task, WORKER_LOST);
    else
        writes_left--;
}

static void packing_and_finishing_can_be_repeated_after_every_step(void **state)
{
    bool finished = false;

    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    for (unsigned int step = 0; !finished; step++) {
        autofree char *dir = xasprintf("web-%u", step);
        assert_true(step < 60);
        forget_records();
        task_wants("ova", false, dir);
        writes_left = step;
        lease_again();
        world_task.on_write = die_after_some_writes;
        finished = run_lease() == 0;
        assert_true(finished || step < 40);
        if (!finished) {
            lease_again();
            assert_exported();
            assert_int_equal(atomic_load(&source.bytes_read), 0);
        }
        assert_int_equal(shell(dir, "cd \"$1\" && sha256sum --strict -c checksums.txt && "
                                    "test $(tar tf web-03.ova | wc -l) -eq 3"),
                         0);
    }
}

static void a_first_disk_that_is_lost_is_made_anew_with_all_behind_it(void **state)
{
    (void)state;
    need_qemu_img();
    two_disks();
    task_wants("ova", false, "web-03");
    second_disk = false;
    world_task.on_log = note_second_disk;
    source.on_read = lose_lease_in_the_second_disk;
    assert_fails_with(ERR_CANCELLED);
    assert_int_equal(shell("web-03", "rm \"$1\"/web-03-disk1.leaves.partial && "
                                     "rm \"$1\"/.web-03-disk1.journal"),
                     0);
    lease_again();
    assert_exported();
    assert_strangers_read_it();
}

/* ---- verification ---- */

static void flip_in_second_disk(struct worker_task *task, const char *phase)
{
    task->on_phase = NULL;
    if (strcmp(phase, "verifying") != 0) {
        task->on_phase = flip_in_second_disk;
        return;
    }
    autofree char *path = below_base("web-03/web-03.ova.partial");
    auto_ova *ova = NULL;
    struct error err = ERROR_NONE;
    uint8_t byte = 0;
    assert_ok(ova_read(path, &ova, &err));
    autoclose int fd = open(path, O_RDWR | O_CLOEXEC);
    off_t at = (off_t)(ova->members[3].offset + 128 * 512 + 40);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
}

static void verify_finds_a_flipped_byte(void **state)
{
    (void)state;
    two_disks();
    task_wants("ova", false, "web-03");
    world_task.on_phase = flip_in_second_disk;
    assert_fails_with(ERR_CORRUPT);
    assert_non_null(strstr(world_err.message, "web-03-disk2.vmdk"));
    assert_false(exists_below("web-03"));
}

static void flip_in_descriptor(struct worker_task *task, const char *phase)
{
    task->on_phase = NULL;
    if (strcmp(phase, "verifying") != 0) {
        task->on_phase = flip_in_descriptor;
        return;
    }
    autofree char *path = below_base("web-03/web-03.ova.partial");
    autoclose int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "9", 1, 512 + 20), 1); /* the XML's version */
}

static void verify_finds_a_descriptor_that_is_not_ours(void **state)
{
    (void)state;
    two_disks();
    task_wants("ova", false, "web-03");
    world_task.on_phase = flip_in_descriptor;
    assert_fails_with(ERR_CORRUPT);
    assert_false(exists_below("web-03"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_make, world_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_package_holds_all_that_an_ovf_export_has),
        TEST(another_reader_of_descriptors_takes_it),
        TEST(a_conversion_stands_beside_the_package),
        TEST(long_names_are_cut_inside_of_the_package),
        TEST(a_kill_in_any_disk_loses_no_byte),
        TEST(packing_and_finishing_can_be_repeated_after_every_step),
        TEST(a_first_disk_that_is_lost_is_made_anew_with_all_behind_it),
        TEST(verify_finds_a_flipped_byte),
        TEST(verify_finds_a_descriptor_that_is_not_ours),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
