/* Journals of the copy engine. An input that begins with 'R' is the file itself; any other is a
 * list of records (type, length in two bytes, payload) that get right checksums and numbers, so
 * that the fuzzer reaches what stands behind them. */
#include <fcntl.h>
#include <isa-l/crc.h>
#include <stdio.h>
#include <string.h>

#include "services/exporter/engine/journal.h"
#include "services/exporter/formats/bytes.h"

#define HEAD_BYTES 24U

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct journal_spec spec = {
    .identity = "id",
    .outputs = "raw x 0\n",
    .size_bytes = 21 * MIB + 512,
    .chunk_bytes = 2 * MIB,
    .hash = true,
};

static void write_or_abort(int fd, const void *data, size_t size)
{
    if (write_all(fd, data, size) < 0)
        abort();
}

static void write_record(int fd, uint8_t type, const uint8_t *payload, size_t length,
                         uint64_t sequence)
{
    autofree uint8_t *record = xcalloc(1, HEAD_BYTES + length);

    put_le32(record, 0x524a5348U);
    put_le32(record + 4, type);
    put_le32(record + 8, (uint32_t)length);
    put_le64(record + 16, sequence);
    if (length > 0)
        memcpy(record + HEAD_BYTES, payload, length);
    put_le32(record + 12, crc32_iscsi(record, (int)(HEAD_BYTES + length), 0));
    write_or_abort(fd, record, HEAD_BYTES + length);
}

/* The file begins with the record that journal_open just wrote. */
static void write_records(int fd, const uint8_t *data, size_t size)
{
    uint64_t sequence = 1;

    if (lseek(fd, 0, SEEK_END) < 0)
        abort();
    while (size >= 3) {
        size_t length = (size_t)min_u64(get_le16(data + 1), size - 3);
        write_record(fd, data[0], data + 3, length, sequence++);
        data += 3 + length;
        size -= 3 + length;
    }
}

static int take(void *arg, const struct journal_chunks *chunks, const uint8_t *leaves,
                struct error *err)
{
    uint8_t *sum = arg;
    uint64_t end = min_u64((chunks->first + chunks->count) * spec.chunk_bytes, spec.size_bytes);

    (void)err;
    if (chunks->count == 0 || chunks->first + chunks->count > 11)
        abort();
    if (leaves != NULL) { /* all of them can be read */
        size_t count = (size_t)((end - chunks->first * spec.chunk_bytes + MIB - 1) / MIB);
        for (size_t i = 0; i < count * DIGEST_BYTES; i++)
            *sum ^= leaves[i];
    }
    return 0;
}

static void replay_and_go_on(const char *path)
{
    static const char *const states[] = {"state"};
    struct journal_chunks chunks = {.first = 3, .count = 2, .zero = true};
    struct error err = ERROR_NONE;
    auto_journal *journal = NULL;
    uint8_t sum = 0;

    if (journal_open(path, &spec, 0, NULL, &journal, &err) < 0)
        return;
    for (size_t i = 0; i < journal_state_count(journal); i++)
        (void)strlen(journal_state(journal, i));
    if (journal_replay(journal, take, &sum, &err) < 0)
        abort(); /* what opening let pass can be replayed */
    journal_add(journal, &chunks, NULL);
    if (journal_checkpoint(journal, states, 1, &err) < 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    char path[64];
    int fd;

    (void)snprintf(path, sizeof path, "/dev/shm/hsdk-fuzz-journal-%d", (int)getpid());
    (void)unlink(path);
    if (size == 0 || data[0] != 'R') {
        struct journal *journal = NULL;
        if (journal_open(path, &spec, 0, NULL, &journal, &err) < 0)
            abort();
        journal_close(journal);
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        abort();
    if (size > 0 && data[0] == 'R')
        write_or_abort(fd, data + 1, size - 1);
    else
        write_records(fd, data, size);
    (void)close(fd);
    replay_and_go_on(path);
    (void)unlink(path);
    return 0;
}
