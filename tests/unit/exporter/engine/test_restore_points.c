/* Restore points: incremental exports of one VM, one upon the other. */
#include <inttypes.h>
#include <signal.h>

#include "tests/unit/exporter/engine/export_fixture.h"

#include "common/autos.h"
#include "services/exporter/engine/chain_edit.h"

#define POINTS 7
#define DISK   (20 * MIB + 5 * SECTOR)
#define SMALL  (3 * MIB)

static uint64_t seed;
static json_t *catalogue;        /* the youngest row */
static char *point_dirs[POINTS]; /* below the base */
static uint8_t *contents[POINTS][2];

static int make(void **state)
{
    seed = 4711;
    catalogue = NULL;
    memset(point_dirs, 0, sizeof point_dirs);
    memset(contents, 0, sizeof contents);
    if (world_make(state) < 0)
        return -1;
    source_add_disk(PATTERN_SPARSE, DISK);
    source_add_disk(PATTERN_TEXT, SMALL);
    return 0;
}

static int unmake(void **state)
{
    json_decref(catalogue);
    for (size_t i = 0; i < POINTS; i++) {
        free(point_dirs[i]);
        free(contents[i][0]);
        free(contents[i][1]);
    }
    return world_remove(state);
}

/* The guest writes: data and zeros at odd places. */
static void guest_writes(void)
{
    for (size_t d = 0; d < 2; d++)
        test_disk_scribble(&source.disks[d].content, 6, 150000, &seed);
}

static void wants_point(void)
{
    forget_records();
    lease_again();
    strbuf_reset(&world_task.log);
    task_wants("qcow2", false, "web-03");
    json_put(world_task.spec, "incremental", json_true());
    if (catalogue != NULL)
        json_put(world_task.spec, "bases", json_pack("[O]", catalogue));
}

static const json_t *incremental(void)
{
    return json_object_get(world_result, "incremental");
}

static const char *mode(void)
{
    return json_str(incremental(), "mode");
}

/* What the scheduler would hand out next time. */
static void remember(size_t point)
{
    const json_t *export = json_object_get(world_result, "export");

    json_decref(catalogue);
    catalogue = json_deep_copy(export);
    (void)json_object_del(catalogue, "manifest");
    json_put(catalogue, "created_at_ms",
             json_integer((json_int_t)json_u64(incremental(), "full_at_ms")));
    free(point_dirs[point]);
    point_dirs[point] = xstrdup(json_str(world_result, "output_path") + strlen(world_base) + 1);
    for (size_t d = 0; d < 2; d++) {
        const struct test_disk *disk = &source.disks[d].content;
        free(contents[point][d]);
        contents[point][d] = xmemdup(disk->data, disk->size);
    }
}

static void take_point(size_t point)
{
    wants_point();
    assert_exported();
    remember(point);
}

static char *image_of(size_t point, size_t disk)
{
    return xasprintf("%s/%s/web-03-disk%zu.qcow2", world_base, point_dirs[point], disk + 1);
}

static void compare_point(size_t point)
{
    for (size_t d = 0; d < 2; d++) {
        autofree char *path = image_of(point, d);
        const struct test_disk then = {.data = contents[point][d],
                                       .size = source.disks[d].content.size};
        compare_with_qemu(&then, path, "qcow2");
    }
}

