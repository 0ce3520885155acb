/* Confinement of user paths, and files written whole or not at all. */
#include "tests/unit/common/unit.h"

#include "common/paths.h"

struct fixture {
    char *dir;  /* resolved */
    char *base; /* <dir>/base */
    char *items[2];
    struct config_list bases;
    struct error err;
};

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);
    autofree char *other = NULL;

    f->dir = scratch_make();
    f->base = xasprintf("%s/base", f->dir);
    other = xasprintf("%s/other", f->dir);
    if (mkdir(f->base, 0700) < 0 || mkdir(other, 0700) < 0)
        return -1;
    f->items[0] = f->base;
    f->bases = (struct config_list){.items = f->items, .count = 1};
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    scratch_remove(f->dir);
    free(f->base);
    free(f);
    return 0;
}

static void expect_inside(struct fixture *f, const char *path, const char *wanted_below_base)
{
    autofree char *out = NULL;
    autofree char *wanted = xasprintf("%s%s", f->base, wanted_below_base);

    assert_ok(path_confine(&f->bases, path, &out, &f->err), f->err);
    assert_string_equal(out, wanted);
}

static void expect_refused(struct fixture *f, const char *path, enum error_code code)
{
    autofree char *out = NULL;

    assert_fails(path_confine(&f->bases, path, &out, &f->err), f->err, code, "");
    assert_null(out);
}

static void paths_inside_come_back_clean(void **state)
{
    struct fixture *f = *state;
    autofree char *absolute = xasprintf("%s/a", f->base);

    expect_inside(f, "web", "/web");
    expect_inside(f, "a//b/./c/", "/a/b/c");
    expect_inside(f, ".", "");
    expect_inside(f, absolute, "/a");
    expect_inside(f, "..a/b..", "/..a/b..");
}

static void paths_outside_are_refused(void **state)
{
    struct fixture *f = *state;
    autofree char *sibling = xasprintf("%s-evil/x", f->base);
    autofree char *up = xasprintf("%s/../other", f->base);

    expect_refused(f, "/etc/passwd", ERR_DENIED);
    expect_refused(f, "../other", ERR_DENIED);
    expect_refused(f, "a/../../other", ERR_DENIED);
    expect_refused(f, up, ERR_DENIED);
    expect_refused(f, sibling, ERR_DENIED);
    expect_refused(f, "a\nb", ERR_INVALID);
    expect_refused(f, "a\x7f", ERR_INVALID);
}

static void over_long_paths_are_refused(void **state)
{
    struct fixture *f = *state;
    autofree char *part = xcalloc(1, 300);
    autofree char *longer = xcalloc(1, 2 * PATH_BYTES_MAX);

    memset(part, 'a', 256);
    expect_refused(f, part, ERR_INVALID);
    for (size_t i = 0; i < 2 * PATH_BYTES_MAX - 2; i += 2)
        memcpy(longer + i, "a/", 2);
    expect_refused(f, longer, ERR_LIMIT);
}

static void symlinks_that_lead_outside_are_refused(void **state)
{
    struct fixture *f = *state;
    autofree char *out_link = xasprintf("%s/out", f->base);
    autofree char *in_link = xasprintf("%s/in", f->base);
    autofree char *dangling = xasprintf("%s/dangling", f->base);
    autofree char *inside = xasprintf("%s/inside", f->base);

    assert_int_equal(symlink("../other", out_link), 0);
    assert_int_equal(mkdir(inside, 0700), 0);
    assert_int_equal(symlink("inside", in_link), 0);
    assert_int_equal(symlink("/nonexistent/target", dangling), 0);
    expect_refused(f, "out", ERR_DENIED);
    expect_refused(f, "out/new", ERR_DENIED);
    expect_inside(f, "in/new", "/inside/new");
    expect_refused(f, "dangling", ERR_DENIED);
    expect_refused(f, "dangling/x", ERR_DENIED);
}

static void the_root_as_base_allows_everything(void **state)
{
    struct fixture *f = *state;
    autofree char *out = NULL;
    char root[] = "/";

    f->items[0] = root;
    assert_ok(path_confine(&f->bases, "/nonexistent-x/y", &out, &f->err), f->err);
    assert_string_equal(out, "/nonexistent-x/y");
}

