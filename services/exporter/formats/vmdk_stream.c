/* See vmdk_stream.h. */
#include "services/exporter/formats/vmdk_stream.h"

#include <inttypes.h>
#include <string.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image_impl.h"

#define TAIL_BYTES_MAX     MIB        /* zeros behind the end: padding of some writers */
#define OVERHEAD_BYTES_MAX (16 * MIB) /* before the first grain, tables not counted */
#define AT_TYPE            12U        /* of a marker without data */

/* What may come next. */
enum part { PART_GRAINS, PART_FOOTER, PART_END, PART_DONE };

struct vmdk_stream {
    struct vmdk_stream_input input;
    enum part part;
    uint64_t sector; /* of the stream, that comes next */
    uint64_t capacity;
    uint64_t grain_sectors;
    uint32_t flags;
    uint32_t table_entries;
    uint64_t table_sectors;
    uint64_t directory_count;
    uint64_t directory_sectors;
    uint64_t directory_at; /* VMDK_GD_AT_END until it came */
    bool tables_first;     /* in front of the grains */
    uint64_t next_grain;   /* grains in front of it are over */
    uint64_t grains;       /* that came */
    uint64_t tables;       /* that came */
    uint64_t entries;      /* grains that the tables name */
    uint64_t grain_marks;  /* sums: which grains came from where, */
    uint64_t entry_marks;  /* and what the tables say about that */
    uint8_t *directory;    /* tables_first, while they are read */
    uint64_t next_table;   /* index into it */
    uint8_t *record;
};

uint64_t vmdk_stream_disk_bytes(const struct vmdk_stream *stream)
{
    return stream->capacity * VMDK_SECTOR;
}

size_t vmdk_stream_grain_bytes(const struct vmdk_stream *stream)
{
    return (size_t)(stream->grain_sectors * VMDK_SECTOR);
}

void vmdk_stream_close(struct vmdk_stream *stream)
{
    if (stream == NULL)
        return;
    free(stream->directory);
    free(stream->record);
    free(stream);
}

static int cut(const struct vmdk_stream *stream, struct error *err)
{
    return error_set(err, ERR_UNAVAILABLE,
                     "the VMDK stream was cut: it ends at sector %" PRIu64
                     ", before its end marker",
                     stream->sector);
}

/* Whole sectors; all of them, or an error. */
static int read_sectors(struct vmdk_stream *stream, void *buffer, uint64_t count, struct error *err)
{
    size_t length = (size_t)(count * VMDK_SECTOR);
    size_t got = 0;

    if (stream->input.read(stream->input.arg, buffer, length, &got, err) < 0)
        return -1;
    if (got != length)
        return cut(stream, err);
    stream->sector += count;
    return 0;
}

/* ---- tables ---- */

/* Stands for "the grain of this entry of a table lies at that sector". Sums of it tell in one
 * number whether the tables mean the grains that came, in whatever order the tables come. */