static uint64_t file_bytes(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

static void load_chain(size_t point, struct chain **out)
{
    struct error err = ERROR_NONE;
    autofree char *root = below_base("web-03");
    autofree char *dir = below_base(point_dirs[point]);
    autofree char *real = realpath(root, NULL);

    assert_ok(chain_load(real, dir, out, &err));
}

/* ---- */

static void every_point_is_the_source_at_its_time(void **state)
{
    (void)state;
    need_qemu_img();
    for (size_t i = 0; i < POINTS; i++) {
        if (i > 0)
            guest_writes();
        take_point(i);
        assert_string_equal(mode(), i == 0 ? "full" : "leaf");
        assert_int_equal(json_array_size(json_object_get(incremental(), "chain")), i);
    }
    for (size_t i = 0; i < POINTS; i++)
        compare_point(i);
    auto_chain *chain = NULL;
    struct error err = ERROR_NONE;
    load_chain(POINTS - 1, &chain);
    assert_int_equal(chain->count, POINTS);
    assert_ok(chain_check(chain, true, NULL, &err));
}

static void a_point_holds_what_changed_only(void **state)
{
    (void)state;
    take_point(0);
    source.disks[0].content.data[5 * MIB + 100] ^= 1;
    take_point(1);
    autofree char *first = image_of(0, 0);
    autofree char *second = image_of(1, 0);
    const json_t *disk =
        json_array_get(json_object_get(json_object_get(world_result, "export"), "disks"), 0);
    assert_int_equal(file_bytes(second), 6 * 65536); /* head, one cluster, four of tables */
    assert_true(file_bytes(first) > 10 * 65536);
    assert_int_equal(json_u64(incremental(), "changed_bytes"), MIB);
    assert_int_equal(json_u64(incremental(), "total_bytes"), DISK + SMALL);
    assert_string_equal(json_str(disk, "disk_id"), "2000");
    assert_non_null(strstr(world_task.log.data, "incremental export on restore point exp-"));
    /* nothing changed at all */
    take_point(2);
    assert_int_equal(json_u64(incremental(), "changed_bytes"), 0);
    compare_point(2);
}

static void a_killed_increment_goes_on_and_is_right(void **state)
{
    (void)state;
    need_qemu_img();
    take_point(0);
    guest_writes();
    wants_point();
    source.on_read = NULL;
    atomic_store(&source.read_is_busy, false);
    world_task.on_write = NULL;
    /* the source fails for a while: partial files stay, the next lease goes on */
    atomic_store(&source.read_is_busy, true);
    assert_fails_with(ERR_UNAVAILABLE);
    lease_again();
    assert_exported();
    assert_string_equal(mode(), "leaf");
    remember(1);
    compare_point(0);
    compare_point(1);
}

static void a_half_written_journal_of_a_dead_worker_goes(void **state)
{
    struct error err = ERROR_NONE;

    (void)state;
    take_point(0);
    autofree char *root = below_base("web-03");
    autofree char *other = xasprintf("%s/mine.tmp-1a2b3c4d", root);
    const char *vm_id = json_str(json_object_get(world_result, "export"), "vm_id");
    autofree char *real_journal = chain_journal_path(root, vm_id);
    autofree char *temp = xasprintf("%s.tmp-1a2b3c4d", real_journal);
    assert_ok(file_write_atomic(temp, "{", 1, 0640, &err));
    assert_ok(file_write_atomic(other, "{", 1, 0640, &err));
    take_point(1);
    assert_int_equal(access(temp, F_OK), -1);
    assert_int_equal(access(other, F_OK), 0); /* not ours */
    assert_string_equal(mode(), "leaf");
}

static void lose_the_lease_when_shared(struct worker_task *task, const char *line)
{
    if (strstr(line, "unchanged since export") != NULL)
        task_stop(task, WORKER_LOST);
}

static void lose_the_lease_in_the_second_disk(uint64_t offset)
{
    (void)offset;
    if (strstr(world_task.log.data, "disk1: complete since an earlier attempt") != NULL)
        task_stop(&world_task, WORKER_LOST);
}

/* Exports of whole disks: the base's file and the new one are the same while nothing changed. */
static void an_unchanged_disk_is_never_written_again_and_never_into(void **state)
{
    struct stat base[2];
    struct stat now[2];

    (void)state;
    need_qemu_img();
    for (size_t point = 0; point < 3; point++) {
        if (point > 0)
            source.disks[1].content.data[MIB + 7] ^= 1;
        wants_point();
        json_set_text(world_task.spec, "format", "raw");
        if (point == 2) { /* attempts that die before and after the first disk's note */
            world_task.on_log = lose_the_lease_when_shared;
            assert_fails_with(ERR_CANCELLED);
            lease_again();
            world_task.on_log = NULL;
            source.on_read = lose_the_lease_in_the_second_disk;
            assert_fails_with(ERR_CANCELLED);
            source.on_read = NULL;
            lease_again();
        }
        assert_exported();
        remember(point);
        assert_string_equal(mode(), point == 0 ? "full" : "disk");
        for (size_t d = 0; d < 2; d++) {
            autofree char *path =
                xasprintf("%s/%s/web-03-disk%zu.raw", world_base, point_dirs[point], d + 1);
            assert_int_equal(stat(path, &now[d]), 0);
            compare_with_qemu(&source.disks[d].content, path, "raw");
            if (point > 0)
                assert_int_equal(base[d].st_ino == now[d].st_ino, d == 0);
            base[d] = now[d];
        }
    }
    /* what was the first disk of the first export still is */
    autofree char *first = xasprintf("%s/%s/web-03-disk1.raw", world_base, point_dirs[0]);
    const struct test_disk then = {.data = contents[0][0], .size = source.disks[0].content.size};
    compare_with_qemu(&then, first, "raw");
}

static void lose_the_lease(struct worker_task *task, const char *phase)
{
    if (strcmp(phase, "cleanup") == 0)
        task_stop(task, WORKER_LOST);
}

static void a_planned_point_is_finished_by_the_next_lease(void **state)
{
    (void)state;
    need_qemu_img();
    take_point(0);
    guest_writes();
    wants_point();
    world_task.on_phase = lose_the_lease; /* everything is verified and planned */
    assert_int_equal(run_lease(), -1);
    lease_again();
    assert_exported();
    assert_non_null(strstr(world_task.log.data, "an earlier attempt read and verified"));
    remember(1);
    compare_point(1);
}

static void assert_full(const char *reason)
{
    assert_exported();
    assert_string_equal(mode(), "full");
    if (strstr(json_str(incremental(), "reason"), reason) == NULL)
        fail_msg("'%s' does not say '%s'", json_str(incremental(), "reason"), reason);
    assert_non_null(strstr(world_task.log.data, "full export: "));
    remember(1);
    compare_point(1);
}

static void the_first_point_is_full(void **state)
{
    (void)state;
    wants_point();
    assert_full("there is no export of the VM");
}

static void a_full_point_can_be_forced(void **state)
{
    (void)state;
    take_point(0);
    wants_point();
    json_put(world_task.spec, "force_full", json_true());
    assert_full("force_full was asked for");
}

static void an_old_full_point_is_made_anew(void **state)
{
    (void)state;
    take_point(0);
    wants_point();
    json_put(world_task.spec, "incremental_max_age_ms", json_integer(0));
    assert_full("h old, over 0 h");
}

static void disks_that_come_go_or_grow_make_a_full_point(void **state)
{
    (void)state;
    take_point(0);
    source.disk_count = 1;
    wants_point();
    assert_exported();
    assert_string_equal(json_str(incremental(), "reason"), "a disk was removed");
    json_decref(catalogue);
    catalogue = json_deep_copy(json_object_get(world_result, "export"));
    source.disk_count = 2;
    wants_point();
    assert_exported();
    assert_string_equal(json_str(incremental(), "reason"), "Hard disk 2 was added");
    json_decref(catalogue);
    catalogue = json_deep_copy(json_object_get(world_result, "export"));
    test_disk_free(&source.disks[1].content);
    source.disks[1].content = test_disk_make(PATTERN_TEXT, 4 * MIB);
    wants_point();
    assert_exported();
    assert_string_equal(json_str(incremental(), "reason"),
                        "Hard disk 2 has another size than before");
}

static void flip(const char *path, off_t at)
{
    uint8_t byte = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pread_all(fd, &byte, 1, (uint64_t)at), 0);
    byte ^= 1;
    assert_int_equal(pwrite_all(fd, &byte, 1, (uint64_t)at), 0);
    assert_int_equal(close(fd), 0);
}

