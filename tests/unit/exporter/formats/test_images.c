/* The image readers against images of our own sinks and of qemu-img, and against damage. */
#include "tests/unit/exporter/formats/disk_fixture.h"

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/qcow2.h"
#include "services/exporter/formats/vmdk.h"

static const struct sink_format *const all_formats[] = {&sink_raw, &sink_qcow2, &sink_vmdk,
                                                        &sink_zst};

/* Whole, then pieces at odd places. */
static void compare_image(struct image *image, const struct test_disk *disk)
{
    struct error err = ERROR_NONE;
    autofree uint8_t *data = xmalloc(disk->size);
    uint64_t seed = 7;

    assert_int_equal(image_size_bytes(image), disk->size);
    assert_ok(image_read(image, data, disk->size, 0, &err));
    assert_true(memcmp(data, disk->data, disk->size) == 0);
    for (int i = 0; i < 200; i++) {
        size_t at = test_random(&seed) % disk->size;
        size_t n = test_random(&seed) % min_u64(300000, disk->size - at) + 1;
        memset(data, 0xaa, n);
        assert_ok(image_read(image, data, n, at, &err));
        assert_true(memcmp(data, disk->data + at, n) == 0);
        if (image_is_hole(image, at, n))
            assert_true(mem_is_zero(disk->data + at, n));
    }
}

static void read_and_compare(const char *path, const char *format, const struct test_disk *disk)
{
    struct error err = ERROR_NONE;
    auto_image *image = NULL;

    assert_ok(image_open(path, format, &image, &err));
    compare_image(image, disk);
}

static void images_of_our_sinks_read_as_written(void **state)
{
    static const size_t sizes[] = {SECTOR, MIB, 33 * MIB + 7 * SECTOR};
    static const enum pattern patterns[] = {PATTERN_RANDOM, PATTERN_ZERO, PATTERN_SPARSE,
                                            PATTERN_TEXT};
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
            for (size_t p = 0; p < ARRAY_LEN(patterns); p++) {
                struct test_disk disk = test_disk_make(patterns[p], sizes[s]);
                autofree char *path = test_path("own.img");
                test_disk_write(&disk, all_formats[f], path);
                read_and_compare(path, all_formats[f]->name, &disk);
                test_disk_free(&disk);
            }
        }
    }
}

struct variant {
    const char *format;
    const char *options;
    bool compress;
};

static void images_of_qemu_read_as_written(void **state)
{
    static const struct variant variants[] = {
        {"raw", "size=0", false},
        {"qcow2", "compat=0.10", false},
        {"qcow2", "compat=1.1,cluster_size=512", false},
        {"qcow2", "compat=1.1,cluster_size=2M", false},
        {"qcow2", "compat=1.1,lazy_refcounts=on", false},
        {"qcow2", "compat=1.1", true},
        {"qcow2", "compat=0.10,cluster_size=4k", true},
        {"qcow2", "compat=1.1,cluster_size=2M", true},
        {"qcow2", "compat=1.1,compression_type=zstd", true},
        {"qcow2", "compat=1.1,compression_type=zstd,cluster_size=2M", true},
        {"qcow2", "compat=1.1,compression_type=zstd", false},
        {"vmdk", "subformat=streamOptimized", false},
        {"vmdk", "subformat=monolithicSparse", false},
        {"vmdk", "subformat=monolithicSparse,zeroed_grain=on", false},
        {"vmdk", "subformat=monolithicFlat", false},
        {"vmdk", "subformat=twoGbMaxExtentFlat", false},
        {"vmdk", "subformat=twoGbMaxExtentSparse", false},
    };
    static const enum pattern patterns[] = {PATTERN_SPARSE, PATTERN_TEXT, PATTERN_RANDOM,
                                            PATTERN_ZERO};
    (void)state;
    need_qemu_img();
    for (size_t v = 0; v < ARRAY_LEN(variants); v++) {
        for (size_t p = 0; p < ARRAY_LEN(patterns); p++) {
            struct test_disk disk = test_disk_make(patterns[p], 9 * MIB + 5 * SECTOR);
            autofree char *raw = test_path("source.raw");
            autofree char *path = test_path("qemu.img");
            const char *argv[] = {QEMU_IMG, "convert", "-f", "raw", "-O", variants[v].format,
                                  raw,      path,      NULL, NULL,  NULL, NULL};
            size_t n = 8;
            if (strcmp(variants[v].format, "raw") != 0) {
                argv[n++] = "-o";
                argv[n++] = variants[v].options;
            }
            if (variants[v].compress)
                argv[n++] = "-c";
            print_message("%s %s%s\n", variants[v].format, variants[v].options,
                          variants[v].compress ? " compressed" : "");
            write_file(raw, disk.data, disk.size);
            assert_int_equal(run_program(argv), 0);
            read_and_compare(path, variants[v].format, &disk);
            (void)unlink(path);
            test_disk_free(&disk);
        }
    }
}