static uint64_t entry_mark(uint64_t entry, uint64_t sector)
{
    uint64_t mark = (entry << 32 ^ sector) * UINT64_C(0x9e3779b97f4a7c15);

    mark = (mark ^ mark >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    return mark ^ mark >> 27;
}

static bool tables_fit(const struct vmdk_stream *stream)
{
    return stream->entries == stream->grains && stream->entry_marks == stream->grain_marks;
}

/* Notes the grains that a part of a table, from its entry `first` on, names. */
static int note_entries(struct vmdk_stream *stream, const uint8_t *table, uint64_t first,
                        size_t count, struct error *err)
{
    bool zero_grains = (stream->flags & VMDK_FLAG_ZERO_GRAINS) != 0;

    for (size_t i = 0; i < count; i++) {
        uint32_t sector = get_le32(table + 4 * i);
        if (sector == 0 || (zero_grains && sector == VMDK_GRAIN_ZERO))
            continue;
        if (!stream->tables_first && sector >= stream->sector) {
            return error_set(err, ERR_CORRUPT,
                             "a grain table in front of sector %" PRIu64
                             " names a grain behind it, at %" PRIu32,
                             stream->sector, sector);
        }
        stream->entries++;
        stream->entry_marks += entry_mark(first + i, sector);
    }
    return 0;
}

static int table_came(struct vmdk_stream *stream, uint64_t sectors, struct error *err)
{
    uint8_t table[VMDK_TABLE_ENTRIES_MAX * 4];

    if (sectors != stream->table_sectors || stream->tables == stream->directory_count) {
        return error_set(
            err, ERR_CORRUPT,
            "grain table %" PRIu64 " of %" PRIu64 " has %" PRIu64 " sectors, not %" PRIu64,
            stream->tables + 1, stream->directory_count, sectors, stream->table_sectors);
    }
    if (read_sectors(stream, table, sectors, err) < 0)
        return -1;
    stream->tables++;
    return note_entries(stream, table, 0, stream->table_entries, err);
}

static int directory_came(struct vmdk_stream *stream, uint64_t sectors, struct error *err)
{
    uint64_t tables = 0;
    uint64_t left = stream->directory_count;
    uint8_t part[VMDK_SECTOR];

    if (sectors != stream->directory_sectors) {
        return error_set(err, ERR_CORRUPT,
                         "the grain directory has %" PRIu64 " sectors, not %" PRIu64, sectors,
                         stream->directory_sectors);
    }
    stream->directory_at = stream->sector;
    for (uint64_t i = 0; i < sectors; i++) {
        if (read_sectors(stream, part, 1, err) < 0)
            return -1;
        for (size_t k = 0; k < sizeof part && left > 0; k += 4, left--)
            tables += get_le32(part + k) != 0;
    }
    if (tables != stream->tables || !tables_fit(stream)) {
        return error_set(err, ERR_CORRUPT,
                         "the tables name %" PRIu64 " grains, and not the %" PRIu64
                         " that came; the directory names %" PRIu64 " tables of %" PRIu64,
                         stream->entries, stream->grains, tables, stream->tables);
    }
    stream->part = PART_FOOTER;
    return 0;
}

static int footer_came(struct vmdk_stream *stream, uint64_t sectors, struct error *err)
{
    uint8_t footer[VMDK_SECTOR];

    if (sectors != 1)
        return error_set(err, ERR_CORRUPT, "its footer has %" PRIu64 " sectors", sectors);
    if (read_sectors(stream, footer, 1, err) < 0 || vmdk_header_check(footer, "footer", err) < 0)
        return -1;
    if (get_le64(footer + VMDK_AT_CAPACITY) != stream->capacity ||
        get_le64(footer + VMDK_AT_GRAIN_SIZE) != stream->grain_sectors ||
        get_le32(footer + VMDK_AT_TABLE_ENTRIES) != stream->table_entries ||
        get_le64(footer + VMDK_AT_GD_OFFSET) != stream->directory_at)
        return error_set(err, ERR_CORRUPT, "its footer does not fit its header and directory");
    stream->part = PART_END;
    return 0;
}

/* ---- what is in front of the grains ---- */

static int check_front_directory(const struct vmdk_stream *stream, uint64_t overhead,
                                 struct error *err)
{
    uint64_t free_from = stream->directory_at + stream->directory_sectors;

    for (uint64_t i = 0; i < stream->directory_count; i++) {
        uint64_t at = get_le32(stream->directory + 4 * i);
        if (at == 0)
            continue;
        if (at < free_from || at + stream->table_sectors > overhead) {
            return error_set(err, ERR_NOT_AVAILABLE,
                             "its grain tables do not follow their directory in order: it cannot "
                             "be read as a stream");
        }
        free_from = at + stream->table_sectors;
    }
    return 0;
}

/* One sector in front of the grains, the directory's or a table's maybe. */
static int front_sector(struct vmdk_stream *stream, const uint8_t *bytes, uint64_t overhead,
                        struct error *err)
{
    uint64_t at = stream->sector - 1;
    uint64_t in_directory = at - stream->directory_at;
    uint64_t entry;
    size_t count;

    if (at < stream->directory_at)
        return 0;
    if (in_directory < stream->directory_sectors) {
        memcpy(stream->directory + in_directory * VMDK_SECTOR, bytes, VMDK_SECTOR);
        return in_directory + 1 < stream->directory_sectors
                   ? 0
                   : check_front_directory(stream, overhead, err);
    }
    while (stream->next_table < stream->directory_count &&
           get_le32(stream->directory + 4 * stream->next_table) + stream->table_sectors <= at)
        stream->next_table++;
    if (stream->next_table == stream->directory_count ||
        get_le32(stream->directory + 4 * stream->next_table) > at)
        return 0;
    entry = (at - get_le32(stream->directory + 4 * stream->next_table)) * (VMDK_SECTOR / 4);
    count = (size_t)min_u64(VMDK_SECTOR / 4, stream->table_entries - entry);
    return note_entries(stream, bytes, entry, count, err);
}

/* Everything between header and first grain. */
static int read_front(struct vmdk_stream *stream, const uint8_t *header, struct error *err)
{
    uint64_t first = get_le64(header + VMDK_AT_DESCRIPTOR_OFFSET);
    uint64_t count = get_le64(header + VMDK_AT_DESCRIPTOR_SIZE);
    uint64_t overhead = get_le64(header + VMDK_AT_OVERHEAD);
    uint64_t tables = stream->directory_count * stream->table_sectors + stream->directory_sectors;
    uint64_t max = OVERHEAD_BYTES_MAX / VMDK_SECTOR + (stream->tables_first ? 2 * tables : 0);
    autofree char *text = NULL;
    uint8_t bytes[VMDK_SECTOR];

    if (overhead > max)
        return error_set(err, ERR_LIMIT, "its grains begin at sector %" PRIu64, overhead);
    if (first == 0 || count == 0 || count > VMDK_DESCRIPTOR_BYTES_MAX / VMDK_SECTOR ||
        !range_is_inside(first, count, overhead))
        return error_set(err, ERR_CORRUPT, "it has no descriptor of its own");
    if (stream->tables_first &&
        !range_is_inside(stream->directory_at, stream->directory_sectors, overhead))
        return error_set(err, ERR_CORRUPT, "its grain directory is not in front of the grains");
    text = xcalloc(1, (size_t)(count * VMDK_SECTOR) + 1);
    while (stream->sector < overhead) {
        uint64_t at = stream->sector;
        if (read_sectors(stream, bytes, 1, err) < 0)
            return -1;
        if (at >= first && at - first < count)
            memcpy(text + (at - first) * VMDK_SECTOR, bytes, VMDK_SECTOR);
        if (stream->tables_first && front_sector(stream, bytes, overhead, err) < 0)
            return -1;
    }
    free(STEAL(stream->directory));
    return vmdk_descriptor_check(text, err);
}

static int take_header(struct vmdk_stream *stream, const uint8_t *header, struct error *err)
{
    uint64_t span;

    if (vmdk_header_check(header, "header", err) < 0)
        return -1;
    stream->flags = get_le32(header + VMDK_AT_FLAGS);
    stream->capacity = get_le64(header + VMDK_AT_CAPACITY);
    stream->grain_sectors = get_le64(header + VMDK_AT_GRAIN_SIZE);
    stream->table_entries = get_le32(header + VMDK_AT_TABLE_ENTRIES);
    stream->directory_at = get_le64(header + VMDK_AT_GD_OFFSET);
    stream->tables_first = stream->directory_at != VMDK_GD_AT_END;
    if ((stream->flags & VMDK_FLAG_COMPRESSED) == 0 || (stream->flags & VMDK_FLAG_MARKERS) == 0)
        return error_set(err, ERR_NOT_AVAILABLE, "it is a VMDK, but no streamOptimized one");
    if (get_le16(header + VMDK_AT_COMPRESSION) != VMDK_COMPRESS_DEFLATE)
        return error_set(err, ERR_NOT_AVAILABLE, "its compression is unknown");
    span = stream->grain_sectors * stream->table_entries; /* at most 2^23 */
    stream->table_sectors =
        round_up_u64(stream->table_entries * UINT64_C(4), VMDK_SECTOR) / VMDK_SECTOR;
    stream->directory_count = stream->capacity / span + (stream->capacity % span != 0);
    stream->directory_sectors =
        round_up_u64(stream->directory_count * 4, VMDK_SECTOR) / VMDK_SECTOR;
    if (stream->directory_count == 0)
        return error_set(err, ERR_CORRUPT, "it is of an empty disk");
    if (stream->directory_sectors * VMDK_SECTOR > VMDK_DIRECTORY_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "its directory would have %" PRIu64 " entries",
                         stream->directory_count);
    }
    if (stream->tables_first)
        stream->directory = xcalloc(1, (size_t)(stream->directory_sectors * VMDK_SECTOR));
    return 0;
}

