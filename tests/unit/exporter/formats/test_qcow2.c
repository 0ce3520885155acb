/* qcow2 with compressed clusters and with backing files, written and read, against qemu-img. */
#include "tests/unit/exporter/formats/disk_fixture.h"

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/qcow2.h"
#include "services/exporter/formats/qcow2_tables.h"

static const char *const codecs[] = {"zlib", "zstd"};

static void check_with_qemu(const char *path)
{
    const char *check[] = {QEMU_IMG, "check", "-q", "-f", "qcow2", path, NULL};

    assert_int_equal(run_program(check), 0); /* 3 would be leaks */
}

static void compare_with_us(const struct test_disk *disk, const char *path, const char *root)
{
    struct error err = ERROR_NONE;
    auto_image *image = NULL;
    autofree uint8_t *data = xmalloc(disk->size);
    uint64_t seed = 11;

    assert_ok(image_open_chain(path, "qcow2", root, &image, &err));
    assert_int_equal(image_size_bytes(image), disk->size);
    assert_ok(image_read(image, data, disk->size, 0, &err));
    assert_true(memcmp(data, disk->data, disk->size) == 0);
    for (int i = 0; i < 100; i++) {
        size_t at = test_random(&seed) % disk->size;
        size_t n = test_random(&seed) % min_u64(200000, disk->size - at) + 1;
        assert_ok(image_read(image, data, n, at, &err));
        assert_true(memcmp(data, disk->data + at, n) == 0);
        if (image_is_hole(image, at, n))
            assert_true(mem_is_zero(disk->data + at, n));
    }
}

static void write_with(const struct test_disk *disk, const struct sink_options *options)
{
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;

    assert_ok(sink_qcow2.open(options, &sink, &err));
    for (uint64_t at = 0; at < disk->size; at += SINK_PIECE_BYTES)
        assert_ok(deliver_piece(&sink_qcow2, sink, disk, at, &err));
    assert_ok(sink_qcow2.finish(sink, &err));
    sink_qcow2.close(sink);
}

static uint64_t file_bytes(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

/* ---- compression ---- */

static void compressed_images_hold_the_disk(void **state)
{
    static const struct {
        enum pattern pattern;
        size_t size;
    } shapes[] = {{PATTERN_TEXT, 5 * MIB + 3 * SECTOR},
                  {PATTERN_RANDOM, 3 * MIB},
                  {PATTERN_SPARSE, 40 * MIB},
                  {PATTERN_ZERO, 70 * MIB},
                  {PATTERN_TEXT, SECTOR},
                  {PATTERN_RANDOM, SECTOR}};
    static const int levels[] = {0, 1, 9};

    (void)state;
    need_qemu_img();
    for (size_t c = 0; c < ARRAY_LEN(codecs); c++) {
        for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
            struct test_disk disk = test_disk_make(shapes[i].pattern, shapes[i].size);
            autofree char *path = test_path("packed.qcow2");
            struct sink_options options = {.path = path,
                                           .size_bytes = disk.size,
                                           .compression = codecs[c],
                                           .compression_level = levels[i % ARRAY_LEN(levels)]};
            write_with(&disk, &options);
            compare_with_qemu(&disk, path, "qcow2");
            compare_with_us(&disk, path, NULL);
            if (shapes[i].pattern == PATTERN_TEXT && disk.size > MIB)
                assert_true(file_bytes(path) < disk.size / 3);
            test_disk_free(&disk);
        }
    }
}

static void what_does_not_shrink_takes_no_more_than_without_compression(void **state)
{
    (void)state;
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 4 * MIB);
    autofree char *plain = test_path("plain.qcow2");
    autofree char *packed = test_path("not-packed.qcow2");
    struct sink_options options = {.path = packed, .size_bytes = disk.size, .compression = "zstd"};

    test_disk_write(&disk, &sink_qcow2, plain);
    write_with(&disk, &options);
    assert_int_equal(file_bytes(packed), file_bytes(plain));
    test_disk_free(&disk);
}

