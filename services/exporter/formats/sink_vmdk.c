/* streamOptimized VMDK, version 3, 64 KiB grains, written front to back.
 *
 * Design notes
 * - encode() turns a piece into finished grain records on the reader's thread; write_encoded() only
 *   appends them and notes where they stand. All-zero grains are left out.
 * - Nothing is ever patched: the header says "directory at end", tables follow the 32 MiB they
 *   describe, the footer comes last. So the SHA-256 of the file is made while writing.
 * - The state of a checkpoint is the end of the file and the disk offset reached. A resume cuts the
 *   file there, or before where the pipeline goes on from, and walks the records from the front (16
 *   small reads per MiB) to get the directory and the open table back; that needs no side file and
 *   proves the records at the same time.
 * - An image that is sent on loses its front meanwhile. Then the index (sink_file.h) has an entry
 *   for each table that is closed, and the walk begins with the records of the first one that is
 *   open. How the SHA-256 stands there is in the entry, or in the state: so it survives. */
#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>

#include "common/id.h"
#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/grain_codec.h"
#include "services/exporter/formats/sink_file.h"
#include "services/exporter/formats/vmdk.h"
#include "services/exporter/formats/running_sha256.h"

#define OVERHEAD_SECTORS       128U
#define DESCRIPTOR_SECTOR      1U
#define DESCRIPTOR_SECTORS     20U
#define FORMAT_VERSION         3U
#define GEOMETRY_HEADS         255U
#define GEOMETRY_SECTORS       63U
#define GEOMETRY_CYLINDERS_MAX 65535U
#define STATE_TAG              "vmdk2"
/* Span, its first record, its table, as sectors; zero; the SHA-256 before that record. */
#define INDEX_ENTRY_BYTES  (16U + DIGEST_BYTES)
#define RESUME_READ_BYTES  ((size_t)MIB)
#define INDEX_ENTRIES_STEP 256U
#define NO_SPAN            UINT64_MAX

struct sink {
    int fd;
    uint64_t base; /* the image begins there in the file; all other offsets count from it */
    uint64_t size_bytes;
    uint64_t pos;  /* end of the image */
    uint64_t next; /* disk offset that the next piece must not be below */
    uint64_t span; /* whose table is open; NO_SPAN: none */
    uint32_t table[VMDK_TABLE_ENTRIES];
    uint32_t *directory;
    uint64_t directory_count;
    struct sink_index index; /* only when it is sent on */
    uint32_t *begins;        /* of the spans whose tables are closed: the first record; likewise */
    uint64_t open_begin;     /* of the span whose table is open */
    uint8_t open_sha256[DIGEST_BYTES]; /* how the SHA-256 stood there */
    struct grain_codec *codec;
    struct running_sha256 *digest; /* NULL after a resume, unless it is sent on */
    char sha256[DIGEST_HEX_SIZE];  /* empty until finished */
    struct writeback writeback;
};

static void vmdk_close(struct sink *sink)
{
    if (sink == NULL)
        return;
    writeback_release(&sink->writeback);
    grain_codec_free(sink->codec);
    running_sha256_free(sink->digest);
    free(sink->directory);
    free(sink->begins);
    sink_index_close(&sink->index);
    if (sink->fd >= 0)
        (void)close(sink->fd);
    free(sink);
}
DEFINE_AUTO(sink, struct sink, vmdk_close)

static int append(struct sink *sink, const void *data, size_t size, struct error *err)
{
    if (pwrite_all(sink->fd, data, size, sink->base + sink->pos) < 0)
        return error_set_errno(err, errno, "cannot write VMDK at offset %" PRIu64, sink->pos);
    if (sink->digest != NULL)
        running_sha256_add(sink->digest, data, size);
    writeback_wrote(&sink->writeback, sink->base + sink->pos, size);
    sink->pos += size;
    return 0;
}

