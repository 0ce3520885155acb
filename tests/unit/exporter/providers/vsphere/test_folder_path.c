/* Names and texts of datastore files. */
#include "tests/unit/common/unit.h"

#include "services/exporter/providers/vsphere/folder.h"

#define SIGNATURE "# Disk DescriptorFile\n"

static void split(const char *source, const char *datastore, const char *path)
{
    struct error err = ERROR_NONE;
    autofree char *ds = NULL, *rest = NULL;

    assert_ok(folder_path_split(source, &ds, &rest, &err), err);
    assert_string_equal(ds, datastore);
    assert_string_equal(rest, path);
}

static void a_datastore_path_is_split(void **state)
{
    (void)state;
    split("[ds] x.vmdk", "ds", "x.vmdk");
    split("[a ds (1)] dir/sub dir/x.vmdk", "a ds (1)", "dir/sub dir/x.vmdk");
    split("[ds] ..x/y..vmdk", "ds", "..x/y..vmdk");
}

static void a_path_that_leaves_its_datastore_is_refused(void **state)
{
    static const char *const bad[] = {"",          "x.vmdk",   "[ds]x.vmdk", "[] x.vmdk",
                                      "[ds] ",     "[ds] /x",  "[ds] ../x",  "[ds] a/../x",
                                      "[ds] a//x", "[ds] ./x", "[ds] a/..",  "ds] x"};
    struct error err = ERROR_NONE;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        autofree char *ds = NULL, *rest = NULL;
        assert_fails(folder_path_split(bad[i], &ds, &rest, &err), err, ERR_PROTOCOL, "path");
        assert_null(ds);
    }
}

static void a_path_that_is_too_long_is_refused(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *ds = NULL, *rest = NULL;
    autofree char *text = xmalloc(4097);

    (void)state;
    memset(text, 'x', 4096);
    memcpy(text, "[ds] ", 5);
    text[4096] = '\0';
    assert_fails(folder_path_split(text, &ds, &rest, &err), err, ERR_PROTOCOL,
                 "is not a datastore");
}

static void url(int encodings, const char *datacenter, const char *datastore, const char *path,
                const char *wanted)
{
    struct error err = ERROR_NONE;
    autofree char *got = NULL;

    assert_ok(folder_url(&(struct folder_place){"https://vc:443", datacenter, datastore}, path,
                         encodings, &got, &err),
              err);
    assert_string_equal(got, wanted);
}

static void a_url_encodes_the_path_once_and_the_names_as_often_as_the_server_wants(void **state)
{
    (void)state;
    url(1, "DC0", "ds", "a/b.vmdk", "https://vc:443/folder/a/b.vmdk?dcPath=DC0&dsName=ds");
    url(1, "f/DC 0", "d s", "a b/c+d&e?.vmdk",
        "https://vc:443/folder/a%20b/c%2Bd%26e%3F.vmdk?dcPath=f%2FDC%200&dsName=d%20s");
    url(2, "f/DC 0", "d s", "a b.vmdk",
        "https://vc:443/folder/a%20b.vmdk?dcPath=f%252FDC%25200&dsName=d%2520s");
    url(2, "", "ds", "x", "https://vc:443/folder/x?dsName=ds");
}

static void the_flat_file_of_a_disk_has_its_name(void **state)
{
    static const struct {
        const char *path;
        const char *flat; /* NULL: none */
    } cases[] = {
        {"a/x.vmdk", "a/x-flat.vmdk"},
        {"a/x-1.vmdk", "a/x-1-flat.vmdk"},
        {"a/x-00001.vmdk", "a/x-00001-flat.vmdk"},
        {"a/x-000001.vmdk", NULL},
        {"a/x.vhd", NULL},
        {".vmdk", NULL},
        {"", NULL},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *flat = folder_flat_path(cases[i].path);
        if (cases[i].flat == NULL)
            assert_null(flat);
        else
            assert_string_equal(flat, cases[i].flat);
    }
}

