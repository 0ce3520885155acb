/* Every output format against qemu-img: content, structure, order of pieces, resume. */
#include <stdatomic.h>

#include "services/exporter/formats/digest.h"
#include "tests/unit/exporter/formats/disk_fixture.h"

#include <openssl/evp.h>

struct shape {
    const char *name;
    enum pattern pattern;
    size_t size;
};

static const struct shape shapes[] = {
    {"random", PATTERN_RANDOM, 5 * MIB},
    {"all zero", PATTERN_ZERO, 40 * MIB},
    {"sparse over two grain tables", PATTERN_SPARSE, 70 * MIB},
    {"text", PATTERN_TEXT, 3 * MIB},
    {"one sector", PATTERN_RANDOM, SECTOR},
    {"odd size", PATTERN_RANDOM, 2 * MIB + 3 * SECTOR},
    {"odd text", PATTERN_TEXT, 33 * MIB + 65536 + SECTOR},
};

static const struct sink_format *const all_formats[] = {&sink_raw, &sink_qcow2, &sink_vmdk,
                                                        &sink_zst};

static void every_format_holds_the_disk_as_qemu_reads_it(void **state)
{
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        for (size_t s = 0; s < ARRAY_LEN(shapes); s++) {
            struct test_disk disk = test_disk_make(shapes[s].pattern, shapes[s].size);
            autofree char *path = test_path("out.img");
            print_message("%s: %s\n", all_formats[f]->name, shapes[s].name);
            test_disk_write(&disk, all_formats[f], path);
            compare_with_qemu(&disk, path, all_formats[f]->name);
            (void)unlink(path);
            test_disk_free(&disk);
        }
    }
}

static void sink_format_find_knows_its_names_only(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++)
        assert_ptr_equal(sink_format_find(all_formats[f]->name), all_formats[f]);
    assert_null(sink_format_find("vhdx"));
    assert_null(sink_format_find(""));
}

static void zero_disks_take_no_space(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        struct test_disk disk = test_disk_make(PATTERN_ZERO, 64 * MIB);
        autofree char *path = test_path("zero.img");
        struct stat st;
        test_disk_write(&disk, all_formats[f], path);
        assert_int_equal(stat(path, &st), 0);
        assert_true((uint64_t)st.st_blocks * 512 < MIB);
        (void)unlink(path);
        test_disk_free(&disk);
    }
}

struct parallel {
    const struct sink_format *format;
    struct sink *sink;
    const struct test_disk *disk;
    const uint64_t *order;
    size_t count;
    atomic_size_t next;
    atomic_int failures;
};

static void *deliver_thread(void *arg)
{
    struct parallel *p = arg;
    for (;;) {
        struct error err = ERROR_NONE;
        size_t i = atomic_fetch_add(&p->next, 1);
        if (i >= p->count)
            return NULL;
        if (deliver_piece(p->format, p->sink, p->disk, p->order[i], &err) < 0)
            atomic_fetch_add(&p->failures, 1);
    }
}

static void pieces_may_come_in_any_order_from_four_threads(void **state)
{
    static const struct sink_format *const unordered[] = {&sink_raw, &sink_qcow2};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(unordered); f++) {
        struct test_disk disk = test_disk_make(PATTERN_SPARSE, 50 * MIB + SECTOR);
        autofree char *path = test_path("parallel.img");
        struct error err = ERROR_NONE;
        struct sink_options options = {.path = path, .size_bytes = disk.size, .file_name = "x"};
        size_t count = (disk.size + SINK_PIECE_BYTES - 1) / SINK_PIECE_BYTES;
        autofree uint64_t *order = xcalloc(count, sizeof *order);
        uint64_t seed = 42;
        pthread_t threads[4];
        struct parallel p = {.format = unordered[f], .disk = &disk, .order = order, .count = count};

        for (size_t i = 0; i < count; i++)
            order[i] = i * SINK_PIECE_BYTES;
        for (size_t i = count - 1; i > 0; i--) {
            size_t j = test_random(&seed) % (i + 1);
            uint64_t t = order[i];
            order[i] = order[j];
            order[j] = t;
        }
        assert_ok(p.format->open(&options, &p.sink, &err));
        for (size_t i = 0; i < ARRAY_LEN(threads); i++)
            assert_int_equal(pthread_create(&threads[i], NULL, deliver_thread, &p), 0);
        for (size_t i = 0; i < ARRAY_LEN(threads); i++)
            assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(atomic_load(&p.failures), 0);
        assert_ok(p.format->finish(p.sink, &err));
        p.format->close(p.sink);
        compare_with_qemu(&disk, path, p.format->name);
        test_disk_free(&disk);
    }
}

