/* See journal.h.
 *
 * Record, little endian: u32 magic, u32 type, u32 payload length, u32 CRC-32C (of the record with
 * this field zero), u64 sequence number, payload. The sequence starts at 0 and has no gaps, so a
 * record from elsewhere in the file cannot pass for the next one. */
#include "services/exporter/engine/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <isa-l/crc.h>
#include <string.h>
#include <sys/stat.h>

#include "common/clock.h"
#include "common/paths.h"
#include "services/exporter/formats/bytes.h"

#define RECORD_MAGIC      0x524a5348U /* "HSJR" */
#define RECORD_HEAD_BYTES 24U
#define AT_TYPE           4U
#define AT_LENGTH         8U
#define AT_CRC            12U
#define AT_SEQUENCE       16U

#define SPEC_VERSION    1U
#define SPEC_HEAD_BYTES 32U
#define SPEC_FLAG_HASH  1U

#define CHUNKS_HEAD_BYTES 32U
#define CHUNKS_FLAG_ZERO  1U

#define FILE_MODE    0640
#define LOCK_POLL_MS 50

enum record_type { RECORD_SPEC = 1, RECORD_CHUNKS = 2, RECORD_CHECKPOINT = 3 };

struct record {
    uint32_t type;
    size_t length;
    uint8_t bytes[RECORD_HEAD_BYTES + JOURNAL_RECORD_BYTES_MAX];
};

struct journal {
    int fd;
    char *path;
    uint64_t size_bytes;
    uint64_t chunk_bytes;
    bool hash;
    bool failed;       /* a write failed: what stands behind `end` is unknown */
    uint64_t spec_end; /* behind the first record */
    uint64_t end;      /* behind the last checkpoint, or spec_end */
    uint64_t sequence; /* of the next record */
    char *states[JOURNAL_OUTPUTS_MAX];
    size_t state_count;
    uint8_t *pending; /* whole records for the next checkpoint */
    size_t pending_size, pending_room;
    struct record record; /* the one being read */
};

/* ---- records ---- */

static uint32_t record_crc(const uint8_t *bytes, size_t size)
{
    static const uint8_t zero[4];
    /* The library only reads, but takes a plain pointer; its lengths are below 2^31 here. */
    uint32_t crc = crc32_iscsi((unsigned char *)(uintptr_t)bytes, (int)AT_CRC, 0);

    crc = crc32_iscsi((unsigned char *)(uintptr_t)zero, (int)sizeof zero, crc);
    return crc32_iscsi((unsigned char *)(uintptr_t)(bytes + AT_SEQUENCE), (int)(size - AT_SEQUENCE),
                       crc);
}

static uint8_t *pending_take(struct journal *journal, size_t size)
{
    if (journal->pending_room - journal->pending_size < size) {
        journal->pending_room = 2 * (journal->pending_size + size);
        journal->pending = xrealloc(journal->pending, journal->pending_room);
    }
    journal->pending_size += size;
    return journal->pending + journal->pending_size - size;
}

/* Appends a record to what waits; returns its payload to be filled before pending_seal. */
static uint8_t *pending_record(struct journal *journal, enum record_type type, size_t length)
{
    uint8_t *bytes = pending_take(journal, RECORD_HEAD_BYTES + length);

    assert(length <= JOURNAL_RECORD_BYTES_MAX);
    put_le32(bytes, RECORD_MAGIC);
    put_le32(bytes + AT_TYPE, (uint32_t)type);
    put_le32(bytes + AT_LENGTH, (uint32_t)length);
    put_le64(bytes + AT_SEQUENCE, journal->sequence);
    journal->sequence++;
    memset(bytes + RECORD_HEAD_BYTES, 0, length);
    return bytes + RECORD_HEAD_BYTES;
}

static void pending_seal(uint8_t *payload, size_t length)
{
    uint8_t *bytes = payload - RECORD_HEAD_BYTES;

    put_le32(bytes + AT_CRC, record_crc(bytes, RECORD_HEAD_BYTES + length));
}

