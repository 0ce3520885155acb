/* Which exports go, and how: rules, chains, removals that are cut short. */
#include "tests/unit/common/unit.h"

#include <sys/stat.h>
#include <sys/wait.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/chain.h"
#include "services/exporter/engine/cleanup.h"
#include "services/exporter/engine/export_record.h"

#define DAY_MS INT64_C(86400000)
#define NOW_MS (1000 * DAY_MS)

static struct cleanup_list list;
static struct cleanup_policy policy;

/* id of a VM, so many days old; base "" for a full one. */
static struct cleanup_item *add(const char *vm, const char *id, int days, const char *base)
{
    list.items = xreallocarray(list.items, list.count + 1, sizeof *list.items);
    list.items[list.count] = (struct cleanup_item){.dir = xasprintf("/exports/%s/%s", vm, id),
                                                   .export_id = xstrdup(id),
                                                   .vm_name = xstrdup(vm),
                                                   .vm = xstrdup(vm),
                                                   .base_id = xstrdup(base),
                                                   .completed_ms = NOW_MS - days * DAY_MS,
                                                   .bytes = 100};
    return &list.items[list.count++];
}

/* "a b": the ids that go, newest first. */
static char *decided(uint64_t free_bytes)
{
    auto_strbuf out;
    char *text = NULL;
    struct error err = ERROR_NONE;

    strbuf_init(&out, 1000);
    cleanup_decide(&list, &policy, NOW_MS, free_bytes);
    for (size_t i = 0; i < list.count; i++) {
        if (list.items[i].deleted)
            strbuf_addf(&out, "%s%s", out.length == 0 ? "" : " ", list.items[i].export_id);
    }
    assert_ok(strbuf_finish(&out, &text, &err), err);
    return text;
}

static void assert_goes(const char *wanted, uint64_t free_bytes)
{
    autofree char *text = decided(free_bytes);

    assert_string_equal(text, wanted);
}

static int start(void **state)
{
    (void)state;
    policy = (struct cleanup_policy){.per_vm = true};
    return 0;
}

static int end(void **state)
{
    (void)state;
    cleanup_list_release(&list);
    return 0;
}

static void age_and_the_newest_full_one(void **state)
{
    (void)state;
    (void)add("web", "a", 40, "");
    (void)add("web", "b", 35, "");
    (void)add("db", "c", 90, "");
    policy.max_age_ms = 30 * DAY_MS;
    assert_goes("a", 0); /* b and c are the newest of their VMs */
    policy.max_age_ms = 50 * DAY_MS;
    assert_goes("", 0);
}

static void a_base_stays_while_an_export_that_stays_uses_it(void **state)
{
    (void)state;
    (void)add("web", "f0", 90, "");
    (void)add("web", "i1", 80, "f0");
    (void)add("web", "f2", 60, "");
    (void)add("web", "i3", 50, "f2");
    (void)add("web", "i4", 10, "i3");
    policy.max_age_ms = 30 * DAY_MS;
    assert_goes("i1 f0", 0); /* the old chain goes from its newest end */
    policy.max_age_ms = 85 * DAY_MS;
    assert_goes("", 0); /* f0 is old enough, but i1 stays */
}

static void count_is_per_vm_or_for_all(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        autofree char *web = xasprintf("w%d", i);
        autofree char *db = xasprintf("d%d", i);
        (void)add("web", web, 10 + i, "");
        (void)add("db", db, 20 + i, "");
    }
    policy.max_count = 2;
    assert_goes("w2 w3 d2 d3", 0);
    policy.per_vm = false;
    assert_goes("w2 w3 d1 d2 d3", 0); /* d0 is the newest of its VM */
}

static void size_and_free_space_take_the_oldest_first(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        autofree char *id = xasprintf("w%d", i);
        (void)add("web", id, 10 + i, "");
    }
    policy.max_size = 250;
    assert_goes("w2 w3 w4", 0);
    policy.max_size = 0;
    policy.min_free = 1000;
    assert_goes("", 1000);
    assert_goes("w3 w4", 801);
    policy.max_count = 1;
    assert_goes("", 1000); /* enough is free: nothing happens */
    assert_goes("w1 w2 w3 w4", 801);
}

static void what_is_preserved_used_or_written_stays(void **state)
{
    auto_json *globs = json_pack("[s, s]", "db*", "keep-?");

    (void)state;
    (void)add("web", "new", 1, "");
    (void)add("web", "keep-1", 50, "");
    add("web", "busy", 50, "")->guarded = "in use by a job";
    add("web", "elsewhere", 50, "")->outside = true;
    (void)add("web", "old", 50, "");
    (void)add("db-1", "x", 50, "");
    (void)add("db-1", "y", 60, "");
    policy.preserve = globs;
    policy.max_age_ms = 30 * DAY_MS;
    assert_goes("old", 0);
    for (size_t i = 0; i < list.count; i++) {
        if (strcmp(list.items[i].export_id, "y") == 0)
            assert_string_equal(list.items[i].reason, "preserved");
    }
}