DEFINE_AUTO(vmdk_stream, struct vmdk_stream, vmdk_stream_close)

int vmdk_stream_open(const struct vmdk_stream_input *input, struct vmdk_stream **out,
                     struct error *err)
{
    CLEANUP(vmdk_stream_auto) struct vmdk_stream *stream = xcalloc(1, sizeof *stream);
    uint8_t header[VMDK_SECTOR];
    size_t grain_bytes;

    stream->input = *input;
    if (read_sectors(stream, header, 1, err) < 0 || take_header(stream, header, err) < 0 ||
        read_front(stream, header, err) < 0)
        return -1;
    grain_bytes = vmdk_stream_grain_bytes(stream);
    stream->record = xmalloc(
        (size_t)round_up_u64(VMDK_RECORD_HEADER + VMDK_PACKED_BYTES_MAX(grain_bytes), VMDK_SECTOR));
    *out = STEAL(stream);
    return 0;
}

/* ---- the markers ---- */

/* A grain's record, of which the first sector came. */
static int grain_came(struct vmdk_stream *stream, struct vmdk_grain *out, struct error *err)
{
    uint64_t sector = get_le64(stream->record);
    uint32_t size = get_le32(stream->record + 8);
    uint64_t grain = sector / stream->grain_sectors;
    size_t grain_bytes = vmdk_stream_grain_bytes(stream);
    uint64_t sectors;

    if (stream->part != PART_GRAINS)
        return error_set(err, ERR_CORRUPT, "a grain follows the directory");
    if (sector % stream->grain_sectors != 0 || sector >= stream->capacity) {
        return error_set(err, ERR_CORRUPT,
                         "a grain is for sector %" PRIu64 " of a disk of %" PRIu64, sector,
                         stream->capacity);
    }
    if (grain < stream->next_grain) {
        return error_set(err, ERR_CORRUPT,
                         "the grain of sector %" PRIu64 " comes behind later ones", sector);
    }
    if (size > VMDK_PACKED_BYTES_MAX(grain_bytes)) {
        return error_set(err, ERR_CORRUPT, "the grain of sector %" PRIu64 " has %" PRIu32 " bytes",
                         sector, size);
    }
    sectors = round_up_u64(VMDK_RECORD_HEADER + size, VMDK_SECTOR) / VMDK_SECTOR - 1;
    if (sectors > 0 && read_sectors(stream, stream->record + VMDK_SECTOR, sectors, err) < 0)
        return -1;
    stream->next_grain = grain + 1;
    stream->grains++;
    stream->grain_marks += entry_mark(grain % stream->table_entries, stream->sector - 1 - sectors);
    *out = (struct vmdk_grain){
        .offset = sector * VMDK_SECTOR,
        .length = (size_t)min_u64(grain_bytes, (stream->capacity - sector) * VMDK_SECTOR),
        .packed = {.data = stream->record + VMDK_RECORD_HEADER, .size = size},
    };
    return 0;
}