/* A child writes up to `stop` pieces, with a checkpoint after `checkpoint` of them, and dies as by
 * kill -9. Returns the checkpoint's text. */
static char *crash_after(const struct sink_format *format, const struct test_disk *disk,
                         const char *path, size_t checkpoint, size_t stop, bool finish)
{
    int fds[2];
    char text[SINK_STATE_BYTES_MAX + 1] = {0};
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct error err = ERROR_NONE;
        struct sink *sink = NULL;
        struct sink_options options = {.path = path, .size_bytes = disk->size, .file_name = "x"};
        struct strbuf sb;
        strbuf_init(&sb, SINK_STATE_BYTES_MAX);
        if (format->open(&options, &sink, &err) < 0)
            _exit(1);
        for (size_t i = 0; i <= stop; i++) {
            if (i == checkpoint &&
                (format->state(sink, &sb, &err) < 0 || format->sync(sink, &err) < 0 ||
                 write_all(fds[1], sb.data, sb.length) < 0))
                _exit(2);
            if (i < stop && i * SINK_PIECE_BYTES < disk->size &&
                deliver_piece(format, sink, disk, i * SINK_PIECE_BYTES, &err) < 0)
                _exit(3);
        }
        if (finish && format->finish(sink, &err) < 0)
            _exit(4);
        _exit(0);
    }
    (void)close(fds[1]);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_true(read(fds[0], text, sizeof text - 1) > 0);
    (void)close(fds[0]);
    return xstrdup(text);
}

static void resume_and_compare(const struct sink_format *format, const struct test_disk *disk,
                               const char *path, const char *text, size_t from)
{
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct sink_options options = {.path = path,
                                   .size_bytes = disk->size,
                                   .file_name = "x",
                                   .resume = text,
                                   .resume_offset = min_u64(from * SINK_PIECE_BYTES, disk->size)};
    char sha[65];

    assert_ok(format->open(&options, &sink, &err));
    for (uint64_t at = from * SINK_PIECE_BYTES; at < disk->size; at += SINK_PIECE_BYTES)
        assert_ok(deliver_piece(format, sink, disk, at, &err));
    assert_ok(format->finish(sink, &err));
    assert_false(format->file_sha256(sink, sha));
    format->close(sink);
    compare_with_qemu(disk, path, format->name);
}

static void a_killed_writer_is_resumed_from_its_checkpoint(void **state)
{
    static const size_t cases[][2] = {{0, 0}, {0, 7}, {5, 5}, {20, 36}, {33, 60}, {71, 71}};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
            struct test_disk disk = test_disk_make(PATTERN_SPARSE, 70 * MIB + 5 * SECTOR);
            autofree char *path = test_path("resumed.img");
            autofree char *text =
                crash_after(all_formats[f], &disk, path, cases[c][0], cases[c][1], false);
            print_message("%s: %s\n", all_formats[f]->name, text);
            resume_and_compare(all_formats[f], &disk, path, text, cases[c][0]);
            test_disk_free(&disk);
        }
    }
}

static void a_crash_after_finish_is_finished_again(void **state)
{
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        struct test_disk disk = test_disk_make(PATTERN_SPARSE, 9 * MIB);
        autofree char *path = test_path("again.img");
        autofree char *text = crash_after(all_formats[f], &disk, path, 9, 9, true);
        resume_and_compare(all_formats[f], &disk, path, text, 9);
        test_disk_free(&disk);
    }
}