static void header_fill(const struct sink *sink, uint64_t directory_offset, uint8_t *header)
{
    static const uint8_t newline_test[] = {'\n', ' ', '\r', '\n'};

    memset(header, 0, VMDK_SECTOR);
    put_le32(header + VMDK_AT_MAGIC, VMDK_MAGIC);
    put_le32(header + VMDK_AT_VERSION, FORMAT_VERSION);
    put_le32(header + VMDK_AT_FLAGS,
             VMDK_FLAG_NEWLINE_TEST | VMDK_FLAG_COMPRESSED | VMDK_FLAG_MARKERS);
    put_le64(header + VMDK_AT_CAPACITY, sink->size_bytes / VMDK_SECTOR);
    put_le64(header + VMDK_AT_GRAIN_SIZE, VMDK_GRAIN_SECTORS);
    put_le64(header + VMDK_AT_DESCRIPTOR_OFFSET, DESCRIPTOR_SECTOR);
    put_le64(header + VMDK_AT_DESCRIPTOR_SIZE, DESCRIPTOR_SECTORS);
    put_le32(header + VMDK_AT_TABLE_ENTRIES, VMDK_TABLE_ENTRIES);
    put_le64(header + VMDK_AT_GD_OFFSET, directory_offset);
    put_le64(header + VMDK_AT_OVERHEAD, OVERHEAD_SECTORS);
    memcpy(header + VMDK_AT_NEWLINE_TEST, newline_test, sizeof newline_test);
    put_le16(header + VMDK_AT_COMPRESSION, VMDK_COMPRESS_DEFLATE);
}

/* 16 bytes of identity: the given UUID, else random ones. */
static int identity(const char *uuid, uint8_t out[16], struct error *err)
{
    char hex[33];
    size_t n = 0;

    if (uuid == NULL || uuid[0] == '\0') {
        random_bytes(out, 16);
        return 0;
    }
    for (const char *p = uuid; *p != '\0' && n < sizeof hex; p++) {
        if (*p != '-')
            hex[n++] = *p;
    }
    if (n == 32) {
        hex[32] = '\0';
        if (hex_decode(hex, out, 16))
            return 0;
    }
    return error_set(err, ERR_INVALID, "'%.64s' is not a UUID", uuid);
}

/* The extent's file name: no quotes, no line ends. */
static void add_extent_name(struct strbuf *sb, const char *name)
{
    for (const char *p = name; *p != '\0'; p++)
        strbuf_addc(sb, (char)((unsigned char)*p < 0x20 || *p == '"' ? '_' : *p));
}

static int descriptor_make(const struct sink_options *options, struct strbuf *sb, struct error *err)
{
    uint64_t sectors = options->size_bytes / VMDK_SECTOR;
    uint64_t cylinders = sectors / (GEOMETRY_HEADS * GEOMETRY_SECTORS);
    uint8_t id[16];
    char hex[33];

    if (identity(options->uuid, id, err) < 0)
        return -1;
    id[12] &= 0x7f; /* a CID of all ones would mean "no parent" */
    hex_encode(id, sizeof id, hex);
    strbuf_addf(sb, "# Disk DescriptorFile\nversion=1\nCID=%s\nparentCID=ffffffff\n", hex + 24);
    strbuf_addf(sb,
                "createType=\"streamOptimized\"\n\n# Extent description\nRW %" PRIu64 " SPARSE \"",
                sectors);
    add_extent_name(sb, options->file_name);
    strbuf_add(sb, "\"\n\n# The Disk Data Base\n#DDB\n\n");
    strbuf_add(sb, "ddb.adapterType = \"lsilogic\"\n");
    strbuf_addf(sb, "ddb.geometry.cylinders = \"%" PRIu64 "\"\n",
                max_u64(1, min_u64(cylinders, GEOMETRY_CYLINDERS_MAX)));
    strbuf_addf(sb, "ddb.geometry.heads = \"%u\"\nddb.geometry.sectors = \"%u\"\n", GEOMETRY_HEADS,
                GEOMETRY_SECTORS);
    strbuf_addf(sb, "ddb.longContentID = \"%s\"\nddb.uuid = \"", hex);
    for (size_t i = 0; i < sizeof id; i++)
        strbuf_addf(sb, "%s%02x", i == 0 ? "" : i == 8 ? "-" : " ", id[i]);
    strbuf_add(sb, "\"\nddb.virtualHWVersion = \"10\"\n");
    return 0;
}