/* ---- on disk ---- */

static char *base;
static const char zeros[] = "0000000000000000000000000000000000000000000000000000000000000000";

static void write_text(const char *dir, const char *name, const char *text)
{
    autofree char *path = xasprintf("%s/%s", dir, name);
    struct error err = ERROR_NONE;

    assert_ok(file_write_atomic(path, text, strlen(text), 0640, &err), err);
}

static char *make_export(const char *name, const char *id)
{
    char *dir = xasprintf("%s/%s", base, name);
    autofree char *text = xasprintf(
        "{\"record_version\": 1, \"export_id\": \"%s\", \"completed_at\": "
        "\"2026-03-01T02:00:00.5Z\","
        " \"source\": {\"vm_id\": \"vm-1\", \"vm_name\": \"web\"}, \"disks\": [{\"disk_id\": "
        "\"d\"}],"
        " \"files\": [{\"name\": \"a.raw\", \"type\": \"disk\", \"size\": 3, \"sha256\": \"%s\"},"
        " {\"name\": \"b.leaves\", \"type\": \"leaves\", \"size\": 3, \"sha256\": \"%s\"}]}",
        id, zeros, zeros);
    struct error err = ERROR_NONE;

    assert_ok(path_make_dirs(dir, &err), err);
    write_text(dir, "a.raw", "aaa");
    write_text(dir, "b.leaves", "bbb");
    write_text(dir, "export.json", text);
    return dir;
}

static bool exists(const char *dir, const char *name)
{
    autofree char *path = xasprintf("%s/%s", dir, name);

    return access(path, F_OK) == 0;
}

static void rescan(const char *dir)
{
    static const atomic_bool never = false;
    struct error err = ERROR_NONE;

    cleanup_list_release(&list);
    assert_ok(cleanup_scan(base, dir, NULL, &never, &list, &err), err);
}

static int make_base(void **state)
{
    char dir[] = "/tmp/hsdk-cleanup-XXXXXX";

    assert_non_null(mkdtemp(dir));
    base = xstrdup(dir);
    return start(state);
}