/* Takes what is final out of the file, goes on without it, puts it back: the image is whole. */
static void go_on_without_front(const struct sink_format *format, const struct test_disk *disk,
                                const size_t *pieces)
{
    autofree char *path = test_path("sent-on.img");
    struct sink_options options = {
        .path = path, .size_bytes = disk->size, .file_name = "x", .sent_on = true};
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    size_t size = 0;
    char sha256[DIGEST_HEX_SIZE];
    struct strbuf sb;

    strbuf_init(&sb, SINK_STATE_BYTES_MAX);
    assert_ok(format->open(&options, &sink, &err));
    uint64_t final = 0;
    for (size_t i = 0; i < pieces[2]; i++) {
        if (i == pieces[1]) {
            final = format->final(sink, pieces[0] * SINK_PIECE_BYTES);
            assert_ok(format->state(sink, &sb, &err));
            assert_ok(format->sync(sink, &err));
        }
        assert_ok(deliver_piece(format, sink, disk, i * SINK_PIECE_BYTES, &err));
    }
    format->close(sink);
    autofree uint8_t *front = read_file(path, &size);
    assert_true(final > 0 && final <= size);
    autofree uint8_t *zeros = xcalloc(1, (size_t) final);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite_all(fd, zeros, (size_t) final, 0), 0);

    options.resume = sb.data;
    options.resume_offset = pieces[0] * SINK_PIECE_BYTES;
    assert_ok(format->open(&options, &sink, &err));
    assert_int_equal(format->final(sink, options.resume_offset), final);
    for (uint64_t at = options.resume_offset; at < disk->size; at += SINK_PIECE_BYTES)
        assert_ok(deliver_piece(format, sink, disk, at, &err));
    assert_ok(format->finish(sink, &err));
    /* the digest of a VMDK survives: as a member of an OVA it cannot be read back */
    assert_true(format->file_sha256(sink, sha256) == (format == &sink_vmdk));
    format->close(sink);
    assert_int_equal(pwrite_all(fd, front, (size_t) final, 0), 0);
    assert_int_equal(close(fd), 0);
    compare_with_qemu(disk, path, format->name);
    if (format == &sink_vmdk) {
        char wanted[DIGEST_HEX_SIZE];
        assert_int_equal(file_sha256(path, wanted, &err), 0);
        assert_string_equal(sha256, wanted);
    }
    strbuf_release(&sb);
}

/* Pieces: where the pipeline goes on from, where the checkpoint was made, where it died. */
static void what_was_sent_on_is_not_needed_to_go_on(void **state)
{
    static const struct sink_format *const formats[] = {&sink_raw, &sink_vmdk, &sink_zst};
    static const size_t cases[][3] = {{5, 5, 6},     {31, 34, 40}, {32, 32, 33}, {32, 33, 70},
                                      {40, 66, 100}, {64, 90, 97}, {96, 96, 98}};
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 101 * MIB + 5 * SECTOR);

    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(formats); f++) {
        for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
            print_message("%s: case %zu\n", formats[f]->name, c);
            go_on_without_front(formats[f], &disk, cases[c]);
        }
    }
    test_disk_free(&disk);
}

static void an_index_that_does_not_fit_is_refused(void **state)
{
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 70 * MIB);
    autofree char *path = test_path("index.img");
    autofree char *index = test_path("index.img.index");
    struct sink_options options = {
        .path = path, .size_bytes = disk.size, .file_name = "x", .sent_on = true};
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct strbuf sb;

    (void)state;
    strbuf_init(&sb, SINK_STATE_BYTES_MAX);
    assert_ok(sink_vmdk.open(&options, &sink, &err));
    for (uint64_t at = 0; at < 68 * MIB; at += SINK_PIECE_BYTES)
        assert_ok(deliver_piece(&sink_vmdk, sink, &disk, at, &err));
    assert_ok(sink_vmdk.state(sink, &sb, &err));
    sink_vmdk.close(sink);
    options.resume = sb.data;
    options.resume_offset = 68 * MIB;
    assert_int_equal(truncate(index, 16), 0);
    assert_int_equal(sink_vmdk.open(&options, &sink, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_non_null(strstr(err.message, "index ends before"));
    assert_int_equal(unlink(index), 0);
    error_clear(&err);
    assert_int_equal(sink_vmdk.open(&options, &sink, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    strbuf_release(&sb);
    test_disk_free(&disk);
}

static void qcow2_takes_a_piece_again_after_a_resume(void **state)
{
    (void)state;
    need_qemu_img();
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 9 * MIB);
    autofree char *path = test_path("repeat.img");
    autofree char *text = crash_after(&sink_qcow2, &disk, path, 6, 8, false);
    memset(disk.data, 0, 2 * MIB); /* and with other content: the last word counts */
    resume_and_compare(&sink_qcow2, &disk, path, text, 0);
    test_disk_free(&disk);
}

static void a_checkpoint_of_another_file_is_refused(void **state)
{
    static const char *const bad[] = {"",
                                      "raw1",
                                      "nonsense size=1",
                                      "zst1 size=9437184 end=9999999 next=4194304 level=3",
                                      "zst1 size=9437184 end=99 next=4194304 level=3",
                                      "raw1 size=512",
                                      "qcow2-1 size=9437184 next=7",
                                      "vmdk1 size=9437184 end=65536",
                                      "qcow2-1 size=9437184 next=9999999999999",
                                      "vmdk1 size=9437184 end=66048 next=9437184",
                                      "vmdk1 size=9437184 end=99999744 next=0"};
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        struct test_disk disk = test_disk_make(PATTERN_RANDOM, 9 * MIB);
        autofree char *path = test_path("other.img");
        autofree char *text = crash_after(all_formats[f], &disk, path, 4, 4, false);
        for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
            struct error err = ERROR_NONE;
            struct sink *sink = NULL;
            struct sink_options options = {.path = path,
                                           .size_bytes = disk.size,
                                           .file_name = "x",
                                           .resume = bad[i],
                                           .resume_offset = 4 * MIB};
            assert_int_equal(all_formats[f]->open(&options, &sink, &err), -1);
            assert_true(err.code == ERR_CORRUPT || err.code == ERR_INVALID);
        }
        struct error err = ERROR_NONE;
        struct sink *sink = NULL;
        struct sink_options options = {
            .path = path, .size_bytes = disk.size + 512, .file_name = "x", .resume = text};
        assert_int_equal(all_formats[f]->open(&options, &sink, &err), -1);
        assert_int_equal(err.code, ERR_CORRUPT);
        test_disk_free(&disk);
    }
}

