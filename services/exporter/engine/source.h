/* A disk to copy from, as the engine sees it: random access, or a stream, with the extents that are
 * worth reading. Wrappers are sources around a source, so each does one thing:
 *
 *   retry ( rate limit ( the provider's disk ) )        tests put a fault source in between
 *
 * A source belongs to one thread at a time. It owns the source below it. Contracts of the calls are
 * those of provider.h: disk_read, disk_stream, disk_extents. */
#ifndef EXPORTER_SOURCE_H
#define EXPORTER_SOURCE_H

#include "services/exporter/engine/provider.h"
#include "services/exporter/engine/rate_limit.h"

struct source;

typedef int source_take(void *arg, const void *data, size_t length, struct error *err);

struct source_ops {
    int (*read)(struct source *source, void *buffer, size_t length, uint64_t offset,
                struct error *err);
    /* Only called when source->streams. */
    int (*stream)(struct source *source, uint64_t length, uint64_t offset, source_take *take,
                  void *arg, struct error *err);
    /* Only called when source->has_extents. ERR_NOT_AVAILABLE: this disk knows none. */
    int (*extents)(struct source *source, uint64_t offset, uint64_t length, struct extent_list *out,
                   struct error *err);
    void (*reset)(struct source *source); /* the next call uses a new connection */
    void (*close)(struct source *source); /* frees it, not the one below */
};

struct source {
    const struct source_ops *ops;
    struct source *below; /* NULL: none */
    bool streams;         /* stream is the way to read; else read */
    bool has_extents;
};

/* Is `list` the answer to a question about [from, ...) of a disk of `size` bytes that provider.h
 * promises? ERR_PROTOCOL; `what` begins the message: "the map of used extents". */
MUST_CHECK int extent_list_check(const struct extent_list *list, uint64_t from, uint64_t size,
                                 const char *what, struct error *err);

/* Closes the whole stack. NULL-safe. */
void source_close(struct source *source);

/* The provider's disk; connects at the first call. */
struct source *source_of_provider(const struct provider *provider, struct provider_session *session,
                                  const struct frozen_vm *frozen, size_t disk_index);

/* Bytes pass at the transfer's rate, and it learns how requests go. transfer may be NULL. The time
 * spent waiting is added to *waited_ns. */
struct source *source_with_rate_take(struct source *below, struct rate_transfer *transfer,
                                     const atomic_bool *stopped, atomic_uint_fast64_t *waited_ns);

struct source_retry {
    uint32_t retries_max; /* of one call without progress in between */
    /* Waits before the next try; false: do not try again. */
    bool (*wait)(void *arg, uint32_t attempt);
    void *arg;
};
/* Calls that fail with a retryable error are repeated over a new connection, a stream behind the
 * last byte that was taken. */
struct source *source_with_retry_take(struct source *below, const struct source_retry *retry);

/* A wrapper's own part: ops, and what the source below can do. */
void source_wrap_init(struct source *source, const struct source_ops *ops, struct source *below);

#endif