static void wrong_compression_is_refused(void **state)
{
    static const struct {
        const struct sink_format *format;
        const char *compression;
        int level;
        const char *backing;
    } bad[] = {{&sink_qcow2, "lzma", 0, NULL}, {&sink_qcow2, "zlib", 10, NULL},
               {&sink_qcow2, NULL, 1, NULL},   {&sink_raw, "zlib", 0, NULL},
               {&sink_vmdk, "zstd", 0, NULL},  {&sink_raw, NULL, 0, "base.qcow2"}};
    autofree char *path = test_path("refused.img");

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct error err = ERROR_NONE;
        struct sink *sink = NULL;
        struct sink_options options = {.path = path,
                                       .size_bytes = MIB,
                                       .file_name = "x",
                                       .compression = bad[i].compression,
                                       .compression_level = bad[i].level,
                                       .backing = bad[i].backing};
        assert_int_equal(bad[i].format->open(&options, &sink, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
    }
}

/* ---- resume ---- */

/* Pieces up to `stop`, a checkpoint after `at` of them, no finish; then again from the
 * checkpoint. */
static void stop_and_resume(const struct test_disk *disk, struct sink_options options, size_t at,
                            size_t stop)
{
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    auto_strbuf text;

    strbuf_init(&text, SINK_STATE_BYTES_MAX);
    assert_ok(sink_qcow2.open(&options, &sink, &err));
    for (size_t i = 0; i < stop; i++) {
        if (i == at) {
            assert_ok(sink_qcow2.state(sink, &text, &err));
            assert_ok(sink_qcow2.sync(sink, &err));
        }
        assert_ok(deliver_piece(&sink_qcow2, sink, disk, i * SINK_PIECE_BYTES, &err));
    }
    sink_qcow2.close(sink);
    options.resume = text.data;
    assert_ok(sink_qcow2.open(&options, &sink, &err));
    for (size_t i = at < 2 ? 0 : at - 2; i * SINK_PIECE_BYTES < disk->size; i++)
        assert_ok(deliver_piece(&sink_qcow2, sink, disk, i * SINK_PIECE_BYTES, &err));
    assert_ok(sink_qcow2.finish(sink, &err));
    sink_qcow2.close(sink);
}

static void a_compressed_image_goes_on_from_its_checkpoint(void **state)
{
    static const size_t cases[][2] = {{0, 3}, {4, 9}, {8, 9}};

    (void)state;
    need_qemu_img();
    for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
        struct test_disk disk = test_disk_make(PATTERN_TEXT, 9 * MIB + SECTOR);
        autofree char *path = test_path("resumed.qcow2");
        struct sink_options options = {
            .path = path, .size_bytes = disk.size, .compression = codecs[c % 2]};
        memset(disk.data + 5 * MIB, 0, MIB);
        fill_random(disk.data + 2 * MIB, 3 * MIB / 2, &(uint64_t){3});
        stop_and_resume(&disk, options, cases[c][0], cases[c][1]);
        compare_with_qemu(&disk, path, "qcow2");
        compare_with_us(&disk, path, NULL);
        test_disk_free(&disk);
    }
}

/* ---- sent on ---- */

static void zero_range(const char *path, uint64_t from, uint64_t to)
{
    autofree uint8_t *zeros = xcalloc(1, (size_t)(to - from));
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    assert_int_equal(pwrite_all(fd, zeros, (size_t)(to - from), from), 0);
    assert_int_equal(close(fd), 0);
}

/* Pieces in falling order up to `stop`, a checkpoint after `at` of them. *out_final: what it says
 * is final. */
static void write_falling(const struct test_disk *disk, const struct sink_options *options,
                          const size_t *cut, struct strbuf *text, uint64_t *out_final)
{
    size_t count = (size_t)round_up_u64(disk->size, SINK_PIECE_BYTES) / SINK_PIECE_BYTES;
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;

    assert_ok(sink_qcow2.open(options, &sink, &err));
    for (size_t i = 0; i < cut[1]; i++) {
        if (i == cut[0]) {
            *out_final = sink_qcow2.final(sink, 0);
            assert_ok(sink_qcow2.state(sink, text, &err));
            assert_ok(sink_qcow2.sync(sink, &err));
        }
        assert_ok(deliver_piece(&sink_qcow2, sink, disk, (count - 1 - i) * SINK_PIECE_BYTES, &err));
    }
    sink_qcow2.close(sink);
}

/* What is final goes out of the file behind the header; going on without it, with two pieces that
 * come again, leaves those bytes alone, and with them the image is whole. */