static int start_file(struct sink *sink, const struct sink_options *options, struct error *err)
{
    uint8_t front[OVERHEAD_SECTORS * VMDK_SECTOR] = {0};
    auto_strbuf descriptor;

    strbuf_init(&descriptor, DESCRIPTOR_SECTORS * VMDK_SECTOR);
    if (descriptor_make(options, &descriptor, err) < 0)
        return -1;
    if (descriptor.overflowed) {
        return error_set(err, ERR_LIMIT, "file name '%.64s...' is too long for a VMDK descriptor",
                         options->file_name);
    }
    header_fill(sink, VMDK_GD_AT_END, front);
    memcpy(front + DESCRIPTOR_SECTOR * VMDK_SECTOR, descriptor.data, descriptor.length);
    sink->digest = running_sha256_new();
    return append(sink, front, sizeof front, err);
}

static uint32_t sector_of(uint64_t pos)
{
    return (uint32_t)(pos / VMDK_SECTOR);
}

/* Tables point at records by 32-bit sector numbers. */
static int check_addressable(const struct sink *sink, uint64_t more, struct error *err)
{
    if ((sink->pos + more) / VMDK_SECTOR > UINT32_MAX) {
        return error_set(err, ERR_LIMIT,
                         "the VMDK file grows over 2 TiB, which its tables cannot address: use "
                         "format qcow2 or raw for this disk");
    }
    return 0;
}

static int append_marker(struct sink *sink, enum vmdk_marker type, uint64_t sectors,
                         struct error *err)
{
    uint8_t marker[VMDK_SECTOR] = {0};

    put_le64(marker, sectors);
    put_le32(marker + VMDK_RECORD_HEADER, (uint32_t)type);
    return append(sink, marker, sizeof marker, err);
}

/* The open table stands at that file offset now. */
static int table_closed(struct sink *sink, uint64_t pos, struct error *err)
{
    uint8_t entry[INDEX_ENTRY_BYTES] = {0};
    uint64_t span = sink->span;

    sink->directory[span] = sector_of(pos);
    memset(sink->table, 0, sizeof sink->table);
    sink->span = NO_SPAN;
    if (sink->begins == NULL)
        return 0;
    sink->begins[span] = sector_of(sink->open_begin);
    put_le32(entry, (uint32_t)span);
    put_le32(entry + 4, sink->begins[span]);
    put_le32(entry + 8, sink->directory[span]);
    memcpy(entry + 16, sink->open_sha256, DIGEST_BYTES);
    return sink_index_append(&sink->index, entry, err);
}

static int close_table(struct sink *sink, struct error *err)
{
    uint8_t raw[VMDK_TABLE_BYTES];
    uint64_t pos;

    if (sink->span == NO_SPAN)
        return 0;
    if (check_addressable(sink, VMDK_SECTOR + sizeof raw, err) < 0 ||
        append_marker(sink, VMDK_MARKER_TABLE, VMDK_TABLE_SECTORS, err) < 0)
        return -1;
    for (size_t i = 0; i < VMDK_TABLE_ENTRIES; i++)
        put_le32(raw + 4 * i, sink->table[i]);
    pos = sink->pos;
    return append(sink, raw, sizeof raw, err) < 0 ? -1 : table_closed(sink, pos, err);
}

/* Notes that the record of this grain stands at file offset pos. */
static void note_grain(struct sink *sink, uint64_t grain, uint64_t pos)
{
    if (sink->span == NO_SPAN)
        sink->open_begin = pos;
    sink->span = grain / VMDK_TABLE_ENTRIES;
    sink->table[grain % VMDK_TABLE_ENTRIES] = sector_of(pos);
}

static uint64_t record_bytes(uint32_t compressed)
{
    return round_up_u64(VMDK_RECORD_HEADER + (uint64_t)compressed, VMDK_SECTOR);
}

/* One grain record at file offset pos while walking; *pos moves behind it. */
static int walk_grain(struct sink *sink, uint64_t sector, uint32_t compressed, uint64_t end,
                      uint64_t *pos, struct error *err)
{
    uint64_t grain = sector / VMDK_GRAIN_SECTORS;
    uint64_t disk_offset = sector * VMDK_SECTOR;

    if (sector >= sink->size_bytes / VMDK_SECTOR || sector % VMDK_GRAIN_SECTORS != 0 ||
        disk_offset < sink->next || !range_is_inside(*pos, record_bytes(compressed), end) ||
        (sink->span != NO_SPAN && sink->span != grain / VMDK_TABLE_ENTRIES)) {
        return error_set(err, ERR_CORRUPT, "grain record at offset %" PRIu64 " is out of place",
                         *pos);
    }
    note_grain(sink, grain, *pos);
    sink->next = disk_offset + VMDK_GRAIN_BYTES;
    *pos += record_bytes(compressed);
    return 0;
}