static void a_relative_base_is_a_wrong_configuration(void **state)
{
    struct fixture *f = *state;
    autofree char *out = NULL;
    char relative[] = "exports";

    f->items[0] = relative;
    assert_fails(path_confine(&f->bases, "/x", &out, &f->err), f->err, ERR_INVALID,
                 "is not absolute");
}

static void several_bases_are_tried_and_named(void **state)
{
    struct fixture *f = *state;
    autofree char *other = xasprintf("%s/other", f->dir);
    autofree char *path = xasprintf("%s/x", other);
    autofree char *out = NULL;

    f->items[1] = other;
    f->bases.count = 2;
    assert_ok(path_confine(&f->bases, path, &out, &f->err), f->err);
    assert_string_equal(out, path);
    assert_fails(path_confine(&f->bases, "/x", &out, &f->err), f->err, ERR_DENIED, other);
}

static void directories_are_made_once_and_again(void **state)
{
    struct fixture *f = *state;
    autofree char *path = xasprintf("%s/a/b/c", f->base);
    autofree char *file = scratch_file(f->base, "file", "x");
    autofree char *below = xasprintf("%s/b", file);
    struct stat st;

    assert_ok(path_make_dirs(path, &f->err), f->err);
    assert_ok(path_make_dirs(path, &f->err), f->err);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISDIR(st.st_mode));
    assert_fails(path_make_dirs(below, &f->err), f->err, ERR_NOT_FOUND, "cannot be made");
}

static void files_are_read_whole_within_their_limit(void **state)
{
    struct fixture *f = *state;
    autofree char *path = scratch_file(f->base, "file", "12345");
    autofree char *text = NULL;
    size_t size = 0;

    assert_ok(file_read(path, 5, &text, &size, &f->err), f->err);
    assert_string_equal(text, "12345");
    assert_int_equal(size, 5);
    assert_fails(file_read(path, 4, &text, &size, &f->err), f->err, ERR_LIMIT, "over 4 bytes");
    assert_fails(file_read(f->base, 5, &text, &size, &f->err), f->err, ERR_INVALID, "regular");
    assert_fails(file_read("/nonexistent", 5, &text, &size, &f->err), f->err, ERR_NOT_FOUND, "");
}

static void atomic_writes_replace_and_leave_nothing_behind(void **state)
{
    struct fixture *f = *state;
    autofree char *path = scratch_file(f->base, "file", "old");
    autofree char *nowhere = xasprintf("%s/no/file", f->base);
    autofree char *text = NULL;
    struct stat st;
    size_t size = 0;
    size_t entries = 0;
    DIR *dir;

    assert_ok(file_write_atomic(path, "new!", 4, 0640, &f->err), f->err);
    assert_ok(file_read(path, 10, &text, &size, &f->err), f->err);
    assert_string_equal(text, "new!");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    assert_fails(file_write_atomic(nowhere, "x", 1, 0640, &f->err), f->err, ERR_NOT_FOUND, "");
    assert_fails(file_write_atomic(f->base, "x", 1, 0640, &f->err), f->err, ERR_INTERNAL, "");
    dir = opendir(f->base);
    while (readdir(dir) != NULL)
        entries++;
    (void)closedir(dir);
    assert_int_equal(entries, 3); /* ".", "..", "file" */
    assert_ok(dir_sync_parent(path, &f->err), f->err);
    assert_ok(dir_sync_parent("/x", &f->err), f->err);
    assert_ok(dir_sync_parent("x", &f->err), f->err);
    assert_fails(dir_sync_parent("/nonexistent/x", &f->err), f->err, ERR_NOT_FOUND, "synced");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(paths_inside_come_back_clean),
        TEST(paths_outside_are_refused),
        TEST(over_long_paths_are_refused),
        TEST(symlinks_that_lead_outside_are_refused),
        TEST(the_root_as_base_allows_everything),
        TEST(a_relative_base_is_a_wrong_configuration),
        TEST(several_bases_are_tried_and_named),
        TEST(directories_are_made_once_and_again),
        TEST(files_are_read_whole_within_their_limit),
        TEST(atomic_writes_replace_and_leave_nothing_behind),
    };
    (void)umask(022);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