static void go_on_without_data(const struct test_disk *disk, struct sink_options options,
                               const size_t *cut)
{
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    uint64_t final = 0;
    size_t size = 0;
    auto_strbuf text;
    auto_strbuf last;

    strbuf_init(&text, SINK_STATE_BYTES_MAX);
    strbuf_init(&last, SINK_STATE_BYTES_MAX);
    options.sent_on = true;
    write_falling(disk, &options, cut, &text, &final);
    autofree uint8_t *before = read_file(options.path, &size);
    assert_true(final > QCOW2_CLUSTER_BYTES && final <= size);
    zero_range(options.path, QCOW2_CLUSTER_BYTES, final);

    options.resume = text.data;
    assert_ok(sink_qcow2.open(&options, &sink, &err));
    assert_true(sink_qcow2.final(sink, 0) >= final);
    for (uint64_t at = 0; at < disk->size; at += SINK_PIECE_BYTES) {
        if (at / SINK_PIECE_BYTES < round_up_u64(disk->size, MIB) / MIB - cut[0] + 2)
            assert_ok(deliver_piece(&sink_qcow2, sink, disk, at, &err));
    }
    assert_ok(sink_qcow2.state(sink, &last, &err));
    assert_ok(sink_qcow2.finish(sink, &err));
    sink_qcow2.close(sink);
    autofree uint8_t *after = read_file(options.path, &size);
    assert_true(mem_is_zero(after + QCOW2_CLUSTER_BYTES, (size_t)(final - QCOW2_CLUSTER_BYTES)));

    options.resume = last.data; /* finished, and nobody heard of it */
    assert_ok(sink_qcow2.open(&options, &sink, &err));
    assert_ok(sink_qcow2.finish(sink, &err));
    sink_qcow2.close(sink);
    int fd = open(options.path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite_all(fd, before + QCOW2_CLUSTER_BYTES,
                                (size_t)(final - QCOW2_CLUSTER_BYTES), QCOW2_CLUSTER_BYTES),
                     0);
    assert_int_equal(close(fd), 0);
}

static void what_was_sent_on_is_neither_needed_nor_touched(void **state)
{
    static const size_t cuts[][2] = {{3, 8}, {5, 6}, {8, 9}};
    static const char *const compressions[] = {NULL, "zlib", "zstd"};

    (void)state;
    need_qemu_img();
    for (size_t c = 0; c < ARRAY_LEN(cuts) * ARRAY_LEN(compressions); c++) {
        struct test_disk disk = test_disk_make(PATTERN_TEXT, 9 * MIB + SECTOR);
        autofree char *path = test_path("sent-on.qcow2");
        struct sink_options options = {.path = path,
                                       .size_bytes = disk.size,
                                       .compression = compressions[c % ARRAY_LEN(compressions)]};
        memset(disk.data + 5 * MIB, 0, MIB);
        fill_random(disk.data + 2 * MIB, 3 * MIB / 2, &(uint64_t){3});
        go_on_without_data(&disk, options, cuts[c / ARRAY_LEN(compressions)]);
        compare_with_qemu(&disk, path, "qcow2");
        check_with_qemu(path);
        compare_with_us(&disk, path, NULL);
        test_disk_free(&disk);
    }
}

/* ---- backing files ---- */

/* Some clusters get other data, some zeros, at odd places. */
static void change(struct test_disk *disk, uint64_t seed)
{
    test_disk_scribble(disk, 12, 200000, &seed);
}

static void a_chain_of_seven_points_holds_the_disk_of_each_time(void **state)
{
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 20 * MIB + 9 * SECTOR);
    struct test_disk before[7];
    char *paths[7];

    (void)state;
    need_qemu_img();
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        autofree char *name = xasprintf("point%zu.qcow2", i);
        autofree char *below = xasprintf("point%zu.qcow2", i - 1);
        struct sink_options options = {.size_bytes = disk.size,
                                       .backing = i == 0 ? NULL : below,
                                       .compression = i % 3 == 1 ? codecs[i % 2] : NULL};
        if (i > 0)
            change(&disk, 100 + i);
        paths[i] = test_path(name);
        options.path = paths[i];
        if (i == 3)
            stop_and_resume(&disk, options, 7, 15);
        else
            write_with(&disk, &options);
        before[i] = (struct test_disk){xmemdup(disk.data, disk.size), disk.size};
    }
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        compare_with_qemu(&before[i], paths[i], "qcow2");
        compare_with_us(&before[i], paths[i], NULL);
        test_disk_free(&before[i]);
        free(paths[i]);
    }
    test_disk_free(&disk);
}