static int walk_table(struct sink *sink, const uint8_t *marker, uint64_t end, uint64_t *pos,
                      struct error *err)
{
    if (get_le64(marker) != VMDK_TABLE_SECTORS ||
        get_le32(marker + VMDK_RECORD_HEADER) != VMDK_MARKER_TABLE || sink->span == NO_SPAN ||
        !range_is_inside(*pos, VMDK_SECTOR + VMDK_TABLE_BYTES, end))
        return error_set(err, ERR_CORRUPT, "unexpected marker at offset %" PRIu64, *pos);
    *pos += VMDK_SECTOR + VMDK_TABLE_BYTES;
    return table_closed(sink, *pos - VMDK_TABLE_BYTES, err);
}

/* From file offset pos up to the first grain at or behind disk offset stop, or up to end; *out_end
 * = where that is. */
static int walk_records(struct sink *sink, uint64_t pos, uint64_t end, uint64_t stop,
                        uint64_t *out_end, struct error *err)
{
    while (pos < end) {
        uint8_t head[VMDK_RECORD_HEADER + 4];
        if (pread_all(sink->fd, head, sizeof head, sink->base + pos) < 0)
            return error_set_errno(err, errno, "cannot read record at offset %" PRIu64, pos);
        if (get_le32(head + 8) != 0 && get_le64(head) >= stop / VMDK_SECTOR)
            break;
        if (get_le32(head + 8) == 0
                ? walk_table(sink, head, end, &pos, err) < 0
                : walk_grain(sink, get_le64(head), get_le32(head + 8), end, &pos, err) < 0)
            return -1;
    }
    *out_end = pos;
    return 0;
}

/* One entry of the index. false: it is of a span that the pipeline comes to again; *begin is where
 * its records begin then, and open_sha256 is of there. */
static bool take_entry(struct sink *sink, const uint8_t *entry, uint64_t stop_span, uint64_t *begin)
{
    uint32_t span = get_le32(entry);

    if (span >= stop_span || span >= sink->directory_count) {
        *begin = get_le32(entry + 4) * VMDK_SECTOR;
        memcpy(sink->open_sha256, entry + 16, DIGEST_BYTES);
        return false;
    }
    sink->begins[span] = get_le32(entry + 4);
    sink->directory[span] = get_le32(entry + 8);
    return true;
}

/* The tables before the one of disk offset stop; *out_begin: where the walk begins. open: where the
 * records of the open table begin, else the end. */
static int read_index(struct sink *sink, uint64_t entries, uint64_t stop, uint64_t open,
                      uint64_t *out_begin, struct error *err)
{
    uint8_t raw[INDEX_ENTRIES_STEP * INDEX_ENTRY_BYTES];

    *out_begin = open;
    for (uint64_t i = 0; i < entries; i++) {
        size_t in_step = (size_t)(i % INDEX_ENTRIES_STEP);
        size_t count = (size_t)min_u64(INDEX_ENTRIES_STEP, entries - i);
        if (in_step == 0 && sink_index_read(&sink->index, i, raw, count, err) < 0)
            return -1;
        if (!take_entry(sink, raw + in_step * INDEX_ENTRY_BYTES, stop / VMDK_SPAN_BYTES, out_begin))
            return sink_index_cut(&sink->index, i, err);
    }
    return sink_index_cut(&sink->index, entries, err);
}