static void a_damaged_base_makes_a_full_point(void **state)
{
    (void)state;
    take_point(0);
    autofree char *image = image_of(0, 0);
    flip(image, 3 * 65536 + 17);
    wants_point();
    assert_full("does not have its SHA-256 any more");
}

static void a_missing_base_makes_a_full_point(void **state)
{
    (void)state;
    take_point(0);
    take_point(1);
    autofree char *dir = below_base(point_dirs[0]);
    autofree char *away = below_base("away");
    assert_int_equal(rename(dir, away), 0);
    wants_point();
    assert_full("cannot be used");
}

static void a_base_unlike_the_catalogue_makes_a_full_point(void **state)
{
    (void)state;
    take_point(0);
    json_set_text(json_array_get(json_object_get(catalogue, "disks"), 0), "root",
                  "sha256-tree-1m:00");
    wants_point();
    assert_full("is not as the catalogue knows it");
}

static void points_of_another_vm_are_no_base(void **state)
{
    (void)state;
    take_point(0);
    json_set_text(catalogue, "vm_id", "vm-58");
    wants_point();
    assert_full("there is no export of the VM");
}

static void a_point_the_catalogue_does_not_know_yet_is_the_base(void **state)
{
    auto_json *first = NULL;

    (void)state;
    need_qemu_img();
    take_point(0);
    first = json_incref(catalogue);
    guest_writes();
    take_point(1);
    guest_writes();
    json_decref(catalogue);
    catalogue = json_incref(first);
    take_point(2);
    assert_int_equal(json_array_size(json_object_get(incremental(), "chain")), 2);
    compare_point(1);
    compare_point(2);
}