/* Writes what waits at the end and syncs. */
static int pending_flush(struct journal *journal, struct error *err)
{
    if (pwrite_all(journal->fd, journal->pending, journal->pending_size, journal->end) < 0 ||
        fdatasync(journal->fd) < 0) {
        journal->failed = true;
        return error_set_errno(err, errno, "cannot write '%.256s'", journal->path);
    }
    journal->end += journal->pending_size;
    journal->pending_size = 0;
    return 0;
}

/* The record at `offset` into journal->record: 1, or 0 when there is no whole one. */
static int record_read(struct journal *journal, uint64_t offset, uint64_t file_bytes,
                       uint64_t sequence, struct error *err)
{
    struct record *record = &journal->record;
    uint8_t *bytes = record->bytes;
    uint32_t length;

    if (!range_is_inside(offset, RECORD_HEAD_BYTES, file_bytes))
        return 0;
    if (pread_all(journal->fd, bytes, RECORD_HEAD_BYTES, offset) < 0)
        return error_set_errno(err, errno, "cannot read '%.256s'", journal->path);
    length = get_le32(bytes + AT_LENGTH);
    if (get_le32(bytes) != RECORD_MAGIC || length > JOURNAL_RECORD_BYTES_MAX ||
        get_le64(bytes + AT_SEQUENCE) != sequence ||
        !range_is_inside(offset + RECORD_HEAD_BYTES, length, file_bytes))
        return 0;
    if (pread_all(journal->fd, bytes + RECORD_HEAD_BYTES, length, offset + RECORD_HEAD_BYTES) < 0)
        return error_set_errno(err, errno, "cannot read '%.256s'", journal->path);
    if (get_le32(bytes + AT_CRC) != record_crc(bytes, RECORD_HEAD_BYTES + length))
        return 0;
    record->type = get_le32(bytes + AT_TYPE);
    record->length = length;
    return 1;
}

/* ---- what records say ---- */

static uint64_t chunk_count(const struct journal *journal)
{
    return round_up_u64(journal->size_bytes, journal->chunk_bytes) / journal->chunk_bytes;
}

/* Bytes of the disk in a range of chunks that lies inside it. */
static uint64_t chunks_bytes(const struct journal *journal, const struct journal_chunks *chunks)
{
    uint64_t first = chunks->first * journal->chunk_bytes;

    return min_u64((chunks->first + chunks->count) * journal->chunk_bytes, journal->size_bytes) -
           first;
}

static size_t leaves_bytes(const struct journal *journal, const struct journal_chunks *chunks)
{
    if (chunks->zero || !journal->hash)
        return 0;
    return (size_t)(round_up_u64(chunks_bytes(journal, chunks), LEAF_BYTES) / LEAF_BYTES *
                    DIGEST_BYTES);
}

/* False when the record says what no writer of ours says: the journal ends before it. */
static bool chunks_parse(const struct journal *journal, struct journal_chunks *out,
                         const uint8_t **out_leaves)
{
    const uint8_t *payload = journal->record.bytes + RECORD_HEAD_BYTES;
    size_t expected;

    if (journal->record.length < CHUNKS_HEAD_BYTES)
        return false;
    *out = (struct journal_chunks){
        .first = get_le64(payload),
        .count = get_le64(payload + 8),
        .zero = (get_le32(payload + 24) & CHUNKS_FLAG_ZERO) != 0,
        .data_bytes = get_le64(payload + 16),
    };
    if (out->count == 0 || !range_is_inside(out->first, out->count, chunk_count(journal)) ||
        out->data_bytes > chunks_bytes(journal, out))
        return false;
    expected = leaves_bytes(journal, out);
    *out_leaves = expected == 0 ? NULL : payload + CHUNKS_HEAD_BYTES;
    return journal->record.length == CHUNKS_HEAD_BYTES + expected;
}

static void states_clear(struct journal *journal)
{
    for (size_t i = 0; i < journal->state_count; i++)
        free(journal->states[i]);
    journal->state_count = 0;
}

static bool checkpoint_parse(struct journal *journal)
{
    const uint8_t *payload = journal->record.bytes + RECORD_HEAD_BYTES;
    size_t size = journal->record.length;
    size_t at = 4;
    size_t count;

    if (size < 4 || get_le32(payload) > JOURNAL_OUTPUTS_MAX || get_le32(payload) == 0)
        return false;
    count = get_le32(payload);
    states_clear(journal);
    for (size_t i = 0; i < count; i++) {
        size_t length;
        if (size - at < 4)
            return false;
        length = get_le32(payload + at);
        at += 4;
        if (length > SINK_STATE_BYTES_MAX || size - at < length ||
            memchr(payload + at, '\0', length) != NULL)
            return false;
        journal->states[journal->state_count++] = xstrndup((const char *)payload + at, length);
        at += length;
    }
    return at == size;
}