/* Where the walk begins, when the front of the file may be gone. */
static int resume_sent_on(struct sink *sink, const struct sink_options *options, uint64_t end,
                          uint64_t *out_begin, struct error *err)
{
    uint64_t entries = 0;
    uint64_t open = 0;

    if (sink_state_u64(options->resume, STATE_TAG, "index", sink->directory_count, &entries, err) <
            0 ||
        sink_state_u64(options->resume, STATE_TAG, "open", end, &open, err) < 0 ||
        sink_state_bytes(options->resume, STATE_TAG, "sha256", sink->open_sha256, DIGEST_BYTES,
                         err) < 0 ||
        read_index(sink, entries, options->resume_offset, open, out_begin, err) < 0)
        return -1;
    if (*out_begin < OVERHEAD_SECTORS * VMDK_SECTOR || *out_begin > end) {
        return error_set(err, ERR_CORRUPT, "'%.256s' does not fit its index: start over",
                         options->path);
    }
    return 0;
}

/* The digest of an image that is sent on, up to where it is gone on with: from the walk's begin on
 * the bytes are here. */
static int resume_digest(struct sink *sink, uint64_t begin, uint64_t end, struct error *err)
{
    autofree uint8_t *buffer = xmalloc(RESUME_READ_BYTES);

    if (sink->span != NO_SPAN && sink->open_begin != begin) {
        return error_set(err, ERR_CORRUPT, "the open table's records do not begin at %" PRIu64,
                         begin);
    }
    sink->digest = running_sha256_new();
    running_sha256_restore(sink->digest, sink->open_sha256, begin);
    for (uint64_t at = begin; at < end;) {
        size_t n = (size_t)min_u64(RESUME_READ_BYTES, end - at);
        if (pread_all(sink->fd, buffer, n, sink->base + at) < 0)
            return error_set_errno(err, errno, "cannot read at offset %" PRIu64, at);
        running_sha256_add(sink->digest, buffer, n);
        at += n;
    }
    return 0;
}

static bool header_is_ours(const struct sink *sink)
{
    uint8_t header[VMDK_SECTOR];
    uint8_t expected[VMDK_SECTOR];

    header_fill(sink, VMDK_GD_AT_END, expected);
    return pread_all(sink->fd, header, sizeof header, sink->base) == 0 &&
           memcmp(header, expected, sizeof header) == 0;
}

