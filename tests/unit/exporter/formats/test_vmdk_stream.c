/* The decoder of streamOptimized VMDKs that arrive as a stream: what qemu-img and our own sink
 * write, streams that were cut or damaged anywhere. */
#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/vmdk_stream.h"
#include "tests/unit/exporter/formats/disk_fixture.h"

struct memory {
    const uint8_t *data;
    size_t size;
    size_t at;
};

static int memory_read(void *arg, void *buffer, size_t length, size_t *out_got, struct error *err)
{
    struct memory *memory = arg;
    size_t n = (size_t)min_u64(length, memory->size - memory->at);

    (void)err;
    memcpy(buffer, memory->data + memory->at, n);
    memory->at += n;
    *out_got = n;
    return 0;
}

/* The whole stream into disk, which has its size. */
static int decode(const uint8_t *data, size_t size, struct test_disk *disk, struct error *err)
{
    struct memory memory = {data, size, 0};
    struct vmdk_stream_input input = {memory_read, &memory};
    struct grain_codec *codec = grain_codec_new(0);
    struct vmdk_stream *stream = NULL;
    struct vmdk_grain grain;
    int rc = vmdk_stream_open(&input, &stream, err);

    if (rc == 0 && vmdk_stream_disk_bytes(stream) != disk->size)
        rc = error_set(err, ERR_INVALID, "another capacity");
    memset(disk->data, 0, disk->size);
    while (rc == 0) {
        rc = vmdk_stream_next(stream, &grain, err);
        if (rc <= 0)
            break;
        assert_true(range_is_inside(grain.offset, grain.length, disk->size));
        rc = vmdk_grain_inflate(codec, vmdk_stream_grain_bytes(stream), &grain.packed,
                                disk->data + grain.offset, grain.length, err);
    }
    vmdk_stream_close(stream);
    grain_codec_free(codec);
    return rc;
}

static uint8_t *stream_of(const struct test_disk *disk, bool qemu, size_t *out_size)
{
    autofree char *raw = test_path("disk.raw");
    autofree char *path = test_path("disk.vmdk");
    const char *convert[] = {QEMU_IMG, "convert", "-f", "raw",
                             "-O",     "vmdk",    "-o", "subformat=streamOptimized",
                             raw,      path,      NULL};

    if (qemu) {
        write_file(raw, disk->data, disk->size);
        assert_int_equal(run_program(convert), 0);
    } else {
        test_disk_write(disk, &sink_vmdk, path);
    }
    return read_file(path, out_size);
}

static void same_bytes(bool qemu)
{
    static const size_t sizes[] = {512, 65536, 3 * MIB + 512, 35 * MIB + 3 * 512};
    static const enum pattern patterns[] = {PATTERN_RANDOM, PATTERN_ZERO, PATTERN_SPARSE,
                                            PATTERN_TEXT};

    for (size_t i = 0; i < ARRAY_LEN(sizes) * ARRAY_LEN(patterns); i++) {
        struct error err = ERROR_NONE;
        size_t size = 0;
        struct test_disk disk = test_disk_make(patterns[i % 4], sizes[i / 4]);
        struct test_disk got = {xmalloc(disk.size), disk.size};
        autofree uint8_t *stream = stream_of(&disk, qemu, &size);
        assert_ok(decode(stream, size, &got, &err));
        assert_true(memcmp(got.data, disk.data, disk.size) == 0);
        test_disk_free(&disk);
        test_disk_free(&got);
    }
}

static void test_what_qemu_writes(void **state)
{
    (void)state;
    need_qemu_img();
    same_bytes(true);
}

static void test_what_our_sink_writes(void **state)
{
    (void)state;
    same_bytes(false);
}

/* A small stream with three grains, one of them cut by the disk's end. */
struct sample {
    struct test_disk disk;
    struct test_disk got;
    uint8_t *data;
    size_t size;
};

static struct sample sample_make(bool qemu)
{
    struct sample sample = {.disk = test_disk_make(PATTERN_ZERO, 512 * KIB + 512)};
    uint64_t seed = 7;

