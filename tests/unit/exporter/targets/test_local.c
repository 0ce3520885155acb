/* The directory of a local export: claims, locks, names, renames, sweeping. */
#include "tests/unit/exporter/formats/disk_fixture.h"

#include "common/clock.h"
#include "common/paths.h"
#include "services/exporter/targets/local.h"

#define VOLUME "6b0a51e6-3f0e-4d4f-9a52-6d33ab7b86c2"

static bool exists(const char *name)
{
    autofree char *path = test_path(name);

    return access(path, F_OK) == 0;
}

static void touch(const char *name)
{
    autofree char *path = test_path(name);

    write_file(path, name, strlen(name));
}

static void a_volume_is_that_of_the_base_that_holds_the_path(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *base = test_path("base");
    autofree char *inside = test_path("base/vm/x");
    autofree char *beside = test_path("base-2/vm");
    char *items[] = {base};
    struct config_list bases = {items, 1};
    char uuid[UUID_SIZE];

    (void)state;
    assert_ok(path_make_dirs(base, &err));
    assert_int_equal(local_volume(&bases, inside, uuid, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    error_clear(&err);
    touch("base/.hypersdk-volume"); /* no uuid in it */
    assert_int_equal(local_volume(&bases, inside, uuid, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    error_clear(&err);
    autofree char *file = test_path("base/.hypersdk-volume");
    write_file(file, VOLUME "\n", sizeof VOLUME);
    assert_ok(local_volume(&bases, inside, uuid, &err));
    assert_string_equal(uuid, VOLUME);
    assert_int_equal(local_volume(&bases, beside, uuid, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
}

static void a_directory_belongs_to_one_export(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *dir = test_path("claimed");
    bool is_free = false;

    (void)state;
    assert_ok(local_dir_is_free(dir, "exp-1", &is_free, &err));
    assert_true(is_free);
    assert_ok(local_claim(dir, "exp-1", &err));
    assert_ok(local_claim(dir, "exp-1", &err)); /* repeatable */
    assert_true(local_is_claimed_by(dir, "exp-1"));
    assert_false(local_is_claimed_by(dir, "exp-2"));
    assert_ok(local_dir_is_free(dir, "exp-1", &is_free, &err));
    assert_true(is_free);
    assert_ok(local_dir_is_free(dir, "exp-2", &is_free, &err));
    assert_false(is_free);
    assert_int_equal(local_claim(dir, "exp-2", &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    error_clear(&err);
    touch("claimed/note.txt");
    assert_ok(local_dir_is_free(dir, "exp-1", &is_free, &err));
    assert_false(is_free);
    assert_ok(local_unclaim(dir, true, &err));
    assert_true(exists("claimed/note.txt"));
    assert_false(exists("claimed/.hypersdk-export"));
}

static void a_lock_is_held_by_one_until_it_is_closed(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *path = test_path("lock");
    atomic_bool stopped = false;
    int first = -1;
    int second = -1;
    int64_t start_ms = clock_mono_ms();

    (void)state;
    assert_ok(local_lock(path, 0, NULL, &first, &err));
    assert_int_equal(local_lock(path, 150, &stopped, &second, &err), -1);
    assert_int_equal(err.code, ERR_TIMEOUT);
    assert_true(clock_mono_ms() - start_ms >= 150);
    error_clear(&err);
    atomic_store(&stopped, true);
    assert_int_equal(local_lock(path, 60000, &stopped, &second, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
    error_clear(&err);
    assert_int_equal(close(first), 0);
    assert_ok(local_lock(path, 0, NULL, &second, &err));
    assert_int_equal(close(second), 0);
}

static void renaming_never_replaces(void **state)
{
    static int (*const ways[])(const char *, const char *, struct error *) = {local_rename_new,
                                                                              local_rename_by_link};
    struct error err = ERROR_NONE;
    autofree char *from = test_path("from");
    autofree char *to = test_path("to");
    size_t size = 0;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(ways); i++) {
        touch("from");
        touch("to");
        assert_int_equal(ways[i](from, to, &err), -1);
        assert_int_equal(err.code, ERR_CONFLICT);
        error_clear(&err);
        autofree uint8_t *kept = read_file(to, &size);
        assert_memory_equal(kept, "to", 2);
        assert_true(exists("from"));
        assert_int_equal(unlink(to), 0);
        assert_ok(ways[i](from, to, &err));
        autofree uint8_t *moved = read_file(to, &size);
        assert_memory_equal(moved, "from", 4);
        assert_false(exists("from"));
        assert_int_equal(ways[i](from, to, &err), -1);
        assert_int_equal(err.code, ERR_NOT_FOUND);
        error_clear(&err);
    }
}

static void space_is_that_of_the_nearest_existing_parent(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *path = test_path("not/yet/there");

    (void)state;
    assert_ok(local_check_space(path, 1, &err));
    assert_int_equal(local_check_space(path, UINT64_MAX / 2, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    assert_non_null(strstr(err.message, "not/yet/there"));
    assert_non_null(strstr(err.message, "free"));
}

static void sweeping_takes_unfinished_files_of_this_export_only(void **state)
{
    static const char *const goes[] = {"s/web-disk1.vmdk.partial",
                                       "s/web-disk1.qcow2.partial.index",
                                       "s/web.ovf.partial",
                                       "s/.web-disk1.journal",
                                       "s/.web-disk1.done",
                                       "s/export.json.partial",
                                       "s/manifest.yaml.partial",
                                       "s/checksums.txt.partial.tmp-00112233",
                                       "s/artifact-manifest.json.partial"};
    static const char *const stays[] = {"s/web-disk1.vmdk", "s/webshop-disk1.vmdk.partial",
                                        "s/other.partial", "s/.hypersdk-export", "s/export.json"};
    struct error err = ERROR_NONE;
    autofree char *dir = test_path("s");

    (void)state;
    assert_ok(path_make_dirs(dir, &err));
    for (size_t i = 0; i < ARRAY_LEN(goes); i++)
        touch(goes[i]);
    for (size_t i = 0; i < ARRAY_LEN(stays); i++)
        touch(stays[i]);
    assert_true(local_partial_bytes(dir, "web") > 0);
    assert_ok(local_sweep(dir, "web", NULL, &err));
    for (size_t i = 0; i < ARRAY_LEN(goes); i++)
        assert_false(exists(goes[i]));
    for (size_t i = 0; i < ARRAY_LEN(stays); i++)
        assert_true(exists(stays[i]));
    assert_int_equal(local_partial_bytes(dir, "web"), 0);
}

static void sweeping_can_keep_one_generation(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *dir = test_path("g");
    uint64_t keep = 7;

    (void)state;
    assert_ok(path_make_dirs(dir, &err));
    /* The VM's name itself looks like a generation. */
    autofree char *old = local_partial_path(dir, "db.e7-disk1.vmdk", 0);
    autofree char *kept = local_partial_path(dir, "db.e7-disk1.vmdk", 7);
    autofree char *note = local_note_path(dir, "db.e7-disk1", "journal", 7);
    autofree char *old_note = local_note_path(dir, "db.e7-disk1", "journal", 0);
    write_file(old, "x", 1);
    write_file(kept, "x", 1);
    write_file(note, "x", 1);
    write_file(old_note, "x", 1);
    assert_ok(local_sweep(dir, "db.e7", &keep, &err));
    assert_true(exists("g/db.e7-disk1.vmdk.e7.partial"));
    assert_true(exists("g/.db.e7-disk1.e7.journal"));
    assert_false(exists("g/db.e7-disk1.vmdk.partial"));
    assert_false(exists("g/.db.e7-disk1.journal"));
    keep = 0;
    assert_ok(local_sweep(dir, "db.e7", &keep, &err));
    assert_false(exists("g/db.e7-disk1.vmdk.e7.partial"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_volume_is_that_of_the_base_that_holds_the_path),
        cmocka_unit_test(a_directory_belongs_to_one_export),
        cmocka_unit_test(a_lock_is_held_by_one_until_it_is_closed),
        cmocka_unit_test(renaming_never_replaces),
        cmocka_unit_test(space_is_that_of_the_nearest_existing_parent),
        cmocka_unit_test(sweeping_takes_unfinished_files_of_this_export_only),
        cmocka_unit_test(sweeping_can_keep_one_generation),
    };

    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