static void an_ordinary_export_is_a_base_too(void **state)
{
    (void)state;
    need_qemu_img();
    task_wants("qcow2", false, "web-03");
    assert_exported();
    remember(0);
    json_put(catalogue, "created_at_ms", json_integer(INT64_C(4102444800000)));
    guest_writes();
    take_point(1);
    assert_string_equal(mode(), "leaf");
    assert_string_equal(json_str(incremental(), "base_dir"), "..");
    compare_point(0);
    compare_point(1);
}

static void points_may_be_compressed(void **state)
{
    (void)state;
    need_qemu_img();
    for (size_t i = 0; i < 3; i++) {
        guest_writes();
        wants_point();
        json_set_text(world_task.spec, "compress", i == 1 ? "zlib" : "zstd");
        assert_exported();
        remember(i);
    }
    for (size_t i = 0; i < 3; i++)
        compare_point(i);
}

static void a_vm_whose_points_are_in_use_is_tried_again_later(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *root = below_base("web-03");
    autoclose int lock = -1;

    (void)state;
    take_point(0);
    assert_ok(chain_lock(root, "vm-57", false, &lock, &err));
    wants_point();
    assert_fails_with(ERR_UNAVAILABLE);
    assert_non_null(strstr(world_err.message, "in use by another job"));
    (void)close(fd_steal(&lock));
    lease_again();
    assert_exported();
    assert_string_equal(mode(), "leaf");
}

static void an_ova_has_nothing_that_could_stay(void **state)
{
    (void)state;
    task_wants("ova", false, "web-03");
    json_put(world_task.spec, "incremental", json_true());
    assert_fails_with(ERR_NOT_AVAILABLE);
    assert_non_null(strstr(world_err.message, "an OVA is one file"));
}