/* Nothing but a few zeros, to the input's end. */
static int read_tail(struct vmdk_stream *stream, struct error *err)
{
    for (size_t total = 0; total <= TAIL_BYTES_MAX; total += VMDK_SECTOR) {
        size_t got = 0;
        if (stream->input.read(stream->input.arg, stream->record, VMDK_SECTOR, &got, err) < 0)
            return -1;
        if (got > 0 && !mem_is_zero(stream->record, got))
            break;
        if (got < VMDK_SECTOR) {
            stream->part = PART_DONE;
            return 0;
        }
    }
    return error_set(err, ERR_CORRUPT, "the stream goes on behind its end marker");
}

/* The end-of-stream marker, or the input's end where the tables were in front. */
static int end_came(struct vmdk_stream *stream, struct error *err)
{
    if (stream->part != (stream->tables_first ? PART_GRAINS : PART_END)) {
        return error_set(err, ERR_CORRUPT, "an end marker comes at sector %" PRIu64 ", too early",
                         stream->sector - 1);
    }
    if (stream->grains < stream->entries) {
        return error_set(err, ERR_UNAVAILABLE,
                         "the VMDK stream was cut: %" PRIu64 " of its %" PRIu64 " grains came",
                         stream->grains, stream->entries);
    }
    if (!tables_fit(stream))
        return error_set(err, ERR_CORRUPT, "other grains came than its tables name");
    return read_tail(stream, err);
}