    fill_random(sample.disk.data, 3000, &seed);
    fill_random(sample.disk.data + 200000, 900, &seed);
    fill_random(sample.disk.data + 512 * KIB, 512, &seed);
    sample.got = (struct test_disk){xmalloc(sample.disk.size), sample.disk.size};
    sample.data = stream_of(&sample.disk, qemu, &sample.size);
    return sample;
}

static void sample_free(struct sample *sample)
{
    test_disk_free(&sample->disk);
    test_disk_free(&sample->got);
    free(sample->data);
}

/* Where the last record's bytes end: behind it qemu-img leaves zeros. */
static size_t used_bytes(const struct sample *sample)
{
    size_t end = sample->size;

    while (end > 0 && sample->data[end - 1] == 0)
        end--;
    return end;
}

static void cut_anywhere(bool qemu)
{
    struct sample sample = sample_make(qemu);
    size_t end = qemu ? used_bytes(&sample) : sample.size;

    for (size_t size = 0; size < end; size += size % 512 == 0 ? 511 : 1) {
        struct error err = ERROR_NONE;
        assert_int_equal(decode(sample.data, size, &sample.got, &err), -1);
        if (err.code != ERR_UNAVAILABLE)
            fail_msg("cut at %zu: %s", size, err.message);
    }
    sample_free(&sample);
}

static void test_a_cut_stream_is_never_complete(void **state)
{
    (void)state;
    cut_anywhere(false);
}

static void test_a_cut_stream_of_qemu_is_never_complete(void **state)
{
    (void)state;
    need_qemu_img();
    cut_anywhere(true);
}

/* One changed byte: refused, or one that means nothing. */
static void changed_anywhere(bool qemu)
{
    static const uint8_t masks[] = {0x01, 0x80, 0xff, 0x10};
    struct sample sample = sample_make(qemu);
    size_t refused = 0;

    for (size_t at = 0; at < sample.size; at++) {
        struct error err = ERROR_NONE;
        uint8_t mask = masks[at % 4];
        if (at > 2048 && at < 60000 && sample.data[at] == 0 && at % 67 != 0)
            continue; /* padding in front of the grains: a part of it is enough */
        sample.data[at] ^= mask;
        if (decode(sample.data, sample.size, &sample.got, &err) < 0) {
            refused++;
        } else if (memcmp(sample.got.data, sample.disk.data, sample.disk.size) != 0) {
            fail_msg("byte %zu changed: other bytes were believed", at);
        }
        sample.data[at] ^= mask;
    }
    assert_true(refused > 4000);
    sample_free(&sample);
}

static void test_a_changed_byte_is_never_believed(void **state)
{
    (void)state;
    changed_anywhere(false);
}

static void test_a_changed_byte_of_qemus_is_never_believed(void **state)
{
    (void)state;
    need_qemu_img();
    changed_anywhere(true);
}

/* Offset of the first marker of that type; of grains: of the index'th. */
static size_t find_marker(const struct sample *sample, uint32_t type, size_t grain)
{
    size_t at = (size_t)get_le64(sample->data + VMDK_AT_OVERHEAD) * SECTOR;

    while (at + SECTOR <= sample->size) {
        uint32_t size = get_le32(sample->data + at + 8);
        if (size > 0 && type == UINT32_MAX && grain-- == 0)
            return at;
        if (size > 0) {
            at += (size_t)round_up_u64(VMDK_RECORD_HEADER + size, SECTOR);
            continue;
        }
        if (get_le32(sample->data + at + 12) == type)
            return at;
        at += SECTOR + (size_t)get_le64(sample->data + at) * SECTOR;
    }
    fail_msg("no such marker");
    return 0;
}

static void refused(struct sample *sample, enum error_code code, const char *words)
{
    struct error err = ERROR_NONE;

    assert_int_equal(decode(sample->data, sample->size, &sample->got, &err), -1);
    if (err.code != code || strstr(err.message, words) == NULL)
        fail_msg("%s: %s, wanted '%s'", error_code_name(err.code), err.message, words);
    sample_free(sample);
    *sample = sample_make(false);
}