static void records_do_not_lead_out_of_their_root(void **state)
{
    static const char *const dirs[] = {"/etc", "../..", "../a/b", "", "../", "../..x/../y"};

    (void)state;
    take_point(0);
    take_point(1);
    autofree char *root_path = below_base("web-03");
    autofree char *root = realpath(root_path, NULL);
    autofree char *dir = below_base(point_dirs[1]);
    autofree char *path = xasprintf("%s/export.json", dir);
    size_t size = 0;
    autofree uint8_t *text = read_file(path, &size);
    for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
        auto_json *record = json_loadb((char *)text, size, 0, NULL);
        struct error err = ERROR_NONE;
        struct chain *chain = NULL;
        json_set_text(json_object_get(record, "incremental"), "base_dir", dirs[i]);
        autofree char *changed = json_text(record);
        write_file(path, changed, strlen(changed));
        assert_int_equal(chain_load(root, dir, &chain, &err), -1);
        assert_true(err.code == ERR_CORRUPT);
    }
    /* and a circle */
    auto_json *record = json_loadb((char *)text, size, 0, NULL);
    struct error err = ERROR_NONE;
    struct chain *chain = NULL;
    autofree char *self = xasprintf("../%s", strrchr(dir, '/') + 1);
    json_set_text(json_object_get(record, "incremental"), "base_dir", self);
    json_set_text(json_object_get(record, "incremental"), "base_id", json_str(record, "export_id"));
    autofree char *changed = json_text(record);
    write_file(path, changed, strlen(changed));
    assert_int_equal(chain_load(root, dir, &chain, &err), -1);
    assert_non_null(strstr(err.message, "circle"));
}

/* ---- pruning and flattening ---- */

/* The same by our own reader, which is quicker. */
static void read_point(size_t point)
{
    autofree char *root_path = below_base("web-03");
    autofree char *root = realpath(root_path, NULL);

    for (size_t d = 0; d < 2; d++) {
        struct error err = ERROR_NONE;
        autofree char *path = image_of(point, d);
        size_t size = source.disks[d].content.size;
        autofree uint8_t *data = xmalloc(size);
        auto_image *image = NULL;
        assert_ok(image_open_chain(path, "qcow2", root, &image, &err));
        assert_ok(image_read(image, data, size, 0, &err));
        assert_true(memcmp(data, contents[point][d], size) == 0);
    }
}

static int kill_at; /* that call of go_on is the process's last; 0: none */

static int go_on(void *arg, struct error *err)
{
    (void)arg;
    (void)err;
    if (kill_at > 0 && --kill_at == 0)
        (void)raise(SIGKILL);
    return 0;
}

static struct chain_edit edit_of(char *root)
{
    return (struct chain_edit){.root = root, .vm_id = "vm-57", .go_on = go_on};
}

static char *real_root(void)
{
    autofree char *path = below_base("web-03");
    char *root = realpath(path, NULL);

    assert_non_null(root);
    return root;
}

static void take_points(size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            guest_writes();
        wants_point();
        if (i == 0) /* one whose clusters are compressed */
            json_set_text(world_task.spec, "compress", "zstd");
        assert_exported();
        remember(i);
    }
}

static void check_chain_of(size_t point, size_t count)
{
    struct error err = ERROR_NONE;
    auto_chain *chain = NULL;

    load_chain(point, &chain);
    assert_int_equal(chain->count, count);
    assert_ok(chain_check(chain, true, NULL, &err));
}

static int shell_in(const char *dir, const char *script)
{
    autofree char *path = below_base(dir);
    const char *argv[] = {"/bin/sh", "-ec", script, "sh", path, NULL};

    return run_program(argv);
}

static void pruning_keeps_the_younger_points(void **state)
{
    autofree char *root = NULL;
    struct chain_edit edit;

    (void)state;
    need_qemu_img();
    take_points(6);
    root = real_root();
    edit = edit_of(root);
    for (size_t left = 5; left >= 2; left--) {
        struct error err = ERROR_NONE;
        auto_chain *chain = NULL;
        load_chain(5, &chain);
        assert_ok(chain_prune_oldest(&edit, chain, &err));
        assert_false(exists_below(point_dirs[5 - left]));
        check_chain_of(5, left);
        for (size_t i = 6 - left; i < 6; i++)
            compare_point(i);
        assert_int_equal(shell_in(point_dirs[6 - left],
                                  "cd \"$1\" && sha256sum --strict -c checksums.txt && "
                                  "! ls | grep -e index -e partial"),
                         0);
    }
    /* and the chain grows on */
    guest_writes();
    take_point(6);
    assert_string_equal(mode(), "leaf");
    compare_point(6);
    compare_point(5);
}