static int resume(struct sink *sink, const struct sink_options *options, struct error *err)
{
    uint64_t begin = OVERHEAD_SECTORS * VMDK_SECTOR;
    uint64_t size = 0;
    uint64_t end = 0;
    uint64_t next = 0;
    uint64_t base = 0;
    struct stat st;

    if (sink_state_u64(options->resume, STATE_TAG, "base", INT64_MAX, &base, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "size", UINT64_MAX, &size, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "end", INT64_MAX, &end, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "next", UINT64_MAX, &next, err) < 0)
        return -1;
    if (fstat(sink->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot examine '%.256s'", options->path);
    if (size != sink->size_bytes || base != sink->base || end % VMDK_SECTOR != 0 ||
        !range_is_inside(base, end, (uint64_t)st.st_size) || end < OVERHEAD_SECTORS * VMDK_SECTOR ||
        next > size || options->resume_offset > next ||
        (!options->sent_on && !header_is_ours(sink))) {
        return error_set(err, ERR_CORRUPT,
                         "'%.256s' does not fit its checkpoint '%.64s': start over", options->path,
                         options->resume);
    }
    if ((options->sent_on && resume_sent_on(sink, options, end, &begin, err) < 0) ||
        walk_records(sink, begin, end, options->resume_offset, &end, err) < 0 ||
        (options->sent_on && resume_digest(sink, begin, end, err) < 0))
        return error_wrap(err, "'%.256s' cannot be resumed, start over", options->path);
    if (sink->next > round_up_u64(options->resume_offset, VMDK_GRAIN_BYTES)) {
        return error_set(err, ERR_CORRUPT, "'%.256s' is ahead of its checkpoint: start over",
                         options->path);
    }
    if (ftruncate(sink->fd, (off_t)(base + end)) < 0)
        return error_set_errno(err, errno, "cannot cut '%.256s'", options->path);
    sink->pos = end;
    sink->next = options->resume_offset;
    return 0;
}

static int vmdk_open(const struct sink_options *options, struct sink **out, struct error *err)
{
    CLEANUP(sink_auto) struct sink *sink = xcalloc(1, sizeof *sink);

    sink->fd = -1;
    sink->span = NO_SPAN;
    sink->index.fd = -1;
    writeback_init(&sink->writeback, -1);
    if (sink_level_check(options, "vmdk", GRAIN_CODEC_LEVEL_MAX, err) < 0 ||
        sink_file_open(options, &sink->fd, err) < 0)
        return -1;
    sink->writeback.fd = sink->fd;
    sink->base = options->file_offset;
    sink->size_bytes = options->size_bytes;
    sink->directory_count = round_up_u64(options->size_bytes, VMDK_SPAN_BYTES) / VMDK_SPAN_BYTES;
    sink->directory = xcalloc(sink->directory_count, sizeof *sink->directory);
    if (options->sent_on) {
        sink->begins = xcalloc(sink->directory_count, sizeof *sink->begins);
        if (sink_index_open(options, INDEX_ENTRY_BYTES, &sink->index, err) < 0)
            return -1;
    }
    sink->codec = grain_codec_new(options->compression_level);
    if ((options->resume != NULL ? resume(sink, options, err) : start_file(sink, options, err)) < 0)
        return -1;
    *out = STEAL(sink);
    return 0;
}

/* Appends the grain's record to out and returns its size, 0 for zeros, -1 on failure. */
static ssize_t encode_grain(struct sink *sink, uint64_t sector, const uint8_t *data, size_t length,
                            uint8_t *out, struct error *err)
{
    uint8_t full[VMDK_GRAIN_BYTES];
    size_t compressed = 0;
    size_t used;
    size_t total;

    if (mem_is_zero(data, length))
        return 0;
    if (length < VMDK_GRAIN_BYTES) { /* the disk's end inside a grain: filled with zeros */
        memcpy(full, data, length);
        memset(full + length, 0, VMDK_GRAIN_BYTES - length);
        data = full;
    }
    if (grain_codec_deflate(sink->codec, data, VMDK_GRAIN_BYTES, out + VMDK_RECORD_HEADER,
                            &compressed, err) < 0)
        return -1;
    put_le64(out, sector);
    put_le32(out + 8, (uint32_t)compressed);
    used = VMDK_RECORD_HEADER + compressed;
    total = (size_t)record_bytes((uint32_t)compressed);
    memset(out + used, 0, total - used);
    return (ssize_t)total;
}

static int vmdk_encode(struct sink *sink, uint64_t offset, const void *data, size_t length,
                       struct sink_blob *out, struct error *err)
{
    size_t grains = (length + VMDK_GRAIN_BYTES - 1) / VMDK_GRAIN_BYTES;
    size_t room = VMDK_RECORD_HEADER + grain_codec_bound(VMDK_GRAIN_BYTES) + VMDK_SECTOR;
    autofree uint8_t *records = xmalloc(grains * room);
    const uint8_t *bytes = data;
    size_t used = 0;

    assert(offset % SINK_PIECE_BYTES == 0 && length <= SINK_PIECE_BYTES);
    assert(range_is_inside(offset, length, sink->size_bytes));
    for (size_t at = 0; at < length; at += VMDK_GRAIN_BYTES) {
        size_t n = (size_t)min_u64(VMDK_GRAIN_BYTES, length - at);
        ssize_t added =
            encode_grain(sink, (offset + at) / VMDK_SECTOR, bytes + at, n, records + used, err);
        if (added < 0)
            return -1;
        used += (size_t)added;
    }
    *out = (struct sink_blob){.data = STEAL(records), .size = used, .raw_size = length};
    return 0;
}

static int check_order(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    assert(offset % SINK_PIECE_BYTES == 0 && range_is_inside(offset, length, sink->size_bytes));
    if (offset < sink->next) {
        return error_set(err, ERR_INTERNAL,
                         "piece at %" PRIu64 " comes after %" PRIu64
                         " was written: VMDK is ordered",
                         offset, sink->next);
    }
    if (sink->span != NO_SPAN && offset / VMDK_SPAN_BYTES != sink->span)
        return close_table(sink, err);
    return 0;
}

static int vmdk_write_encoded(struct sink *sink, uint64_t offset, const struct sink_blob *blob,
                              struct error *err)
{
    const uint8_t *records = blob->data;

    if (check_order(sink, offset, blob->raw_size, err) < 0 ||
        check_addressable(sink, blob->size, err) < 0)
        return -1;
    if (blob->size > 0 && sink->span == NO_SPAN && sink->begins != NULL)
        running_sha256_save(sink->digest, sink->open_sha256);
    for (size_t at = 0; at < blob->size;) {
        note_grain(sink, get_le64(records + at) / VMDK_GRAIN_SECTORS, sink->pos + at);
        at += (size_t)record_bytes(get_le32(records + at + 8));
    }
    if (blob->size > 0 && append(sink, records, blob->size, err) < 0)
        return -1;
    sink->next = offset + blob->raw_size;
    return 0;
}

static int vmdk_write_zero(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    if (check_order(sink, offset, length, err) < 0)
        return -1;
    sink->next = offset + length;
    return 0;
}

static int vmdk_state(struct sink *sink, struct strbuf *state, struct error *err)
{
    char hex[DIGEST_HEX_SIZE];

    (void)err;
    strbuf_addf(state, STATE_TAG " base=%" PRIu64 " size=%" PRIu64 " end=%" PRIu64 " next=%" PRIu64,
                sink->base, sink->size_bytes, sink->pos, sink->next);
    if (sink->begins == NULL)
        return 0;
    if (sink->span == NO_SPAN)
        running_sha256_save(sink->digest, sink->open_sha256);
    hex_encode(sink->open_sha256, DIGEST_BYTES, hex);
    strbuf_addf(state, " index=%" PRIu64 " open=%" PRIu64 " sha256=%s", sink->index.count,
                sink->span == NO_SPAN ? sink->pos : sink->open_begin, hex);
    return 0;
}

static int vmdk_sync(struct sink *sink, struct error *err)
{
    if (fdatasync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync VMDK");
    return sink_index_sync(&sink->index, err);
}

/* Records of the span that holds disk_offset, and of later ones, are walked again. */
static uint64_t vmdk_final(struct sink *sink, uint64_t disk_offset)
{
    for (uint64_t span = disk_offset / VMDK_SPAN_BYTES;
         span < sink->directory_count && span * VMDK_SPAN_BYTES < sink->next; span++) {
        if (sink->directory[span] != 0)
            return sink->base + sink->begins[span] * VMDK_SECTOR;
    }
    return sink->base + (sink->span == NO_SPAN ? sink->pos : sink->open_begin);
}

static int append_directory(struct sink *sink, uint64_t *out_sector, struct error *err)
{
    size_t size = (size_t)round_up_u64(sink->directory_count * 4, VMDK_SECTOR);
    autofree uint8_t *raw = xcalloc(1, size);

    for (uint64_t i = 0; i < sink->directory_count; i++)
        put_le32(raw + 4 * i, sink->directory[i]);
    if (append_marker(sink, VMDK_MARKER_DIRECTORY, size / VMDK_SECTOR, err) < 0)
        return -1;
    *out_sector = sink->pos / VMDK_SECTOR;
    return append(sink, raw, size, err);
}

static int vmdk_finish(struct sink *sink, struct error *err)
{
    uint64_t directory = 0;
    uint8_t footer[VMDK_SECTOR];

    if (close_table(sink, err) < 0 || append_directory(sink, &directory, err) < 0)
        return -1;
    header_fill(sink, directory, footer);
    if (append_marker(sink, VMDK_MARKER_FOOTER, 1, err) < 0 ||
        append(sink, footer, sizeof footer, err) < 0 ||
        append_marker(sink, VMDK_MARKER_EOS, 0, err) < 0)
        return -1;
    if (fsync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync VMDK");
    if (sink->digest != NULL)
        running_sha256_end(sink->digest, sink->sha256);
    return 0;
}

static bool vmdk_file_sha256(const struct sink *sink, char out[65])
{
    if (sink->sha256[0] == '\0')
        return false;
    memcpy(out, sink->sha256, sizeof sink->sha256);
    return true;
}

const struct sink_format sink_vmdk = {
    .name = "vmdk",
    .suffix = ".vmdk",
    .flags = SINK_ORDERED,
    .open = vmdk_open,
    .encode = vmdk_encode,
    .write_encoded = vmdk_write_encoded,
    .write_zero = vmdk_write_zero,
    .state = vmdk_state,
    .sync = vmdk_sync,
    .final = vmdk_final,
    .finish = vmdk_finish,
    .close = vmdk_close,
    .file_sha256 = vmdk_file_sha256,
};