static int remove_base(void **state)
{
    autofree char *command[] = {xstrdup("rm"), xstrdup("-rf"), xstrdup(base), NULL};
    pid_t child = fork();
    int status = 0;

    if (child == 0) {
        (void)execvp(command[0], command);
        _exit(127);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    for (size_t i = 1; command[i] != NULL; i++)
        free(command[i]);
    free(base);
    return end(state);
}

static void only_what_export_json_names_goes(void **state)
{
    autofree char *web = make_export("web", "exp-1");
    autofree char *below = make_export("web/exp-2", "exp-2");
    autofree char *foreign = xasprintf("%s/foreign", base);
    struct error err = ERROR_NONE;

    (void)state;
    assert_ok(path_make_dirs(foreign, &err), err);
    write_text(foreign, "export.json", "{\"name\": \"of another program\"}");
    write_text(web, "notes.txt", "mine");
    rescan(base);
    assert_int_equal(list.count, 2);
    for (size_t i = 0; i < 2; i++) {
        if (strcmp(list.items[i].export_id, "exp-1") == 0) {
            assert_int_equal(list.items[i].completed_ms, INT64_C(1772330400000));
            assert_ok(cleanup_remove(&list.items[i], base, &err), err);
        }
    }
    assert_false(exists(web, "a.raw"));
    assert_false(exists(web, "export.json"));
    assert_true(exists(web, "notes.txt"));
    assert_true(exists(below, "a.raw"));
    assert_true(exists(foreign, "export.json"));
    rescan(below);
    assert_int_equal(list.count, 1);
    assert_false(list.items[0].outside);
    assert_ok(cleanup_remove(&list.items[0], base, &err), err);
    assert_false(exists(base, "web/exp-2"));
}

static void a_mark_or_a_running_job_guards(void **state)
{
    static const atomic_bool never = false;
    autofree char *web = make_export("web", "exp-1");
    autofree char *db = make_export("db", "exp-2");
    auto_json *busy = json_pack("[s, s]", "", db);
    struct error err = ERROR_NONE;

    (void)state;
    write_text(web, ".hypersdk-export.e7", "exp-9");
    assert_ok(cleanup_scan(base, base, busy, &never, &list, &err), err);
    assert_int_equal(list.count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(list.items[i].guarded, strcmp(list.items[i].export_id, "exp-1") == 0
                                                       ? "being written"
                                                       : "in use by a job");
    }
}

static void a_domain_that_uses_the_images_guards(void **state)
{
    autofree char *web = make_export("web", "exp-1");
    struct error err = ERROR_NONE;

    (void)state;
    rescan(base);
    write_text(web, ".hypersdk-domain", "job-1\n"); /* an import begins after the scan */
    assert_fails(cleanup_remove(&list.items[0], base, &err), err, ERR_CONFLICT, "a domain uses");
    rescan(base);
    assert_string_equal(list.items[0].guarded, "in use by a domain");
    assert_true(exists(web, "a.raw"));
}

static void a_restore_point_is_not_taken_from_its_users(void **state)
{
    autofree char *first = make_export("web/exp-1", "exp-1");
    autofree char *root = xasprintf("%s/web", base);
    autofree char *second = NULL;
    autofree char *text = NULL;
    autofree char *path = xasprintf("%s/export.json", first);
    struct error err = ERROR_NONE;
    const char *why = NULL;
    size_t size = 0;
    int reader = -1;
    int lock = -1;

    (void)state;
    rescan(base);
    list.items[0].restore_point = true;
    assert_ok(chain_lock(root, "vm-1", false, &reader, &err), err);
    assert_ok(cleanup_lock(&list.items[0], &lock, &why, &err), err);
    assert_string_equal(why, "in use by a job");
    (void)close(reader);
    assert_ok(cleanup_lock(&list.items[0], &lock, &why, &err), err);
    assert_null(why);
    (void)close(lock);
    /* an export that was finished since the scan stands on it */
    assert_ok(file_read(path, MIB, &text, &size, &err), err);
    second = make_export("web/exp-2", "exp-2");
    auto_json *record = json_loads(text, 0, NULL);
    json_set_text(record, "export_id", "exp-2");
    (void)json_object_set_new(record, "incremental",
                              json_pack("{s:s, s:s}", "base_id", "exp-1", "base_dir", "../exp-1"));
    autofree char *changed = json_text(record);
    write_text(second, "export.json", changed);
    lock = -1;
    assert_ok(cleanup_lock(&list.items[0], &lock, &why, &err), err);
    assert_string_equal(why, "base of a later export");
    (void)close(lock);
}

/* The states that a removal goes through, each as a crash would leave it. */
static void a_removal_that_was_cut_short_is_finished(void **state)
{
    struct error err = ERROR_NONE;

    (void)state;
    for (int step = 0; step < 5; step++) {
        static const char *const names[] = {"export.json", "a.raw", "b.leaves"};
        autofree char *web = make_export("web", "exp-1");
        autofree char *trash = xasprintf("%s/.hypersdk-trash-exp-1", web);
        assert_ok(path_make_dirs(trash, &err), err);
        for (int i = 0; i < step && i < 3; i++) {
            autofree char *from = xasprintf("%s/%s", web, names[i]);
            autofree char *to = xasprintf("%s/%s", trash, names[i]);
            assert_int_equal(rename(from, to), 0);
        }
        if (step == 4) {
            autofree char *gone = xasprintf("%s/a.raw", trash);
            assert_int_equal(unlink(gone), 0);
        }
        rescan(base);
        cleanup_decide(&list, &policy, NOW_MS, 0);
        for (size_t i = 0; i < list.count; i++) {
            if (list.items[i].deleted)
                assert_ok(cleanup_remove(&list.items[i], base, &err), err);
        }
        assert_false(exists(web, ".hypersdk-trash-exp-1"));
        /* before its mark moved it still is an export, afterwards all of it is gone */
        assert_int_equal(exists(base, "web"), step == 0);
    }
}

/* Then the list has it twice, as an export and as a removal. */
static void a_removal_cut_short_before_its_first_move_goes_with_its_export(void **state)
{
    struct error err = ERROR_NONE;

    (void)state;
    for (size_t order = 0; order < 2; order++) {
        autofree char *web = make_export("web", "exp-1");
        autofree char *trash = xasprintf("%s/.hypersdk-trash-exp-1", web);
        assert_ok(path_make_dirs(trash, &err), err);
        rescan(base);
        assert_int_equal(list.count, 2);
        for (size_t i = 0; i < 2; i++)
            assert_ok(cleanup_remove(&list.items[order == 0 ? i : 1 - i], base, &err), err);
        assert_false(exists(base, "web"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            a_removal_cut_short_before_its_first_move_goes_with_its_export, make_base, remove_base),
        cmocka_unit_test_setup_teardown(age_and_the_newest_full_one, start, end),
        cmocka_unit_test_setup_teardown(a_base_stays_while_an_export_that_stays_uses_it, start,
                                        end),
        cmocka_unit_test_setup_teardown(count_is_per_vm_or_for_all, start, end),
        cmocka_unit_test_setup_teardown(size_and_free_space_take_the_oldest_first, start, end),
        cmocka_unit_test_setup_teardown(what_is_preserved_used_or_written_stays, start, end),
        cmocka_unit_test_setup_teardown(only_what_export_json_names_goes, make_base, remove_base),
        cmocka_unit_test_setup_teardown(a_mark_or_a_running_job_guards, make_base, remove_base),
        cmocka_unit_test_setup_teardown(a_domain_that_uses_the_images_guards, make_base,
                                        remove_base),
        cmocka_unit_test_setup_teardown(a_restore_point_is_not_taken_from_its_users, make_base,
                                        remove_base),
        cmocka_unit_test_setup_teardown(a_removal_that_was_cut_short_is_finished, make_base,
                                        remove_base),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