static void refuse(const char *path, const char *format, enum error_code code, const char *part)
{
    struct error err = ERROR_NONE;
    struct image *image = NULL;

    assert_int_equal(image_open(path, format, &image, &err), -1);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%s: %s, expected %s with '%s'", error_code_name(err.code), err.message,
                 error_code_name(code), part);
}

static void images_that_need_more_than_we_read_are_refused(void **state)
{
    (void)state;
    need_qemu_img();
    autofree char *path = test_path("refused.img");
    const char *subclusters[] = {QEMU_IMG, "create",         "-q", "-f", "qcow2",
                                 "-o",     "extended_l2=on", path, "8M", NULL};
    autofree char *data_file = test_path("refused.data");
    autofree char *data_option = xasprintf("data_file=%s", data_file);
    const char *data[] = {QEMU_IMG, "create",    "-q", "-f", "qcow2",
                          "-o",     data_option, path, "8M", NULL};
    autofree char *vmdk_base = test_path("base.vmdk");
    const char *make_vmdk[] = {QEMU_IMG, "create", "-q", "-f", "vmdk", vmdk_base, "8M", NULL};
    const char *delta[] = {QEMU_IMG,  "create", "-q",   "-f", "vmdk", "-b",
                           vmdk_base, "-F",     "vmdk", path, NULL};

    assert_int_equal(run_program(subclusters), 0);
    refuse(path, "qcow2", ERR_NOT_AVAILABLE, "subclusters");
    (void)unlink(path);
    assert_int_equal(run_program(data), 0);
    refuse(path, "qcow2", ERR_NOT_AVAILABLE, "another file");
    (void)unlink(path);
    assert_int_equal(run_program(make_vmdk), 0);
    assert_int_equal(run_program(delta), 0);
    refuse(path, "vmdk", ERR_NOT_AVAILABLE, "delta");
    (void)unlink(path);
}