/* Reads up to the first record that is not whole; end and states are those of the last
 * checkpoint. */
static int scan(struct journal *journal, uint64_t file_bytes, struct error *err)
{
    uint64_t at = journal->spec_end;
    uint64_t sequence = 1;
    struct journal_chunks chunks;
    const uint8_t *leaves;

    journal->end = journal->spec_end;
    journal->sequence = 1;
    for (;;) {
        int rc = record_read(journal, at, file_bytes, sequence, err);
        if (rc < 0)
            return -1;
        if (rc == 0)
            return 0;
        at += RECORD_HEAD_BYTES + journal->record.length;
        sequence++;
        if (journal->record.type == RECORD_CHUNKS && chunks_parse(journal, &chunks, &leaves))
            continue;
        if (journal->record.type != RECORD_CHECKPOINT)
            return 0;
        if (!checkpoint_parse(journal)) { /* the checksum is right, so it is no damage */
            states_clear(journal);
            return error_set(err, ERR_CORRUPT, "'%.256s' was not written by this program",
                             journal->path);
        }
        journal->end = at;
        journal->sequence = sequence;
    }
}

/* ---- opening ---- */

static int spec_write(struct journal *journal, const struct journal_spec *spec, struct error *err)
{
    size_t identity = strlen(spec->identity);
    size_t outputs = strlen(spec->outputs);
    size_t length = SPEC_HEAD_BYTES + identity + outputs;
    uint8_t *payload;

    if (ftruncate(journal->fd, 0) < 0)
        return error_set_errno(err, errno, "cannot empty '%.256s'", journal->path);
    journal->end = 0;
    journal->sequence = 0;
    payload = pending_record(journal, RECORD_SPEC, length);
    put_le32(payload, SPEC_VERSION);
    put_le32(payload + 4, spec->hash ? SPEC_FLAG_HASH : 0);
    put_le64(payload + 8, spec->size_bytes);
    put_le64(payload + 16, spec->chunk_bytes);
    put_le32(payload + 24, (uint32_t)identity);
    put_le32(payload + 28, (uint32_t)outputs);
    memcpy(payload + SPEC_HEAD_BYTES, spec->identity, identity);
    memcpy(payload + SPEC_HEAD_BYTES + identity, spec->outputs, outputs);
    pending_seal(payload, length);
    if (pending_flush(journal, err) < 0)
        return -1;
    journal->spec_end = journal->end;
    return dir_sync_parent(journal->path, err);
}

static bool text_is(const uint8_t *bytes, size_t length, const char *text)
{
    return strlen(text) == length && memcmp(bytes, text, length) == 0;
}

/* Is the first record, which is whole, the one of this spec? */
static int spec_compare(const struct journal *journal, const struct journal_spec *spec,
                        struct error *err)
{
    const uint8_t *payload = journal->record.bytes + RECORD_HEAD_BYTES;
    size_t length = journal->record.length;
    size_t identity;
    size_t outputs;

    if (journal->record.type != RECORD_SPEC || length < SPEC_HEAD_BYTES ||
        get_le32(payload) != SPEC_VERSION) {
        return error_set(err, ERR_SOURCE_CHANGED, "'%.256s' is not a journal of this version",
                         journal->path);
    }
    identity = get_le32(payload + 24);
    outputs = get_le32(payload + 28);
    if (identity > length - SPEC_HEAD_BYTES || length - SPEC_HEAD_BYTES - identity != outputs) {
        return error_set(err, ERR_SOURCE_CHANGED, "'%.256s' is not a journal of this version",
                         journal->path);
    }
    if (get_le64(payload + 8) != spec->size_bytes) {
        return error_set(err, ERR_SOURCE_CHANGED,
                         "'%.256s' is of a disk of %" PRIu64 " bytes, this one has %" PRIu64,
                         journal->path, get_le64(payload + 8), spec->size_bytes);
    }
    if (!text_is(payload + SPEC_HEAD_BYTES, identity, spec->identity)) {
        return error_set(err, ERR_SOURCE_CHANGED,
                         "'%.256s' is of another disk, or of another state of it", journal->path);
    }
    if (get_le64(payload + 16) != spec->chunk_bytes ||
        (get_le32(payload + 4) & SPEC_FLAG_HASH) != (spec->hash ? SPEC_FLAG_HASH : 0) ||
        !text_is(payload + SPEC_HEAD_BYTES + identity, outputs, spec->outputs)) {
        return error_set(err, ERR_SOURCE_CHANGED,
                         "'%.256s' is of an export with other outputs or another chunk size",
                         journal->path);
    }
    return 0;
}