static void a_resume_without_the_file_says_so(void **state)
{
    (void)state;
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    autofree char *path = test_path("missing.img");
    struct sink_options options = {
        .path = path, .size_bytes = 512, .file_name = "x", .resume = "raw1 size=512"};
    assert_int_equal(sink_raw.open(&options, &sink, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void a_damaged_index_is_refused_on_resume(void **state)
{
    (void)state;
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 4 * MIB);
    autofree char *path = test_path("damaged.img");
    autofree char *index = test_path("damaged.img.index");
    autofree char *text = crash_after(&sink_qcow2, &disk, path, 4, 4, false);
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct sink_options options = {
        .path = path, .size_bytes = disk.size, .file_name = "x", .resume = text};
    uint8_t entry[8];
    int fd = open(index, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread_all(fd, entry, 8, 4096), 0);
    assert_int_equal(pwrite_all(fd, entry, 8, 4096 + 8), 0); /* a cluster used twice */
    (void)close(fd);
    assert_int_equal(sink_qcow2.open(&options, &sink, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    test_disk_free(&disk);
}

static void vmdk_digest_is_that_of_the_file(void **state)
{
    (void)state;
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, 40 * MIB);
    autofree char *path = test_path("digest.vmdk");
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct sink_options options = {.path = path,
                                   .size_bytes = disk.size,
                                   .file_name = "evil\"\nname.vmdk",
                                   .uuid = "4210f6a1-0c3e-7d5b-2a6f-b1c2d3e4f506"};
    uint8_t raw[32];
    char expected[65];
    char sha[65];
    size_t size = 0;

    assert_ok(sink_vmdk.open(&options, &sink, &err));
    for (uint64_t at = 0; at < disk.size; at += SINK_PIECE_BYTES)
        assert_ok(deliver_piece(&sink_vmdk, sink, &disk, at, &err));
    assert_false(sink_vmdk.file_sha256(sink, sha));
    assert_ok(sink_vmdk.finish(sink, &err));
    assert_true(sink_vmdk.file_sha256(sink, sha));
    sink_vmdk.close(sink);
    autofree uint8_t *data = read_file(path, &size);
    assert_int_equal(EVP_Digest(data, size, raw, NULL, EVP_sha256(), NULL), 1);
    hex_encode(raw, sizeof raw, expected);
    assert_string_equal(sha, expected);
    data[511 + 20 * 512] = '\0';
    assert_non_null(strstr((char *)data + 512, "SPARSE \"evil__name.vmdk\"\n"));
    assert_non_null(strstr((char *)data + 512, "CID=53e4f506\n"));
    test_disk_free(&disk);
}

static void vmdk_refuses_pieces_out_of_order(void **state)
{
    (void)state;
    struct test_disk disk = test_disk_make(PATTERN_RANDOM, 3 * MIB);
    autofree char *path = test_path("order.vmdk");
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct sink_options options = {.path = path, .size_bytes = disk.size, .file_name = "x"};
    assert_ok(sink_vmdk.open(&options, &sink, &err));
    assert_ok(deliver_piece(&sink_vmdk, sink, &disk, MIB, &err));
    assert_int_equal(deliver_piece(&sink_vmdk, sink, &disk, 0, &err), -1);
    assert_int_equal(err.code, ERR_INTERNAL);
    sink_vmdk.close(sink);
    test_disk_free(&disk);
}

static void every_compression_level_gives_the_same_disk(void **state)
{
    (void)state;
    need_qemu_img();
    for (int level = 0; level <= 9; level++) {
        struct test_disk disk = test_disk_make(level % 2 ? PATTERN_TEXT : PATTERN_RANDOM, 2 * MIB);
        autofree char *path = test_path("level.vmdk");
        struct error err = ERROR_NONE;
        struct sink *sink = NULL;
        struct sink_options options = {
            .path = path, .size_bytes = disk.size, .file_name = "x", .compression_level = level};
        assert_ok(sink_vmdk.open(&options, &sink, &err));
        for (uint64_t at = 0; at < disk.size; at += SINK_PIECE_BYTES)
            assert_ok(deliver_piece(&sink_vmdk, sink, &disk, at, &err));
        assert_ok(sink_vmdk.finish(sink, &err));
        sink_vmdk.close(sink);
        compare_with_qemu(&disk, path, "vmdk");
        test_disk_free(&disk);
    }
}

static void wrong_options_are_refused(void **state)
{
    static const struct {
        uint64_t size;
        int level;
        const char *uuid;
        enum error_code code;
    } cases[] = {
        {0, 0, NULL, ERR_INVALID},
        {513, 0, NULL, ERR_INVALID},
        {65 * 1024 * GIB, 0, NULL, ERR_LIMIT},
        {512, 10, NULL, ERR_INVALID},
        {512, -1, NULL, ERR_INVALID},
    };
    (void)state;
    autofree char *path = test_path("options.img");
    for (size_t f = 0; f < ARRAY_LEN(all_formats); f++) {
        for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
            struct error err = ERROR_NONE;
            struct sink *sink = NULL;
            struct sink_options options = {.path = path,
                                           .size_bytes = cases[i].size,
                                           .file_name = "x",
                                           .compression_level = cases[i].level};
            assert_int_equal(all_formats[f]->open(&options, &sink, &err), -1);
            assert_int_equal(err.code, cases[i].code);
        }
    }
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct sink_options options = {
        .path = path, .size_bytes = 512, .file_name = "x", .uuid = "not-a-uuid"};
    assert_int_equal(sink_vmdk.open(&options, &sink, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
}

static void a_full_disk_is_a_limit_not_a_crash(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0) {
        print_message("SKIP: no /dev/full\n");
        skip();
    }
    struct error err = ERROR_NONE;
    struct sink *sink = NULL;
    struct sink_options options = {.path = "/dev/full", .size_bytes = MIB, .file_name = "x"};
    assert_int_equal(sink_vmdk.open(&options, &sink, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sink_format_find_knows_its_names_only),
        cmocka_unit_test(every_format_holds_the_disk_as_qemu_reads_it),
        cmocka_unit_test(zero_disks_take_no_space),
        cmocka_unit_test(pieces_may_come_in_any_order_from_four_threads),
        cmocka_unit_test(a_killed_writer_is_resumed_from_its_checkpoint),
        cmocka_unit_test(a_crash_after_finish_is_finished_again),
        cmocka_unit_test(what_was_sent_on_is_not_needed_to_go_on),
        cmocka_unit_test(an_index_that_does_not_fit_is_refused),
        cmocka_unit_test(qcow2_takes_a_piece_again_after_a_resume),
        cmocka_unit_test(a_checkpoint_of_another_file_is_refused),
        cmocka_unit_test(a_resume_without_the_file_says_so),
        cmocka_unit_test(a_damaged_index_is_refused_on_resume),
        cmocka_unit_test(vmdk_digest_is_that_of_the_file),
        cmocka_unit_test(vmdk_refuses_pieces_out_of_order),
        cmocka_unit_test(every_compression_level_gives_the_same_disk),
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(a_full_disk_is_a_limit_not_a_crash),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