/* Over two borders of extents; the disk's data is compared where there is some. */
static void disks_over_4_gib_in_several_extents_are_read(void **state)
{
    static const char *const options[] = {
        "subformat=twoGbMaxExtentFlat", "subformat=twoGbMaxExtentSparse",
        "subformat=monolithicFlat", "subformat=monolithicSparse", "subformat=streamOptimized"};
    /* qemu's extents of 2 GiB end 64 KiB before that */
    static const uint64_t offsets[] = {0, 2 * GIB - 64 * KIB - 300 * KIB, 4 * GIB - 512 * KIB,
                                       5 * GIB};
    const uint64_t size = 5 * GIB + MIB + SECTOR;
    struct test_disk data = test_disk_make(PATTERN_RANDOM, MIB);
    autofree uint8_t *read = xmalloc(MIB);
    autofree char *raw = test_path("big.raw");
    autofree char *path = test_path("big.vmdk");
    int fd = open(raw, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    (void)state;
    need_qemu_img();
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    for (size_t i = 0; i < ARRAY_LEN(offsets); i++)
        assert_int_equal(pwrite_all(fd, data.data, MIB, offsets[i]), 0);
    assert_int_equal(close(fd), 0);
    for (size_t o = 0; o < ARRAY_LEN(options); o++) {
        const char *argv[] = {QEMU_IMG, "convert",  "-f", "raw", "-O", "vmdk",
                              "-o",     options[o], raw,  path,  NULL};
        auto_image *image = NULL;
        struct error err = ERROR_NONE;
        print_message("%s\n", options[o]);
        assert_int_equal(run_program(argv), 0);
        assert_ok(image_open(path, "vmdk", &image, &err));
        assert_int_equal(image_size_bytes(image), size);
        for (size_t i = 0; i < ARRAY_LEN(offsets); i++) {
            assert_ok(image_read(image, read, MIB, offsets[i], &err));
            assert_memory_equal(read, data.data, MIB);
            assert_false(image_is_hole(image, offsets[i], MIB));
        }
        assert_true(image_is_hole(image, GIB, MIB));
        assert_ok(image_read(image, read, MIB, GIB, &err));
        assert_true(mem_is_zero(read, MIB));
    }
    test_disk_free(&data);
}

static void hostile_descriptors_are_refused(void **state)
{
    static const struct {
        const char *extent;
        enum error_code code;
        const char *part;
    } cases[] = {
        {"RW 8 FLAT \"../x.raw\" 0", ERR_DENIED, "same directory"},
        {"RW 8 FLAT \"/etc/passwd\" 0", ERR_DENIED, "same directory"},
        {"RW 8 FLAT \"link.raw\" 0", ERR_INTERNAL, "link.raw"},
        {"RW 8 FLAT \"missing.raw\" 0", ERR_NOT_FOUND, "missing.raw"},
        {"RW 8 FLAT \"d.vmdk\" 0", ERR_CORRUPT, "ends before"},
        {"RW 9 FLAT \"x.raw\" 0", ERR_CORRUPT, "ends before"},
        {"RW 8 FLAT \"x.raw\" 1", ERR_CORRUPT, "ends before"},
        {"RW 8 FLAT", ERR_CORRUPT, "without a file"},
        {"RW 0 FLAT \"x.raw\" 0", ERR_INVALID, "extent size"},
        {"RW 99999999999999999999 ZERO", ERR_INVALID, "extent size"},
        {"RW 137438953472 ZERO\nRW 1 ZERO", ERR_LIMIT, "64 TiB"},
        {"RW 8 SPARSE \"x.raw\"", ERR_CORRUPT, "sparse VMDK"},
        {"RW 8 SPARSE \"d.vmdk\"", ERR_CORRUPT, "another descriptor"},
        {"RW 8 VMFSSPARSE \"x.raw\"", ERR_NOT_AVAILABLE, "VMFSSPARSE"},
        {"NOACCESS 8 FLAT \"x.raw\" 0", ERR_NOT_AVAILABLE, "access"},
        {"RW", ERR_CORRUPT, "without size"},
        {"", ERR_CORRUPT, "no extents"},
        {"parentCID=12345678\nRW 8 ZERO", ERR_NOT_AVAILABLE, "delta"},
    };
    static const uint8_t raw[8 * SECTOR];
    autofree char *extent = test_path("x.raw");
    autofree char *link = test_path("link.raw");
    autofree char *path = test_path("d.vmdk");

    (void)state;
    write_file(extent, raw, sizeof raw);
    assert_int_equal(symlink("x.raw", link), 0);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *text =
            xasprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
                      "createType=\"monolithicFlat\"\n%s\n",
                      cases[i].extent);
        write_file(path, text, strlen(text));
        refuse(path, "vmdk", cases[i].code, cases[i].part);
    }
    struct test_disk zeros = {.data = xcalloc(1, sizeof raw + 16 * SECTOR),
                              .size = sizeof raw + 16 * SECTOR};
    static const char good[] = "# Disk DescriptorFile\nparentCID=ffffffff\n"
                               "RW 16 ZERO\r\nRW 8 VMFS \"x.raw\"\n";
    write_file(path, good, sizeof good - 1);
    read_and_compare(path, "vmdk", &zeros);
    test_disk_free(&zeros);
}

static void what_is_no_image_is_refused(void **state)
{
    (void)state;
    autofree char *path = test_path("no.img");
    autofree char *missing = test_path("missing.img");
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 4096);

    write_file(path, "", 0);
    refuse(path, "qcow2", ERR_CORRUPT, "too short");
    refuse(path, "vmdk", ERR_CORRUPT, "too short");
    write_file(path, disk.data, disk.size);
    refuse(path, "qcow2", ERR_CORRUPT, "not a qcow2");
    refuse(path, "vmdk", ERR_CORRUPT, "sparse VMDK");
    refuse(path, "vhdx", ERR_NOT_AVAILABLE, "vhdx");
    refuse(missing, "raw", ERR_NOT_FOUND, "missing.img");
    refuse("/dev/null", "raw", ERR_INVALID, "regular");
    test_disk_free(&disk);
}

struct edit {
    const char *name;
    uint64_t offset; /* of a header field */
    uint64_t value;
    unsigned int bytes; /* 4 or 8 */
    enum error_code code;
};

static void put_field(uint8_t *at, uint64_t value, unsigned int bytes, bool big)
{
    if (bytes == 8)
        big ? put_be64(at, value) : put_le64(at, value);
    else
        big ? put_be32(at, (uint32_t)value) : put_le32(at, (uint32_t)value);
}

static void check_edits(const struct sink_format *format, const struct edit *edits, size_t count,
                        bool big)
{
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 40 * MIB);
    autofree char *path = test_path("edited.img");
    size_t size = 0;

    test_disk_write(&disk, format, path);
    autofree uint8_t *good = read_file(path, &size);
    for (size_t i = 0; i < count; i++) {
        autofree uint8_t *bad = xmemdup(good, size);
        uint64_t base = edits[i].offset;
        print_message("%s: %s\n", format->name, edits[i].name);
        put_field(bad + base, edits[i].value, edits[i].bytes, big);
        if (format == &sink_vmdk) /* the footer is what counts for some fields */
            put_field(bad + size - 1024 + base, edits[i].value, edits[i].bytes, big);
        write_file(path, bad, size);
        refuse(path, format->name, edits[i].code, "");
    }
    test_disk_free(&disk);
}