static int load(struct journal *journal, const struct journal_spec *spec, struct error *err)
{
    struct stat st;
    int rc;

    if (fstat(journal->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot examine '%.256s'", journal->path);
    rc = record_read(journal, 0, (uint64_t)st.st_size, 0, err);
    if (rc < 0)
        return -1;
    if (rc == 0) /* new, or it died before its first record was on disk */
        return spec_write(journal, spec, err);
    if (spec_compare(journal, spec, err) < 0)
        return -1;
    journal->spec_end = RECORD_HEAD_BYTES + journal->record.length;
    if (scan(journal, (uint64_t)st.st_size, err) < 0)
        return -1;
    if ((uint64_t)st.st_size > journal->end && ftruncate(journal->fd, (off_t)journal->end) < 0)
        return error_set_errno(err, errno, "cannot cut '%.256s'", journal->path);
    return 0;
}

/* 1: locked. 0: someone else has it. */
static int try_lock(int fd, const char *path, struct error *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 1;
    if (errno == EAGAIN || errno == EACCES)
        return 0;
    if (errno == ENOLCK || errno == EINVAL || errno == EOPNOTSUPP) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "the file system of '%.256s' has no file locks: nothing is resumed there",
                         path);
    }
    return error_set_errno(err, errno, "cannot lock '%.256s'", path);
}

/* Does the name still lead to this file? The holder before us may have removed it. */
static bool is_still(const char *path, int fd)
{
    struct stat by_fd;
    struct stat by_path;

    return fstat(fd, &by_fd) == 0 && stat(path, &by_path) == 0 && by_fd.st_ino == by_path.st_ino &&
           by_fd.st_dev == by_path.st_dev;
}

static int open_locked(const char *path, int64_t wait_ms, const atomic_bool *stopped, int *out_fd,
                       struct error *err)
{
    int64_t deadline = clock_mono_ms() + wait_ms;

    for (;;) {
        autoclose int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, FILE_MODE);
        int rc;
        if (fd < 0)
            return error_set_errno(err, errno, "cannot open '%.256s'", path);
        rc = try_lock(fd, path, err);
        if (rc < 0)
            return -1;
        if (rc == 1 && is_still(path, fd)) {
            *out_fd = fd_steal(&fd);
            return 0;
        }
        if (stopped != NULL && atomic_load(stopped))
            return error_set(err, ERR_CANCELLED, "stopped while waiting for '%.256s'", path);
        if (clock_mono_ms() >= deadline)
            return error_set(err, ERR_CONFLICT, "'%.256s' is in use by another process", path);
        clock_sleep_ms(LOCK_POLL_MS);
    }
}

int journal_open(const char *path, const struct journal_spec *spec, int64_t lock_wait_ms,
                 const atomic_bool *stopped, struct journal **out, struct error *err)
{
    auto_journal *journal = NULL;
    autoclose int fd = -1;

    assert(spec->chunk_bytes > 0 && spec->chunk_bytes % LEAF_BYTES == 0 && spec->size_bytes > 0);
    if (strlen(spec->identity) > JOURNAL_IDENTITY_BYTES_MAX ||
        strlen(spec->outputs) > JOURNAL_IDENTITY_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "a journal's identity is longer than %d bytes",
                         JOURNAL_IDENTITY_BYTES_MAX);
    }
    if (open_locked(path, lock_wait_ms, stopped, &fd, err) < 0)
        return -1;
    journal = xcalloc(1, sizeof *journal);
    journal->fd = fd_steal(&fd);
    journal->path = xstrdup(path);
    journal->size_bytes = spec->size_bytes;
    journal->chunk_bytes = spec->chunk_bytes;
    journal->hash = spec->hash;
    if (load(journal, spec, err) < 0)
        return -1;
    *out = STEAL(journal);
    return 0;
}

