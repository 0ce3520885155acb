/* OVA packages: headers as other programs read them, and everything that a hostile package may
 * hold. */
#include "tests/unit/exporter/formats/disk_fixture.h"

#include "services/exporter/formats/ova.h"
#include "services/exporter/formats/tar.h"

/* ---- making packages ---- */

static struct strbuf package; /* test_dir/x.ova while it is made */

static void add_block(const char *name, char type, const char *size, const void *data, size_t bytes)
{
    uint8_t header[OVA_BLOCK];
    static const uint8_t zeros[OVA_BLOCK];
    struct error err = ERROR_NONE;

    assert_ok(ova_header("x", bytes, 1, header, &err));
    memset(header, 0, TAR_NAME_BYTES);
    memcpy(header, name, min_u64(strlen(name), TAR_NAME_BYTES));
    header[TAR_AT_TYPE] = (uint8_t)type;
    if (size != NULL)
        memcpy(header + TAR_AT_SIZE, size, TAR_SIZE_BYTES);
    (void)snprintf((char *)header + TAR_AT_CHECKSUM, TAR_CHECKSUM_BYTES, "%06o",
                   tar_checksum(header, OVA_BLOCK));
    strbuf_add_bytes(&package, header, sizeof header);
    strbuf_add_bytes(&package, data, bytes);
    strbuf_add_bytes(&package, zeros, ova_padded(bytes) - bytes);
}

static void add_file(const char *name, const char *text)
{
    add_block(name, '0', NULL, text, strlen(text));
}

static void add_end(void)
{
    static const uint8_t zeros[2 * OVA_BLOCK];

    strbuf_add_bytes(&package, zeros, sizeof zeros);
}

static void begin(void)
{
    strbuf_reset(&package);
}

static int read_package(struct ova **out, struct error *err)
{
    autofree char *path = test_path("x.ova");

    write_file(path, package.data, package.length);
    return ova_read(path, out, err);
}

static void accept(size_t members)
{
    struct error err = ERROR_NONE;
    auto_ova *ova = NULL;

    assert_ok(read_package(&ova, &err));
    assert_int_equal(ova->count, members);
}

static void refuse(enum error_code code, const char *part)
{
    struct error err = ERROR_NONE;
    struct ova *ova = NULL;

    assert_int_equal(read_package(&ova, &err), -1);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%s: %s, expected %s with '%s'", error_code_name(err.code), err.message,
                 error_code_name(code), part);
}

/* ---- what is read ---- */

static void packages_of_gnu_tar_are_read(void **state)
{
    static const char *const forms[] = {"ustar", "gnu", "pax", "oldgnu", "v7"};
    static const char script[] =
        "cd \"$1\" && rm -rf in && mkdir in && cd in && echo ovf > a.ovf && echo digests > a.mf && "
        "long=$(printf 'n%.0s' $(seq 150)).vmdk && "
        "head -c 3000 /dev/zero > disk.vmdk && "
        "if [ $2 = gnu ] || [ $2 = pax ]; then echo data > $long; set -- \"$1\" $2 $long; "
        "else set -- \"$1\" $2; fi && "
        "form=$2 && shift 2 && tar -c --format=$form -f ../x.ova ./a.ovf a.mf disk.vmdk \"$@\"";
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
        autofree char *path = test_path("x.ova");
        const char *argv[] = {"/bin/sh", "-ec", script, "sh", test_dir, forms[i], NULL};
        struct error err = ERROR_NONE;
        auto_ova *ova = NULL;
        autofree char *text = NULL;
        bool long_names = strcmp(forms[i], "gnu") == 0 || strcmp(forms[i], "pax") == 0;
        print_message("%s\n", forms[i]);
        assert_int_equal(run_program(argv), 0);
        assert_ok(ova_read(path, &ova, &err));
        assert_int_equal(ova->count, long_names ? 4 : 3);
        assert_string_equal(ova->members[0].name, "a.ovf");
        assert_ok(ova_member_read(path, ova_find(ova, "a.mf"), 100, &text, &err));
        assert_string_equal(text, "digests\n");
        assert_int_equal(ova_find(ova, "disk.vmdk")->bytes, 3000);
        if (long_names)
            assert_int_equal(strlen(ova->members[3].name), 155);
        assert_null(ova_find(ova, "b.mf"));
    }
}