static void pruning_again_and_again_uses_room_again(void **state)
{
    autofree char *root = NULL;
    struct chain_edit edit;
    uint64_t bytes = 0;

    (void)state;
    take_points(1);
    root = real_root();
    edit = edit_of(root);
    for (int round = 0; round < 5; round++) {
        struct error err = ERROR_NONE;
        auto_chain *chain = NULL;
        fill_random(source.disks[0].content.data + 8 * MIB, 4 * MIB, &seed);
        take_point(1);
        load_chain(1, &chain);
        assert_ok(chain_prune_oldest(&edit, chain, &err));
        autofree char *image = image_of(1, 0);
        if (round == 1)
            bytes = file_bytes(image);
        /* 64 clusters of data each time, but only the tables (four) go behind the end */
        if (round > 1)
            assert_true(file_bytes(image) <= bytes + (uint64_t)(round - 1) * 5 * 65536);
        read_point(1);
    }
}

/* A chain of three, copied for each round; a prune that is killed at its n-th step. */
static void a_killed_prune_leaves_a_chain_that_goes_on(void **state)
{
    autofree char *root = NULL;
    bool killed = true;
    int rounds = 0;

    (void)state;
    take_points(3);
    root = real_root();
    assert_int_equal(shell_in("", "cp -a \"$1\"/web-03 \"$1\"/saved"), 0);
    for (int step = 1; killed; step += 2) {
        struct chain_edit edit = edit_of(root);
        struct error err = ERROR_NONE;
        int status = 0;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            struct chain *chain = NULL;
            autofree char *dir = below_base(point_dirs[2]);
            autofree char *real = realpath(dir, NULL);
            kill_at = step;
            _exit(chain_load(root, real, &chain, &err) < 0 ||
                  chain_prune_oldest(&edit, chain, &err) < 0);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        killed = WIFSIGNALED(status);
        assert_true(killed || WEXITSTATUS(status) == 0);
        read_point(1); /* as they were, whatever the moment */
        read_point(2);
        assert_ok(chain_recover(&edit, &err));
        read_point(1);
        read_point(2);
        check_chain_of(2, exists_below(point_dirs[0]) ? 3 : 2);
        assert_true(step < 3 || !exists_below(point_dirs[0]));
        rounds++;
        assert_int_equal(shell_in("", "rm -rf \"$1\"/web-03 && cp -a \"$1\"/saved \"$1\"/web-03"),
                         0);
    }
    print_message("%d moments\n", rounds);
    assert_true(rounds > 8);
}

static void write_below(size_t point, const char *name)
{
    autofree char *below = xasprintf("%s/%s", point_dirs[point], name);
    autofree char *path = below_base(below);

    write_file(path, "half", 4);
}

static void half_written_files_of_a_killed_process_go_with_the_next_step(void **state)
{
    struct error err = ERROR_NONE;
    auto_chain *chain = NULL;
    autofree char *root = NULL;
    autofree char *names = NULL;
    struct chain_edit edit;

    (void)state;
    take_points(3);
    root = real_root();
    edit = edit_of(root);
    write_below(0, "export.json.tmp-0123abcd");
    write_below(1, "manifest.yaml.tmp-0123abcd");
    write_below(1, "notes.tmp-0123abcd"); /* somebody's own */
    load_chain(2, &chain);
    assert_ok(chain_prune_oldest(&edit, chain, &err));
    assert_false(exists_below(point_dirs[0]));
    names = list_dir(point_dirs[1]);
    assert_null(strstr(names, "manifest.yaml.tmp-"));
    assert_non_null(strstr(names, "notes.tmp-0123abcd"));
    read_point(1);
}