void journal_close(struct journal *journal)
{
    if (journal == NULL)
        return;
    states_clear(journal);
    (void)close(journal->fd);
    free(journal->path);
    free(journal->pending);
    free(journal);
}

/* ---- use ---- */

size_t journal_state_count(const struct journal *journal)
{
    return journal->state_count;
}

const char *journal_state(const struct journal *journal, size_t output)
{
    assert(output < journal->state_count);
    return journal->states[output];
}

int journal_replay(struct journal *journal,
                   int (*take)(void *arg, const struct journal_chunks *chunks,
                               const uint8_t *leaves, struct error *err),
                   void *arg, struct error *err)
{
    uint64_t at = journal->spec_end;

    for (uint64_t sequence = 1; at < journal->end; sequence++) {
        struct journal_chunks chunks;
        const uint8_t *leaves = NULL;
        int rc = record_read(journal, at, journal->end, sequence, err);
        if (rc < 0)
            return -1;
        if (rc == 0)
            return error_set(err, ERR_CORRUPT, "'%.256s' changed while it was read", journal->path);
        at += RECORD_HEAD_BYTES + journal->record.length;
        if (journal->record.type == RECORD_CHECKPOINT)
            continue;
        if (!chunks_parse(journal, &chunks, &leaves))
            return error_set(err, ERR_CORRUPT, "'%.256s' changed while it was read", journal->path);
        if (take(arg, &chunks, leaves, err) < 0)
            return -1;
    }
    return 0;
}

void journal_add(struct journal *journal, const struct journal_chunks *chunks,
                 const uint8_t *leaves)
{
    size_t bytes = leaves_bytes(journal, chunks);
    size_t length = CHUNKS_HEAD_BYTES + bytes;
    uint8_t *payload;

    assert(chunks->count > 0 &&
           range_is_inside(chunks->first, chunks->count, chunk_count(journal)));
    assert(bytes / DIGEST_BYTES <= JOURNAL_LEAVES_PER_RECORD);
    payload = pending_record(journal, RECORD_CHUNKS, length);
    put_le64(payload, chunks->first);
    put_le64(payload + 8, chunks->count);
    put_le64(payload + 16, chunks->data_bytes);
    put_le32(payload + 24, chunks->zero ? CHUNKS_FLAG_ZERO : 0);
    if (bytes > 0)
        memcpy(payload + CHUNKS_HEAD_BYTES, leaves, bytes);
    pending_seal(payload, length);
}

int journal_checkpoint(struct journal *journal, const char *const *states, size_t count,
                       struct error *err)
{
    size_t length = 4;
    uint8_t *payload;
    size_t at = 4;

    assert(count > 0 && count <= JOURNAL_OUTPUTS_MAX);
    if (journal->failed)
        return error_set(err, ERR_CONFLICT, "an earlier write of '%.256s' failed", journal->path);
    for (size_t i = 0; i < count; i++)
        length += 4 + strlen(states[i]);
    payload = pending_record(journal, RECORD_CHECKPOINT, length);
    put_le32(payload, (uint32_t)count);
    for (size_t i = 0; i < count; i++) {
        size_t size = strlen(states[i]);
        assert(size <= SINK_STATE_BYTES_MAX);
        put_le32(payload + at, (uint32_t)size);
        memcpy(payload + at + 4, states[i], size);
        at += 4 + size;
    }
    pending_seal(payload, length);
    return pending_flush(journal, err);
}

int journal_restart(struct journal *journal, struct error *err)
{
    if (ftruncate(journal->fd, (off_t)journal->spec_end) < 0 || fdatasync(journal->fd) < 0)
        return error_set_errno(err, errno, "cannot cut '%.256s'", journal->path);
    journal->end = journal->spec_end;
    journal->sequence = 1;
    journal->pending_size = 0;
    journal->failed = false;
    states_clear(journal);
    return 0;
}