static void only_clusters_that_differ_are_written(void **state)
{
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 32 * MIB);
    autofree char *base = test_path("full.qcow2");
    autofree char *path = test_path("delta.qcow2");
    struct sink_options options = {.path = path, .size_bytes = disk.size, .backing = "full.qcow2"};

    (void)state;
    need_qemu_img();
    test_disk_write(&disk, &sink_qcow2, base);
    disk.data[5 * MIB + 70000] ^= 1;
    memset(disk.data + 9 * MIB, 0, 3 * MIB); /* costs an entry each, no data */
    write_with(&disk, &options);
    /* header, one cluster, L2, L1, refcount block and table */
    assert_int_equal(file_bytes(path), 6 * 65536);
    compare_with_qemu(&disk, path, "qcow2");
    compare_with_us(&disk, path, NULL);
    test_disk_free(&disk);
}

static void overlays_of_qemu_are_read(void **state)
{
    static const char *const options[] = {"compat=1.1", "compat=0.10,cluster_size=4k",
                                          "compat=1.1,cluster_size=2M",
                                          "compat=1.1,compression_type=zstd"};
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 9 * MIB + SECTOR);
    autofree char *raw = test_path("now.raw");
    autofree char *base_raw = test_path("base.raw");

    (void)state;
    need_qemu_img();
    write_file(base_raw, disk.data, disk.size);
    change(&disk, 5);
    write_file(raw, disk.data, disk.size);
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        autofree char *base = test_path("qbase.qcow2");
        autofree char *path = test_path("qover.qcow2");
        bool raw_base = i == 1;
        const char *first[] = {QEMU_IMG, "convert", "-f", "raw", "-O",
                               "qcow2",  base_raw,  base, NULL};
        const char *over[] = {QEMU_IMG,
                              "convert",
                              "-f",
                              "raw",
                              "-O",
                              "qcow2",
                              "-o",
                              options[i],
                              "-B",
                              raw_base ? "base.raw" : "qbase.qcow2",
                              "-F",
                              raw_base ? "raw" : "qcow2",
                              raw,
                              path,
                              i % 2 == 1 ? "-c" : NULL,
                              NULL};
        assert_int_equal(run_program(first), 0);
        assert_int_equal(run_program(over), 0);
        compare_with_us(&disk, path, NULL);
    }
    test_disk_free(&disk);
}

static void a_backing_file_of_another_size_is_cut_or_filled_with_zeros(void **state)
{
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 3 * MIB);
    autofree char *base = test_path("small.raw");
    autofree char *path = test_path("larger.qcow2");
    const char *create[] = {QEMU_IMG,    "create", "-q",  "-f", "qcow2", "-b",
                            "small.raw", "-F",     "raw", path, "3M",    NULL};

    (void)state;
    need_qemu_img();
    write_file(base, disk.data, MIB + 100 * SECTOR);
    memset(disk.data + MIB + 100 * SECTOR, 0, 2 * MIB - 100 * SECTOR);
    assert_int_equal(run_program(create), 0);
    compare_with_us(&disk, path, NULL);
    disk.size = MIB / 2;
    create[10] = "512K";
    assert_int_equal(run_program(create), 0);
    compare_with_us(&disk, path, NULL);
    disk.size = 3 * MIB;
    test_disk_free(&disk);
}

