/* Fault injection around any source: for tests, compiled into nothing else. Header only. */
#ifndef TEST_FAULT_SOURCE_H
#define TEST_FAULT_SOURCE_H

#include <errno.h>
#include <string.h>

#include "common/clock.h"
#include "services/exporter/engine/source.h"

struct faults { /* what all sources of one copy do; counters go down */
    int64_t delay_ms;
    atomic_int errors; /* so many calls fail with `code` before they moved a byte */
    enum error_code code;
    uint64_t eio_after;      /* > 0: EIO once so many bytes came, from then on always */
    uint64_t short_at;       /* > 0: streams end behind it, and call that success */
    uint64_t wrong_at;       /* > 0: the byte at this offset is another one */
    pthread_mutex_t *serial; /* not NULL: one call at a time, whatever the number of readers */
    atomic_int calls, resets;
    atomic_uint_fast64_t bytes;
};

struct fault_source {
    struct source base;
    struct faults *faults;
    source_take *take;
    void *arg;
    uint64_t position;
};

static int fault_before(struct faults *faults, struct error *err)
{
    atomic_fetch_add(&faults->calls, 1);
    if (faults->serial != NULL)
        (void)pthread_mutex_lock(faults->serial);
    clock_sleep_ms(faults->delay_ms);
    if (faults->serial != NULL)
        (void)pthread_mutex_unlock(faults->serial);
    if (atomic_fetch_sub(&faults->errors, 1) > 0)
        return error_set(err, faults->code, "injected: the source fails");
    return 0;
}

static int fault_bytes(struct faults *faults, uint8_t *data, size_t length, uint64_t offset,
                       struct error *err)
{
    uint64_t bytes = atomic_fetch_add(&faults->bytes, length) + length;

    if (faults->eio_after > 0 && bytes > faults->eio_after)
        return error_set_errno(err, EIO, "injected");
    if (faults->wrong_at >= offset && faults->wrong_at - offset < length && faults->wrong_at > 0)
        data[faults->wrong_at - offset] ^= 0x55;
    return 0;
}

static int fault_read(struct source *source, void *buffer, size_t length, uint64_t offset,
                      struct error *err)
{
    struct fault_source *self = (struct fault_source *)source;

    if (fault_before(self->faults, err) < 0 ||
        source->below->ops->read(source->below, buffer, length, offset, err) < 0)
        return -1;
    return fault_bytes(self->faults, buffer, length, offset, err);
}

static int fault_take(void *arg, const void *data, size_t length, struct error *err)
{
    struct fault_source *self = arg;
    autofree uint8_t *copy = xmalloc(length);

    memcpy(copy, data, length);
    if (fault_bytes(self->faults, copy, length, self->position, err) < 0)
        return -1;
    self->position += length;
    return self->take(self->arg, copy, length, err);
}

static int fault_stream(struct source *source, uint64_t length, uint64_t offset, source_take *take,
                        void *arg, struct error *err)
{
    struct fault_source *self = (struct fault_source *)source;
    uint64_t end = self->faults->short_at;

    if (fault_before(self->faults, err) < 0)
        return -1;
    self->take = take;
    self->arg = arg;
    self->position = offset;
    if (end > 0 && offset + length > end)
        length = end > offset ? end - offset : 0;
    return source->below->ops->stream(source->below, length, offset, fault_take, self, err);
}

static int fault_extents(struct source *source, uint64_t offset, uint64_t length,
                         struct extent_list *out, struct error *err)
{
    return source->below->ops->extents(source->below, offset, length, out, err);
}

static void fault_reset(struct source *source)
{
    atomic_fetch_add(&((struct fault_source *)source)->faults->resets, 1);
    source->below->ops->reset(source->below);
}

static void fault_close(struct source *source)
{
    free(source);
}

static const struct source_ops fault_ops = {fault_read, fault_stream, fault_extents, fault_reset,
                                            fault_close};

/* For copy_options.wrap; arg: struct faults. */
static struct source *fault_wrap(struct source *below, void *arg)
{
    struct fault_source *self = xcalloc(1, sizeof *self);

    source_wrap_init(&self->base, &fault_ops, below);
    self->faults = arg;
    return &self->base;
}

#endif