/* A marker without data. */
static int metadata_came(struct vmdk_stream *stream, struct error *err)
{
    uint64_t sectors = get_le64(stream->record);
    uint32_t type = get_le32(stream->record + AT_TYPE);

    if (type == VMDK_MARKER_EOS && sectors == 0)
        return end_came(stream, err);
    if (!stream->tables_first && stream->part == PART_GRAINS) {
        if (type == VMDK_MARKER_TABLE)
            return table_came(stream, sectors, err);
        if (type == VMDK_MARKER_DIRECTORY)
            return directory_came(stream, sectors, err);
    }
    if (stream->part == PART_FOOTER && type == VMDK_MARKER_FOOTER)
        return footer_came(stream, sectors, err);
    return error_set(err, ERR_CORRUPT,
                     "a marker of type %" PRIu32 " does not belong at sector %" PRIu64, type,
                     stream->sector - 1);
}

int vmdk_stream_next(struct vmdk_stream *stream, struct vmdk_grain *out, struct error *err)
{
    while (stream->part != PART_DONE) {
        size_t got = 0;
        if (stream->input.read(stream->input.arg, stream->record, VMDK_SECTOR, &got, err) < 0)
            return -1;
        if (got == 0 && stream->tables_first) {
            if (end_came(stream, err) < 0)
                return -1;
            continue;
        }
        if (got != VMDK_SECTOR)
            return cut(stream, err);
        stream->sector++;
        if (get_le32(stream->record + 8) != 0)
            return grain_came(stream, out, err) < 0 ? -1 : 1;
        if (metadata_came(stream, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- inflating ---- */

int vmdk_grain_inflate(struct grain_codec *codec, size_t grain_bytes,
                       const struct grain_packed *packed, void *out, size_t length,
                       struct error *err)
{
    autofree uint8_t *whole = NULL;
    void *to = out;
    size_t got = 0;

    if (length < grain_bytes) /* the disk ends inside; some writers cut the grain, some do not */
        to = whole = xmalloc(grain_bytes);
    if (grain_codec_inflate(codec, packed, to, grain_bytes, &got, err) < 0)
        return -1;
    if (got != grain_bytes && got != length)
        return error_set(err, ERR_CORRUPT, "a grain inflates to %zu bytes, not %zu", got, length);
    if (whole != NULL)
        memcpy(out, whole, length);
    return 0;
}