/* An image over 4 GiB, mostly holes, and a point above it. */
static void large_sparse_images_and_their_points_are_right(void **state)
{
    static const uint64_t places[] = {0, 4 * GIB - MIB, 4 * GIB, 6 * GIB - MIB};
    uint64_t size = 6 * GIB + 7 * SECTOR;
    struct test_disk piece = test_disk_make(PATTERN_RANDOM, MIB);
    autofree char *base = test_path("large.qcow2");
    autofree char *path = test_path("large-2.qcow2");
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    auto_image *image = NULL;
    autofree uint8_t *data = xmalloc(MIB);

    (void)state;
    need_qemu_img();
    for (int point = 0; point < 2; point++) {
        struct sink_options options = {.path = point == 0 ? base : path,
                                       .size_bytes = size,
                                       .backing = point == 0 ? NULL : "large.qcow2"};
        assert_ok(sink_qcow2.open(&options, &sink, &err));
        for (size_t i = 0; i < ARRAY_LEN(places); i++) {
            if (point == 1 && i % 2 == 0)
                assert_ok(sink_qcow2.write_zero(sink, places[i], 3 * MIB, &err));
            else
                assert_ok(sink_qcow2.write(sink, places[i], piece.data, MIB, &err));
        }
        assert_ok(sink_qcow2.finish(sink, &err));
        sink_qcow2.close(sink);
        check_with_qemu(options.path);
        assert_true(file_bytes(options.path) < 8 * MIB);
    }
    assert_ok(image_open(path, "qcow2", &image, &err));
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        assert_ok(image_read(image, data, MIB, places[i], &err));
        assert_true(i % 2 == 0 ? mem_is_zero(data, MIB) : memcmp(data, piece.data, MIB) == 0);
    }
    assert_true(image_is_hole(image, 4 * GIB + 4 * MIB, GIB));
    test_disk_free(&piece);
}

static void empty_and_tiny_images_of_qemu_are_read(void **state)
{
    static const char *const sizes[] = {"0", "512", "1536"};

    (void)state;
    need_qemu_img();
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        autofree char *path = test_path("tiny.qcow2");
        const char *create[] = {QEMU_IMG, "create", "-q", "-f", "qcow2", path, sizes[i], NULL};
        struct error err = ERROR_NONE;
        auto_image *image = NULL;
        uint8_t data[1536];
        assert_int_equal(run_program(create), 0);
        assert_ok(image_open(path, "qcow2", &image, &err));
        assert_int_equal(image_size_bytes(image), strtoul(sizes[i], NULL, 10));
        assert_ok(image_read(image, data, (size_t)image_size_bytes(image), 0, &err));
        assert_true(mem_is_zero(data, (size_t)image_size_bytes(image)));
    }
}

/* ---- what is not allowed ---- */

/* An overlay of ours whose backing name and format are then these. */
static char *overlay_named(const char *file, const char *name, const char *format)
{
    struct test_disk disk = test_disk_make(PATTERN_ZERO, MIB);
    autofree char *base = test_path("b.qcow2");
    char *path = test_path(file);
    struct sink_options options = {.path = path, .size_bytes = MIB, .backing = "b.qcow2"};
    uint8_t area[1024] = {0};
    size_t ext = QCOW2_HEADER_V3_BYTES;
    int fd;

    test_disk_write(&disk, &sink_qcow2, base);
    write_with(&disk, &options);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread_all(fd, area, ext, 0), 0);
    if (format != NULL) {
        put_be32(area + ext, QCOW2_EXT_BACKING_FORMAT);
        put_be32(area + ext + 4, (uint32_t)strlen(format));
        memcpy(area + ext + 8, format, strlen(format));
    }
    put_be64(area + QCOW2_AT_BACKING_OFFSET, 160);
    put_be32(area + QCOW2_AT_BACKING_SIZE, (uint32_t)strlen(name));
    memcpy(area + 160, name, strlen(name));
    assert_int_equal(pwrite_all(fd, area, sizeof area, 0), 0);
    assert_int_equal(close(fd), 0);
    test_disk_free(&disk);
    return path;
}

static void refused(const char *path, const char *root, enum error_code code, const char *part)
{
    struct error err = ERROR_NONE;
    struct image *image = NULL;

    assert_int_equal(image_open_chain(path, "qcow2", root, &image, &err), -1);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%s: %s, expected %s with '%s'", error_code_name(err.code), err.message,
                 error_code_name(code), part);
}

static void backing_files_outside_are_refused(void **state)
{
    static const char *const names[] = {
        "/etc/passwd", "../b.qcow2",     "../../b.qcow2",   "x/b.qcow2",    "..",          ".",
        "nbd:b.qcow2", "json:{\"a\":1}", "../x/../b.qcow2", "./../b.qcow2", "a/../b.qcow2"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        autofree char *path = overlay_named("outside.qcow2", names[i], "qcow2");
        refused(path, NULL, ERR_DENIED, "not allowed");
    }
    autofree char *here = overlay_named("outside.qcow2", "./b.qcow2", "qcow2");
    struct error err = ERROR_NONE;
    auto_image *image = NULL;
    assert_ok(image_open(here, "qcow2", &image, &err));
    assert_string_equal(image_backing_name(image), "./b.qcow2");
    assert_null(image_backing_name(image_backing(image)));
}