static void a_member_over_8_gib_is_read_by_others_and_by_us(void **state)
{
    const uint64_t bytes = 9 * GIB + 512;
    autofree char *path = test_path("big.ova");
    autofree char *script = xasprintf("tar tvf \"$1\" | grep -q ' %ju .*big-disk1.vmdk' && "
                                      "/usr/bin/python3 -c 'import sys, tarfile\n"
                                      "assert tarfile.open(sys.argv[1]).getmember("
                                      "\"big-disk1.vmdk\").size == %ju' \"$1\"",
                                      (uintmax_t)bytes, (uintmax_t)bytes);
    const char *argv[] = {"/bin/sh", "-ec", script, "sh", path, NULL};
    uint8_t header[OVA_BLOCK];
    struct error err = ERROR_NONE;
    auto_ova *ova = NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    (void)state;
    assert_ok(ova_header("big.ovf", 3, 1700000000, header, &err));
    assert_int_equal(pwrite_all(fd, header, sizeof header, 0), 0);
    assert_int_equal(pwrite_all(fd, "ovf", 3, OVA_BLOCK), 0);
    assert_ok(ova_header("big-disk1.vmdk", bytes, 1700000000, header, &err));
    assert_int_equal(pwrite_all(fd, header, sizeof header, UINT64_C(2) * OVA_BLOCK), 0);
    assert_int_equal(ftruncate(fd, (off_t)ova_total(3 * OVA_BLOCK + ova_padded(bytes))), 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(run_program(argv), 0);
    assert_ok(ova_read(path, &ova, &err));
    assert_int_equal(ova->count, 2);
    assert_int_equal(ova->members[1].bytes, bytes);
    assert_int_equal(ova->members[1].offset, 3 * OVA_BLOCK);
    assert_int_equal(unlink(path), 0);
}

static void names_that_do_not_fit_are_not_written(void **state)
{
    static const char *const names[] = {"", "a/b", "..", "../x.vmdk", "line\n"};
    uint8_t header[OVA_BLOCK];
    char longest[OVA_NAME_BYTES_MAX + 2];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct error err = ERROR_NONE;
        assert_int_equal(ova_header(names[i], 1, 1, header, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
    }
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    struct error err = ERROR_NONE;
    assert_int_equal(ova_header(longest, 1, 1, header, &err), -1);
    error_clear(&err);
    assert_ok(ova_header(longest + 1, 1, 1, header, &err));
}

/* ---- what is refused ---- */

static void nothing_gets_out_of_its_directory(void **state)
{
    static const char *const names[] = {"/etc/passwd", "../../x", "a/b.vmdk", "..",
                                        ".",           "a\\b",    "\x01"};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        autofree char *pax = xasprintf("%zu path=%s\n", strlen(names[i]) + 9, names[i]);
        begin();
        add_file("a.ovf", "ovf");
        add_file(names[i], "x");
        add_end();
        refuse(ERR_CORRUPT, "no plain file name");
        begin(); /* the same by extension headers */
        add_file("a.ovf", "ovf");
        add_block("././@LongLink", 'L', NULL, names[i], strlen(names[i]) + 1);
        add_file("harmless", "x");
        add_end();
        refuse(ERR_CORRUPT, "no plain file name");
        if (strlen(pax) < 10 || strlen(pax) > 99)
            continue;
        begin();
        add_file("a.ovf", "ovf");
        add_block("PaxHeaders/x", 'x', NULL, pax, strlen(pax));
        add_file("harmless", "x");
        add_end();
        refuse(ERR_CORRUPT, "");
    }
}

static void links_devices_and_directories_are_refused(void **state)
{
    static const struct {
        char type;
        const char *words;
    } types[] = {{'1', "hard link"},    {'2', "symbolic link"}, {'3', "character device"},
                 {'4', "block device"}, {'5', "directory"},     {'6', "FIFO"},
                 {'9', "unknown type"}};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        begin();
        add_file("a.ovf", "ovf");
        add_block("thing", types[i].type, NULL, "", 0);
        add_end();
        refuse(ERR_CORRUPT, types[i].words);
    }
    begin();
    add_file("a.ovf", "ovf");
    add_block("sparse", 'S', NULL, "", 0);
    add_end();
    refuse(ERR_NOT_AVAILABLE, "sparse");
}