static void a_content_range_is_read_strictly(void **state)
{
    static const char *const bad[] = {
        "",
        "bytes",
        "bytes 0-9",
        "bytes 9-0/10",
        "bytes 0-10/10",
        "bytes a-9/1",
        "items 0-9/10",
        "bytes 0-9/10x",
        "bytes -9/10",
        "bytes 0-/10",
        "bytes 0-99999999999999999999/*",
        "bytes 0-9/",
        "bytes  0-9/10",
        "bytes */10",
    };
    struct folder_range range = {0};

    (void)state;
    assert_true(folder_range_parse("bytes 0-9/10", &range));
    assert_int_equal(range.first, 0);
    assert_int_equal(range.last, 9);
    assert_int_equal(range.total, 10);
    assert_true(folder_range_parse("bytes 5-9/*  ", &range));
    assert_int_equal(range.total, 0);
    assert_true(folder_range_parse("bytes 18446744073709551614-18446744073709551614/*", &range));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(folder_range_parse(bad[i], &range));
}

static int descriptor(const char *text, struct folder_descriptor *out, struct error *err)
{
    return folder_descriptor_parse(text, strlen(text), out, err);
}

static void a_descriptor_of_one_flat_file_is_accepted(void **state)
{
    struct folder_descriptor out = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(descriptor(SIGNATURE
                                "parentCID=ffffffff\r\nRW 2048 VMFS \"x y-flat.vmdk\"\r\n",
                                &out, &err),
                     1);
    assert_int_equal(out.size_bytes, MIB);
    assert_string_equal(out.flat_name, "x y-flat.vmdk");
    assert_int_equal(descriptor(SIGNATURE "RW 1 FLAT \"x-flat.vmdk\" 0", &out, &err), 1);
    assert_int_equal(out.size_bytes, 512);
}

static void a_text_without_signature_is_no_descriptor(void **state)
{
    struct folder_descriptor out = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(descriptor("", &out, &err), 0);
    assert_int_equal(descriptor("RW 2048 VMFS \"x-flat.vmdk\"\n", &out, &err), 0);
    assert_int_equal(folder_descriptor_parse("\0\0\0\n\0", 5, &out, &err), 0);
}

static void a_descriptor_of_anything_else_says_what_it_is(void **state)
{
    static const struct {
        const char *text;
        const char *words;
        enum error_code code;
    } cases[] = {
        {SIGNATURE, "0 extents", ERR_NOT_AVAILABLE},
        {SIGNATURE "parentCID=12345678\nRW 1 VMFS \"x\"\n", "parent disk", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 1 VMFS \"a\"\nRW 1 VMFS \"b\"\n", "2 extents", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 1 VMFS \"vsan://5\"\n", "objects", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 1 VMFSSPARSE \"a\"\n", "VMFSSPARSE", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 1 VMFS \"../a\"\n", "another folder", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 1 VMFS \".a\"\n", "another folder", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 1 FLAT \"a\" 128\n", "1 extents", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW x VMFS \"a\"\n", "1 extents", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 1 VMFS a\n", "1 extents", ERR_NOT_AVAILABLE},
        {SIGNATURE "RW 18446744073709551615 VMFS \"a\"\n", "not sane", ERR_PROTOCOL},
        {SIGNATURE "RDONLY 1 VMFS \"a\"\n", "1 extents", ERR_NOT_AVAILABLE},
    };
    struct folder_descriptor out = {0};
    struct error err = ERROR_NONE;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_fails(descriptor(cases[i].text, &out, &err), err, cases[i].code, cases[i].words);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_datastore_path_is_split),
        cmocka_unit_test(a_path_that_leaves_its_datastore_is_refused),
        cmocka_unit_test(a_path_that_is_too_long_is_refused),
        cmocka_unit_test(a_url_encodes_the_path_once_and_the_names_as_often_as_the_server_wants),
        cmocka_unit_test(the_flat_file_of_a_disk_has_its_name),
        cmocka_unit_test(a_content_range_is_read_strictly),
        cmocka_unit_test(a_descriptor_of_one_flat_file_is_accepted),
        cmocka_unit_test(a_text_without_signature_is_no_descriptor),
        cmocka_unit_test(a_descriptor_of_anything_else_says_what_it_is),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