static void a_damaged_or_foreign_raw_zst_is_refused(void **state)
{
    struct test_disk disk = test_disk_make(PATTERN_TEXT, 3 * MIB + SECTOR);
    autofree char *path = test_path("bad.raw.zst");
    size_t size = 0;

    (void)state;
    test_disk_write(&disk, &sink_zst, path);
    autofree uint8_t *good = read_file(path, &size);
    autofree uint8_t *bad = xmalloc(size);
    size_t table = size - 9 - (size_t)4 * 8 - 8;
    const struct {
        size_t at;
        uint32_t value;
        enum error_code code;
        const char *part;
    } edits[] = {
        {size - 4, 1, ERR_CORRUPT, "seek table"},
        {size - 9, 0, ERR_CORRUPT, "0 frames"},
        {size - 9, 5, ERR_CORRUPT, "begin where"},
        {size - 9, 0xffffffff, ERR_CORRUPT, "fit"},
        {table, 1, ERR_CORRUPT, "begin where"},
        {table + 4, 1, ERR_CORRUPT, "begin where"},
        {table + 8, 0, ERR_CORRUPT, "frame 0"},
        {table + 8, 77, ERR_CORRUPT, "fill the file"},
        {table + 8, 0x200000, ERR_CORRUPT, "frame 0"},
        {table + 12, 512, ERR_CORRUPT, "frame 0"},
        {table + 36, 0x100001, ERR_CORRUPT, "frame 3"},
    };
    for (size_t i = 0; i < ARRAY_LEN(edits); i++) {
        memcpy(bad, good, size);
        put_le32(bad + edits[i].at, edits[i].value);
        write_file(path, bad, size);
        refuse(path, "raw.zst", edits[i].code, edits[i].part);
    }
    for (size_t cut = 0; cut < size; cut += 1 + size / 50) {
        write_file(path, good, cut);
        refuse(path, "raw.zst", ERR_CORRUPT, "");
    }
    /* one flipped bit of a frame spoils its own MiB only */
    struct error err = ERROR_NONE;
    auto_image *image = NULL;
    autofree uint8_t *data = xmalloc(MIB);
    memcpy(bad, good, size);
    bad[get_le32(good + table + 8) + 100] ^= 1;
    write_file(path, bad, size);
    assert_ok(image_open(path, "raw.zst", &image, &err));
    assert_ok(image_read(image, data, MIB, 0, &err));
    assert_ok(image_read(image, data, MIB, 2 * MIB, &err));
    assert_memory_equal(data, disk.data + 2 * MIB, MIB);
    assert_int_equal(image_read(image, data, MIB, MIB, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_non_null(strstr(err.message, "1048576"));
    test_disk_free(&disk);
}

static void hostile_headers_are_refused(void **state)
{
    static const struct edit qcow2[] = {
        {"version", QCOW2_AT_VERSION, 4, 4, ERR_NOT_AVAILABLE},
        {"tiny clusters", QCOW2_AT_CLUSTER_BITS, 8, 4, ERR_CORRUPT},
        {"huge clusters", QCOW2_AT_CLUSTER_BITS, 22, 4, ERR_CORRUPT},
        {"absurd clusters", QCOW2_AT_CLUSTER_BITS, 0xffffffff, 4, ERR_CORRUPT},
        {"size", QCOW2_AT_SIZE, UINT64_MAX, 8, ERR_LIMIT},
        {"size over L1", QCOW2_AT_SIZE, 65 * GIB, 8, ERR_CORRUPT},
        {"encryption", QCOW2_AT_CRYPT_METHOD, 2, 4, ERR_NOT_AVAILABLE},
        {"L1 offset", QCOW2_AT_L1_OFFSET, UINT64_MAX - 65535, 8, ERR_CORRUPT},
        {"L1 offset unaligned", QCOW2_AT_L1_OFFSET, 65537, 8, ERR_CORRUPT},
        {"no L1", QCOW2_AT_L1_SIZE, 0, 4, ERR_CORRUPT},
        {"corrupt bit", QCOW2_AT_INCOMPATIBLE, QCOW2_INCOMPAT_CORRUPT, 8, ERR_CORRUPT},
        {"unknown bit", QCOW2_AT_INCOMPATIBLE, UINT64_C(1) << 40, 8, ERR_NOT_AVAILABLE},
        {"short header", QCOW2_AT_HEADER_LENGTH, 72, 4, ERR_CORRUPT},
    };
    static const struct edit vmdk[] = {
        {"version", VMDK_AT_VERSION, 9, 4, ERR_NOT_AVAILABLE},
        {"capacity", VMDK_AT_CAPACITY, UINT64_MAX, 8, ERR_LIMIT},
        {"no grain", VMDK_AT_GRAIN_SIZE, 0, 8, ERR_CORRUPT},
        {"odd grain", VMDK_AT_GRAIN_SIZE, 129, 8, ERR_CORRUPT},
        {"huge grain", VMDK_AT_GRAIN_SIZE, UINT64_C(1) << 40, 8, ERR_CORRUPT},
        {"no entries", VMDK_AT_TABLE_ENTRIES, 0, 4, ERR_CORRUPT},
        {"huge tables", VMDK_AT_TABLE_ENTRIES, UINT32_MAX, 4, ERR_CORRUPT},
        {"directory outside", VMDK_AT_GD_OFFSET, UINT64_MAX - 1, 8, ERR_CORRUPT},
        {"descriptor outside", VMDK_AT_DESCRIPTOR_OFFSET, INT64_MAX, 8, ERR_CORRUPT},
        {"descriptor huge", VMDK_AT_DESCRIPTOR_SIZE, UINT64_MAX, 8, ERR_CORRUPT},
        {"compression", VMDK_AT_COMPRESSION - 1, 0x0700, 4, ERR_NOT_AVAILABLE},
    };
    (void)state;
    check_edits(&sink_qcow2, qcow2, ARRAY_LEN(qcow2), true);
    check_edits(&sink_vmdk, vmdk, ARRAY_LEN(vmdk), false);
}

/* Every 61st byte flipped on its own, and every prefix in steps: an error or some content, but no
 * crash and no read outside (the sanitizer's business). */
static void damaged_images_end_in_errors_not_crashes(void **state)
{
    (void)state;
    for (size_t f = 1; f < ARRAY_LEN(all_formats); f++) {
        struct test_disk disk = test_disk_make(PATTERN_TEXT, MIB + SECTOR);
        autofree char *path = test_path("damaged.img");
        autofree uint8_t *out = xmalloc(disk.size);
        size_t size = 0;
        size_t refused = 0;
        test_disk_write(&disk, all_formats[f], path);
        autofree uint8_t *good = read_file(path, &size);
        for (size_t at = 0; at < 2 * size; at += at < 1024 ? 1 : size / 400) {
            struct error err = ERROR_NONE;
            auto_image *image = NULL;
            autofree uint8_t *bad = xmemdup(good, size);
            if (at < size)
                bad[at] ^= 0xff;
            write_file(path, bad, at < size ? size : at - size);
            if (image_open(path, all_formats[f]->name, &image, &err) < 0 ||
                image_size_bytes(image) > disk.size ||
                image_read(image, out, (size_t)image_size_bytes(image), 0, &err) < 0) {
                refused++;
                continue;
            }
            (void)image_is_hole(image, 0, image_size_bytes(image));
        }
        assert_true(refused > 100); /* most prefixes, and most of the tables' bytes */
        test_disk_free(&disk);
    }
}

static void reads_outside_of_the_disk_are_refused(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        struct test_disk disk = test_disk_make(PATTERN_RANDOM, 2 * MIB);
        autofree char *path = test_path("bounds.img");
        auto_image *image = NULL;
        struct error err = ERROR_NONE;
        uint8_t byte[2];
        test_disk_write(&disk, all_formats[f], path);
        assert_ok(image_open(path, all_formats[f]->name, &image, &err));
        assert_int_equal(image_read(image, byte, 2, 2 * MIB - 1, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
        assert_false(image_is_hole(image, UINT64_MAX, 2));
        test_disk_free(&disk);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(images_of_our_sinks_read_as_written),
        cmocka_unit_test(images_of_qemu_read_as_written),
        cmocka_unit_test(images_that_need_more_than_we_read_are_refused),
        cmocka_unit_test(disks_over_4_gib_in_several_extents_are_read),
        cmocka_unit_test(hostile_descriptors_are_refused),
        cmocka_unit_test(what_is_no_image_is_refused),
        cmocka_unit_test(a_damaged_or_foreign_raw_zst_is_refused),
        cmocka_unit_test(hostile_headers_are_refused),
        cmocka_unit_test(damaged_images_end_in_errors_not_crashes),
        cmocka_unit_test(reads_outside_of_the_disk_are_refused),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