static void the_shape_is_checked(void **state)
{
    (void)state;
    begin();
    refuse(ERR_CORRUPT, "cut");
    add_end();
    refuse(ERR_CORRUPT, "empty");
    begin();
    add_file("a.mf", "x");
    add_end();
    refuse(ERR_CORRUPT, "not a descriptor");
    begin();
    add_file("a.ovf", "ovf");
    refuse(ERR_CORRUPT, "end mark");
    add_file("a.mf", "x");
    add_file("a.mf", "x");
    add_end();
    refuse(ERR_CORRUPT, "twice");
    begin();
    static const uint8_t gzip[OVA_BLOCK] = {0x1f, 0x8b, 0x08};
    strbuf_add_bytes(&package, gzip, sizeof gzip);
    refuse(ERR_NOT_AVAILABLE, "gunzip");
    begin();
    add_file("A.OVF", "ovf"); /* seen in the wild */
    add_end();
    accept(1);
    package.data[10] ^= 1;
    refuse(ERR_CORRUPT, "no valid tar header");
}

static void sizes_are_not_believed(void **state)
{
    static const char *const sizes[] = {"77777777777",
                                        "\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                                        "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                                        "12x45678901",
                                        "           ",
                                        "-0000000001"};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        begin();
        add_file("a.ovf", "ovf");
        add_block("disk", '0', sizes[i], "x", 1);
        add_end();
        refuse(ERR_CORRUPT, "");
    }
}

static void pax_headers_are_checked(void **state)
{
    static const char *const bad[] = {"x",
                                      "5 a=b",
                                      "99 path=a\n",
                                      "0 a=b\n",
                                      "11 path\n\n\n\n\n",
                                      "000000000000000006 a=b\n",
                                      "12 size=-1x\n",
                                      "13 size=9e9x\n\n"};
    static const char good[] = "12 mtime=10\n15 path=d.vmdk\n10 size=4\n";

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        begin();
        add_file("a.ovf", "ovf");
        add_block("p", 'x', NULL, bad[i], strlen(bad[i]));
        add_file("disk", "data");
        add_end();
        struct error err = ERROR_NONE;
        struct ova *ova = NULL;
        assert_int_equal(read_package(&ova, &err), -1);
    }
    begin();
    add_file("a.ovf", "ovf");
    add_block("p", 'x', NULL, good, strlen(good));
    add_file("disk", "data");
    add_end();
    struct error err = ERROR_NONE;
    auto_ova *ova = NULL;
    assert_ok(read_package(&ova, &err));
    assert_string_equal(ova->members[1].name, "d.vmdk");
    assert_int_equal(ova->members[1].bytes, 4);
    begin();
    add_block("p", 'g', NULL, "10 path=x\n", 10);
    add_file("a.ovf", "ovf");
    add_end();
    refuse(ERR_CORRUPT, "all members");
}

static void the_number_of_members_is_bounded(void **state)
{
    (void)state;
    begin();
    add_file("a.ovf", "ovf");
    for (unsigned int i = 1; i < OVA_MEMBERS_MAX; i++) {
        autofree char *name = xasprintf("file%u", i);
        add_file(name, "");
    }
    size_t length = package.length;
    add_end();
    accept(OVA_MEMBERS_MAX);
    package.length = length;
    add_file("one-more", "");
    add_end();
    refuse(ERR_LIMIT, "more than 1000");
}

static int package_make(void **state)
{
    strbuf_init(&package, 4 * MIB);
    return test_dir_make(state);
}

static int package_remove(void **state)
{
    strbuf_release(&package);
    return test_dir_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packages_of_gnu_tar_are_read),
        cmocka_unit_test(a_member_over_8_gib_is_read_by_others_and_by_us),
        cmocka_unit_test(names_that_do_not_fit_are_not_written),
        cmocka_unit_test(nothing_gets_out_of_its_directory),
        cmocka_unit_test(links_devices_and_directories_are_refused),
        cmocka_unit_test(the_shape_is_checked),
        cmocka_unit_test(sizes_are_not_believed),
        cmocka_unit_test(pax_headers_are_checked),
        cmocka_unit_test(the_number_of_members_is_bounded),
    };
    return cmocka_run_group_tests(tests, package_make, package_remove);
}