static void an_export_finishes_a_prune_that_was_cut_short(void **state)
{
    autofree char *root = NULL;
    int status = 0;

    (void)state;
    need_qemu_img();
    take_points(3);
    root = real_root();
    pid_t pid = fork();
    if (pid == 0) {
        struct chain_edit edit = edit_of(root);
        struct error err = ERROR_NONE;
        struct chain *chain = NULL;
        load_chain(2, &chain);
        kill_at = 9;
        _exit(chain_prune_oldest(&edit, chain, &err) < 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_true(exists_below(point_dirs[0]));
    guest_writes();
    take_point(3);
    assert_false(exists_below(point_dirs[0]));
    assert_int_equal(json_array_size(json_object_get(incremental(), "chain")), 2);
    for (size_t i = 1; i < 4; i++)
        compare_point(i);
}

static void a_flattened_point_stands_alone(void **state)
{
    struct error err = ERROR_NONE;
    auto_chain *chain = NULL;
    autofree char *root = NULL;
    struct chain_edit edit;

    (void)state;
    need_qemu_img();
    take_points(4);
    root = real_root();
    edit = edit_of(root);
    load_chain(2, &chain);
    assert_ok(chain_flatten(&edit, chain, &err));
    check_chain_of(2, 1);
    check_chain_of(3, 2);
    check_chain_of(1, 2);
    for (size_t i = 0; i < 4; i++)
        compare_point(i);
    autofree char *first = below_base(point_dirs[0]);
    autofree char *away = below_base("away");
    assert_int_equal(rename(first, away), 0);
    compare_point(2);
    compare_point(3);
}

static void a_chain_that_is_read_is_not_pruned(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *root = NULL;
    autofree char *found = NULL;
    auto_chain *chain = NULL;
    autoclose int reader = -1;
    autoclose int writer = -1;

    (void)state;
    take_points(2);
    root = real_root();
    load_chain(1, &chain);
    assert_ok(
        chain_reader_lock(chain->points[0].dir, chain->points[0].record, &found, &reader, &err));
    assert_string_equal(found, root);
    assert_int_equal(chain_lock(root, "vm-57", true, &writer, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_non_null(strstr(err.message, "in use by another job"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make, unmake)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_point_is_the_source_at_its_time),
        TEST(a_point_holds_what_changed_only),
        TEST(a_killed_increment_goes_on_and_is_right),
        TEST(a_half_written_journal_of_a_dead_worker_goes),
        TEST(an_unchanged_disk_is_never_written_again_and_never_into),
        TEST(a_planned_point_is_finished_by_the_next_lease),
        TEST(the_first_point_is_full),
        TEST(a_full_point_can_be_forced),
        TEST(an_old_full_point_is_made_anew),
        TEST(disks_that_come_go_or_grow_make_a_full_point),
        TEST(a_damaged_base_makes_a_full_point),
        TEST(a_missing_base_makes_a_full_point),
        TEST(a_base_unlike_the_catalogue_makes_a_full_point),
        TEST(points_of_another_vm_are_no_base),
        TEST(a_point_the_catalogue_does_not_know_yet_is_the_base),
        TEST(an_ordinary_export_is_a_base_too),
        TEST(points_may_be_compressed),
        TEST(a_vm_whose_points_are_in_use_is_tried_again_later),
        TEST(an_ova_has_nothing_that_could_stay),
        TEST(records_do_not_lead_out_of_their_root),
        TEST(pruning_keeps_the_younger_points),
        TEST(pruning_again_and_again_uses_room_again),
        TEST(a_killed_prune_leaves_a_chain_that_goes_on),
        TEST(half_written_files_of_a_killed_process_go_with_the_next_step),
        TEST(an_export_finishes_a_prune_that_was_cut_short),
        TEST(a_flattened_point_stands_alone),
        TEST(a_chain_that_is_read_is_not_pruned),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