static void points_beside_each_other_are_read_below_their_root_only(void **state)
{
    struct test_disk disk = test_disk_make(PATTERN_TEXT, 2 * MIB);
    autofree char *root = realpath(test_dir, NULL);
    autofree char *first = xasprintf("%s/p1", root);
    autofree char *second = xasprintf("%s/p2", root);
    autofree char *link = xasprintf("%s/p3", root);
    autofree char *below = xasprintf("%s/p1/d.qcow2", root);
    autofree char *above = xasprintf("%s/p2/d.qcow2", root);
    struct sink_options options = {
        .path = above, .size_bytes = 2 * MIB, .backing = "../p1/d.qcow2", .backing_root = root};

    (void)state;
    assert_int_equal(mkdir(first, 0700), 0);
    assert_int_equal(mkdir(second, 0700), 0);
    test_disk_write(&disk, &sink_qcow2, below);
    disk.data[MIB] ^= 1;
    write_with(&disk, &options);
    compare_with_us(&disk, above, root);
    compare_with_qemu(&disk, above, "qcow2");
    refused(above, NULL, ERR_DENIED, "not allowed");
    refused(above, first, ERR_DENIED, "does not lie in");
    refused(above, "/", ERR_DENIED, "does not lie in");
    assert_int_equal(rename(first, link), 0);
    assert_int_equal(symlink(link, first), 0);
    refused(above, root, ERR_DENIED, "not allowed"); /* a directory that is a link */
    test_disk_free(&disk);
}

static void links_circles_and_endless_chains_are_refused(void **state)
{
    autofree char *target = test_path("target.qcow2");
    autofree char *link = test_path("link.qcow2");
    autofree char *linked = overlay_named("linked.qcow2", "link.qcow2", "qcow2");
    autofree char *self = overlay_named("self.qcow2", "self.qcow2", "qcow2");
    autofree char *a = overlay_named("a.qcow2", "c.qcow2", "qcow2");
    autofree char *c = overlay_named("c.qcow2", "a.qcow2", "qcow2");
    autofree char *missing = overlay_named("missing.qcow2", "gone.qcow2", "qcow2");
    char name[32] = "b.qcow2";

    (void)state;
    write_file(target, "x", 1);
    assert_int_equal(symlink(target, link), 0);
    refused(linked, NULL, ERR_INTERNAL, "link.qcow2");
    refused(self, NULL, ERR_CORRUPT, "circle");
    refused(a, NULL, ERR_CORRUPT, "circle");
    refused(missing, NULL, ERR_NOT_FOUND, "gone.qcow2");
    for (int i = 1; i <= IMAGE_CHAIN_MAX; i++) {
        char file[32];
        (void)snprintf(file, sizeof file, "deep%d.qcow2", i);
        autofree char *path = overlay_named(file, name, "qcow2");
        if (i == IMAGE_CHAIN_MAX) {
            refused(path, NULL, ERR_LIMIT, "longer than");
        } else {
            struct error err = ERROR_NONE;
            auto_image *image = NULL;
            assert_ok(image_open(path, "qcow2", &image, &err));
        }
        memcpy(name, file, sizeof name);
    }
}