static void test_wrong_fields_are_refused(void **state)
{
    struct sample sample = sample_make(false);
    size_t second = find_marker(&sample, UINT32_MAX, 1);
    size_t table = find_marker(&sample, VMDK_MARKER_TABLE, 0);
    size_t directory = find_marker(&sample, VMDK_MARKER_DIRECTORY, 0);
    size_t footer = find_marker(&sample, VMDK_MARKER_FOOTER, 0);

    (void)state;
    put_le32(sample.data, 1);
    refused(&sample, ERR_CORRUPT, "not that of a sparse VMDK");
    put_le32(sample.data + VMDK_AT_FLAGS, 1);
    refused(&sample, ERR_NOT_AVAILABLE, "no streamOptimized one");
    put_le16(sample.data + VMDK_AT_COMPRESSION, 2);
    refused(&sample, ERR_NOT_AVAILABLE, "compression");
    put_le64(sample.data + VMDK_AT_OVERHEAD, UINT64_C(1) << 40);
    refused(&sample, ERR_LIMIT, "begin at sector");
    memcpy(strstr((char *)sample.data + SECTOR, "parentCID=") + 10, "12345678", 8);
    refused(&sample, ERR_NOT_AVAILABLE, "delta");
    put_le64(sample.data + second, 0);
    refused(&sample, ERR_CORRUPT, "behind later ones");
    put_le64(sample.data + second, 7);
    refused(&sample, ERR_CORRUPT, "a grain is for sector 7");
    put_le64(sample.data + second, 128 * 1000);
    refused(&sample, ERR_CORRUPT, "a grain is for sector");
    put_le32(sample.data + second + 8, 1 << 30);
    refused(&sample, ERR_CORRUPT, "bytes");
    put_le64(sample.data + table, 5);
    refused(&sample, ERR_CORRUPT, "grain table 1 of 1 has 5 sectors");
    put_le32(sample.data + table + SECTOR + 4, 130); /* one more grain */
    refused(&sample, ERR_CORRUPT, "name 4 grains");
    put_le64(sample.data + directory, 0);
    refused(&sample, ERR_CORRUPT, "directory has 0 sectors");
    put_le32(sample.data + directory + SECTOR, 0);
    refused(&sample, ERR_CORRUPT, "directory names 0 tables");
    put_le64(sample.data + footer + SECTOR + VMDK_AT_CAPACITY, 4096);
    refused(&sample, ERR_CORRUPT, "footer does not fit");
    put_le32(sample.data + footer + 12, 9);
    refused(&sample, ERR_CORRUPT, "type 9");
    memset(sample.data + second, 0, SECTOR);
    refused(&sample, ERR_CORRUPT, "too early");
    sample.data[sample.size - SECTOR] = 1; /* of the end marker */
    refused(&sample, ERR_CORRUPT, "type 0");
    sample_free(&sample);
}

static void test_only_zeros_may_follow_the_end(void **state)
{
    struct sample sample = sample_make(false);
    struct error err = ERROR_NONE;

    (void)state;
    sample.data = xrealloc(sample.data, sample.size + 1000);
    memset(sample.data + sample.size, 0, 1000);
    assert_ok(decode(sample.data, sample.size + 1000, &sample.got, &err));
    sample.data[sample.size + 999] = 1;
    assert_int_equal(decode(sample.data, sample.size + 1000, &sample.got, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    sample_free(&sample);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_qemu_writes),
        cmocka_unit_test(test_what_our_sink_writes),
        cmocka_unit_test(test_a_cut_stream_is_never_complete),
        cmocka_unit_test(test_a_cut_stream_of_qemu_is_never_complete),
        cmocka_unit_test(test_a_changed_byte_is_never_believed),
        cmocka_unit_test(test_a_changed_byte_of_qemus_is_never_believed),
        cmocka_unit_test(test_wrong_fields_are_refused),
        cmocka_unit_test(test_only_zeros_may_follow_the_end),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
