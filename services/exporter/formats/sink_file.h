/* What all sinks share: opening the partial file, its checkpoint text, and the writeback window
 * that keeps the page cache from filling with a whole disk. */
#ifndef EXPORTER_SINK_FILE_H
#define EXPORTER_SINK_FILE_H

#include "services/exporter/formats/sink.h"

#define SINK_DISK_BYTES_MAX (64 * 1024 * GIB) /* 64 TiB: vSphere's largest disk is 62 TiB */
#define SINK_FILE_MODE      0640

/* Checks options->size_bytes, then creates (and empties) options->path, or opens the existing file
 * when options->resume is set. */
MUST_CHECK int sink_file_open(const struct sink_options *options, int *out_fd, struct error *err);

/* ERR_INVALID: this format has no such compression level, or no compression or backing file of its
 * own although options name one. */
MUST_CHECK int sink_level_check(const struct sink_options *options, const char *format, int max,
                                struct error *err);

/* "<tag> key=number key=number": the number behind key, or an error that names the key. */
MUST_CHECK int sink_state_u64(const char *state, const char *tag, const char *key, uint64_t max,
                              uint64_t *out, struct error *err);

/* The same for bytes in hexadecimal digits. */
MUST_CHECK int sink_state_bytes(const char *state, const char *tag, const char *key, uint8_t *out,
                                size_t size, struct error *err);

/* "<path>.index" of an image that is sent on (sink.h), "<path>.<offset>.index" of one that is a
 * part of its file: entries of one size, appended, durable by the checkpoint that counts them. fd
 * -1: there is none, and nothing is done. */
struct sink_index {
    int fd;
    size_t entry_bytes;
    uint64_t count;
};

/* New, or the existing one with options->resume: ERR_NOT_FOUND. */
MUST_CHECK int sink_index_open(const struct sink_options *options, size_t entry_bytes,
                               struct sink_index *out, struct error *err);
void sink_index_close(struct sink_index *index);
MUST_CHECK int sink_index_append(struct sink_index *index, const void *entry, struct error *err);
/* ERR_CORRUPT: it is shorter. */
MUST_CHECK int sink_index_read(const struct sink_index *index, uint64_t first, void *out,
                               size_t count, struct error *err);
/* Goes on behind that many entries. */
MUST_CHECK int sink_index_cut(struct sink_index *index, uint64_t count, struct error *err);
MUST_CHECK int sink_index_sync(const struct sink_index *index, struct error *err);

#define WRITEBACK_WINDOW_BYTES (8 * MIB) /* measured: 3x plain buffered writing */
#define WRITEBACK_RANGES_MAX   32        /* of one window; pieces may come in any order */

struct writeback_window {
    struct {
        uint64_t offset;
        uint64_t length;
    } ranges[WRITEBACK_RANGES_MAX];
    size_t count;
    uint64_t bytes;
};

/* Tells the kernel to write what was written, one window behind the writers, and to forget it.
 * Thread-safe. It is no durability: fdatasync is. */
struct writeback {
    int fd;
    pthread_mutex_t mutex; /* guards filling, waiting */
    struct writeback_window filling;
    struct writeback_window waiting;
};

void writeback_init(struct writeback *writeback, int fd);
void writeback_release(struct writeback *writeback);
/* [offset, offset+length) was just written. Blocks the caller whose bytes fill a window until the
 * window before it is on disk; that is the back-pressure of a slow disk. */
void writeback_wrote(struct writeback *writeback, uint64_t offset, uint64_t length);

#endif