static void damage_below_names_the_image_that_has_it(void **state)
{
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, MIB);
    autofree char *base = test_path("cut0.qcow2");
    autofree char *middle = test_path("cut1.qcow2");
    autofree char *top = test_path("cut2.qcow2");
    struct sink_options options = {.path = middle, .size_bytes = MIB, .backing = "cut0.qcow2"};
    struct error err = ERROR_NONE;
    auto_image *image = NULL;
    autofree uint8_t *data = xmalloc(MIB);
    uint8_t l1[8];

    (void)state;
    test_disk_write(&disk, &sink_qcow2, base);
    write_with(&disk, &options);
    options.path = top;
    options.backing = "cut1.qcow2";
    write_with(&disk, &options);
    int fd = open(base, O_RDWR | O_CLOEXEC);
    assert_int_equal(pread_all(fd, l1, 8, QCOW2_AT_L1_OFFSET), 0);
    assert_int_equal(pwrite_all(fd, "\x80\xff\xff\xff", 4, get_be64(l1)), 0);
    (void)close(fd);
    assert_ok(image_open(top, "qcow2", &image, &err));
    assert_int_equal(image_read(image, data, MIB, 0, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_non_null(strstr(err.message, "cut2.qcow2': backing file '"));
    assert_non_null(strstr(err.message, "cut0.qcow2': disk offset 0"));
    assert_null(strstr(err.message, "cut1.qcow2"));
    test_disk_free(&disk);
}

static void a_backing_file_needs_a_known_format(void **state)
{
    autofree char *none = overlay_named("none.qcow2", "b.qcow2", NULL);
    autofree char *other = overlay_named("other.qcow2", "b.qcow2", "vmdk");
    autofree char *wrong = overlay_named("wrong.qcow2", "b.qcow2", "qcow2");
    uint8_t far[8];

    (void)state;
    refused(none, NULL, ERR_NOT_AVAILABLE, "qemu-img rebase -u -F");
    refused(other, NULL, ERR_NOT_AVAILABLE, "'vmdk'");
    int fd = open(wrong, O_RDWR | O_CLOEXEC);
    put_be64(far, 65000);
    put_be32(far, 0);
    put_be32(far + 4, 60000);
    assert_int_equal(pwrite_all(fd, far, 8, QCOW2_AT_BACKING_OFFSET), 0);
    assert_int_equal(pwrite_all(fd, "\xff\xff\xff\xff", 4, QCOW2_AT_BACKING_SIZE), 0);
    (void)close(fd);
    refused(wrong, NULL, ERR_CORRUPT, "outside of its head");
}

/* Every byte of head and tables flipped on its own, every prefix in steps: an error or some
 * content, never a crash. */
static void damaged_compressed_points_end_in_errors_not_crashes(void **state)
{
    (void)state;
    for (size_t c = 0; c < ARRAY_LEN(codecs); c++) {
        struct test_disk disk = test_disk_make(PATTERN_TEXT, MIB + SECTOR);
        autofree char *base = test_path("dbase.qcow2");
        autofree char *path = test_path("dover.qcow2");
        struct sink_options options = {.path = path,
                                       .size_bytes = disk.size,
                                       .backing = "dbase.qcow2",
                                       .compression = codecs[c]};
        autofree uint8_t *out = xmalloc(disk.size);
        size_t size = 0;
        size_t refusals = 0;
        test_disk_write(&disk, &sink_qcow2, base);
        change(&disk, 77);
        write_with(&disk, &options);
        autofree uint8_t *good = read_file(path, &size);
        for (size_t at = 0; at < 2 * size; at += at < 256 ? 1 : size / 400) {
            struct error err = ERROR_NONE;
            auto_image *image = NULL;
            autofree uint8_t *bad = xmemdup(good, size);
            if (at < size)
                bad[at] ^= 0xff;
            write_file(path, bad, at < size ? size : at - size);
            if (image_open(path, "qcow2", &image, &err) < 0 ||
                image_size_bytes(image) > disk.size ||
                image_read(image, out, (size_t)image_size_bytes(image), 0, &err) < 0)
                refusals++;
        }
        assert_true(refusals > 100);
        test_disk_free(&disk);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compressed_images_hold_the_disk),
        cmocka_unit_test(what_does_not_shrink_takes_no_more_than_without_compression),
        cmocka_unit_test(wrong_compression_is_refused),
        cmocka_unit_test(a_compressed_image_goes_on_from_its_checkpoint),
        cmocka_unit_test(what_was_sent_on_is_neither_needed_nor_touched),
        cmocka_unit_test(a_chain_of_seven_points_holds_the_disk_of_each_time),
        cmocka_unit_test(only_clusters_that_differ_are_written),
        cmocka_unit_test(overlays_of_qemu_are_read),
        cmocka_unit_test(a_backing_file_of_another_size_is_cut_or_filled_with_zeros),
        cmocka_unit_test(large_sparse_images_and_their_points_are_right),
        cmocka_unit_test(empty_and_tiny_images_of_qemu_are_read),
        cmocka_unit_test(backing_files_outside_are_refused),
        cmocka_unit_test(points_beside_each_other_are_read_below_their_root_only),
        cmocka_unit_test(links_circles_and_endless_chains_are_refused),
        cmocka_unit_test(damage_below_names_the_image_that_has_it),
        cmocka_unit_test(a_backing_file_needs_a_known_format),
        cmocka_unit_test(damaged_compressed_points_end_in_errors_not_crashes),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
