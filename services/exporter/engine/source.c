/* See source.h: the provider's disk, and retrying around any source. */
#include "services/exporter/engine/source.h"

#include <inttypes.h>

#include "common/clock.h"

int extent_list_check(const struct extent_list *list, uint64_t from, uint64_t size,
                      const char *what, struct error *err)
{
    uint64_t at = from;

    assert(list->count <= list->count_max);
    if (list->end <= from || list->end > size) {
        return error_set(err, ERR_PROTOCOL,
                         "%s ends at %" PRIu64 ", it should go on from %" PRIu64 " of %" PRIu64,
                         what, list->end, from, size);
    }
    for (size_t i = 0; i < list->count; i++) {
        const struct extent *extent = &list->items[i];
        if (extent->offset < at || !range_is_inside(extent->offset, extent->length, list->end)) {
            return error_set(err, ERR_PROTOCOL,
                             "%s is out of order at %" PRIu64 " (%" PRIu64 " bytes)", what,
                             extent->offset, extent->length);
        }
        at = extent->offset + extent->length;
    }
    return 0;
}

void source_close(struct source *source)
{
    while (source != NULL) {
        struct source *below = source->below;
        source->ops->close(source);
        source = below;
    }
}

void source_wrap_init(struct source *source, const struct source_ops *ops, struct source *below)
{
    *source = (struct source){
        .ops = ops, .below = below, .streams = below->streams, .has_extents = below->has_extents};
}

/* ---- a provider's disk ---- */

struct provider_source {
    struct source base;
    const struct provider *provider;
    struct provider_session *session;
    const struct frozen_vm *frozen;
    size_t disk_index;
    struct provider_disk *disk; /* NULL: not connected */
};

static int connect_disk(struct provider_source *self, struct error *err)
{
    if (self->disk != NULL)
        return 0;
    return self->provider->disk_open(self->session, self->frozen, self->disk_index, &self->disk,
                                     err);
}

static int provider_read(struct source *source, void *buffer, size_t length, uint64_t offset,
                         struct error *err)
{
    struct provider_source *self = (struct provider_source *)source;

    return connect_disk(self, err) < 0
               ? -1
               : self->provider->disk_read(self->disk, buffer, length, offset, err);
}

static int provider_stream(struct source *source, uint64_t length, uint64_t offset,
                           source_take *take, void *arg, struct error *err)
{
    struct provider_source *self = (struct provider_source *)source;

    return connect_disk(self, err) < 0
               ? -1
               : self->provider->disk_stream(self->disk, length, offset, take, arg, err);
}

static int provider_extents(struct source *source, uint64_t offset, uint64_t length,
                            struct extent_list *out, struct error *err)
{
    struct provider_source *self = (struct provider_source *)source;

    return connect_disk(self, err) < 0
               ? -1
               : self->provider->disk_extents(self->disk, offset, length, out, err);
}

static void provider_reset(struct source *source)
{
    struct provider_source *self = (struct provider_source *)source;

    self->provider->disk_close(STEAL(self->disk));
}

static void provider_close(struct source *source)
{
    provider_reset(source);
    free(source);
}

static const struct source_ops provider_ops = {provider_read, provider_stream, provider_extents,
                                               provider_reset, provider_close};

struct source *source_of_provider(const struct provider *provider, struct provider_session *session,
                                  const struct frozen_vm *frozen, size_t disk_index)
{
    struct provider_source *self = xcalloc(1, sizeof *self);

    self->base = (struct source){.ops = &provider_ops,
                                 .streams = provider->disk_stream != NULL,
                                 .has_extents = provider->disk_extents != NULL};
    self->provider = provider;
    self->session = session;
    self->frozen = frozen;
    self->disk_index = disk_index;
    return &self->base;
}

/* ---- retry ---- */

struct retry_source {
    struct source base;
    struct source_retry retry;
};

/* After a failed call: true = the next try has a new connection; false: err stands. */
static bool try_again(struct retry_source *self, uint32_t *attempt, struct error *err)
{
    if (!error_is_retryable(err))
        return false;
    if (*attempt >= self->retry.retries_max) {
        if (*attempt > 0)
            (void)error_wrap(err, "given up after %" PRIu32 " retries", *attempt);
        return false;
    }
    if (!self->retry.wait(self->retry.arg, *attempt))
        return false;
    (*attempt)++;
    error_clear(err);
    self->base.below->ops->reset(self->base.below);
    return true;
}

static int retry_read(struct source *source, void *buffer, size_t length, uint64_t offset,
                      struct error *err)
{
    struct retry_source *self = (struct retry_source *)source;
    uint32_t attempt = 0;

    while (source->below->ops->read(source->below, buffer, length, offset, err) < 0) {
        if (!try_again(self, &attempt, err))
            return -1;
    }
    return 0;
}

struct counted {
    source_take *take;
    void *arg;
    uint64_t taken;
};

static int take_counted(void *arg, const void *data, size_t length, struct error *err)
{
    struct counted *counted = arg;

    if (counted->take(counted->arg, data, length, err) < 0)
        return -1;
    counted->taken += length;
    return 0;
}

static int retry_stream(struct source *source, uint64_t length, uint64_t offset, source_take *take,
                        void *arg, struct error *err)
{
    struct retry_source *self = (struct retry_source *)source;
    struct counted counted = {.take = take, .arg = arg};
    uint32_t attempt = 0;
    uint64_t before = 0;

    while (source->below->ops->stream(source->below, length - counted.taken, offset + counted.taken,
                                      take_counted, &counted, err) < 0) {
        if (counted.taken > before)
            attempt = 0;
        before = counted.taken;
        if (!try_again(self, &attempt, err))
            return -1;
        if (counted.taken >= length)
            return 0; /* it failed behind the last byte */
    }
    return 0;
}

static int retry_extents(struct source *source, uint64_t offset, uint64_t length,
                         struct extent_list *out, struct error *err)
{
    struct retry_source *self = (struct retry_source *)source;
    uint32_t attempt = 0;

    while (source->below->ops->extents(source->below, offset, length, out, err) < 0) {
        if (!try_again(self, &attempt, err))
            return -1;
    }
    return 0;
}

static void wrapper_reset(struct source *source)
{
    source->below->ops->reset(source->below);
}

static void wrapper_close(struct source *source)
{
    free(source);
}

static const struct source_ops retry_ops = {retry_read, retry_stream, retry_extents, wrapper_reset,
                                            wrapper_close};

struct source *source_with_retry_take(struct source *below, const struct source_retry *retry)
{
    struct retry_source *self = xcalloc(1, sizeof *self);

    source_wrap_init(&self->base, &retry_ops, below);
    self->retry = *retry;
    return &self->base;
}

/* ---- rate limit ---- */

struct rate_source {
    struct source base;
    struct rate_transfer *transfer;
    const atomic_bool *stopped;
    atomic_uint_fast64_t *waited_ns;
};

static int pay(struct rate_source *self, size_t length, struct error *err)
{
    int64_t start_ns = clock_mono_ns();
    int rc = rate_take(self->transfer, length, self->stopped, err);

    atomic_fetch_add(self->waited_ns, (uint64_t)(clock_mono_ns() - start_ns));
    return rc;
}

static int rate_read(struct source *source, void *buffer, size_t length, uint64_t offset,
                     struct error *err)
{
    struct rate_source *self = (struct rate_source *)source;
    int64_t start_ns;
    int rc;

    if (pay(self, length, err) < 0)
        return -1;
    start_ns = clock_mono_ns();
    rc = source->below->ops->read(source->below, buffer, length, offset, err);
    rate_note(self->transfer, rc == 0 || !error_is_retryable(err), clock_mono_ns() - start_ns);
    return rc;
}

struct limited {
    struct rate_source *source;
    source_take *take;
    void *arg;
    int64_t start_ns;
    int64_t latency_ns; /* -1: nothing came yet */
};

/* Bytes that came are paid for before more of them are fetched: the peer is held back by its full
 * socket. */
static int take_limited(void *arg, const void *data, size_t length, struct error *err)
{
    struct limited *limited = arg;

    if (limited->latency_ns < 0)
        limited->latency_ns = clock_mono_ns() - limited->start_ns;
    if (pay(limited->source, length, err) < 0)
        return -1;
    return limited->take(limited->arg, data, length, err);
}

static int rate_stream(struct source *source, uint64_t length, uint64_t offset, source_take *take,
                       void *arg, struct error *err)
{
    struct rate_source *self = (struct rate_source *)source;
    struct limited limited = {
        .source = self, .take = take, .arg = arg, .start_ns = clock_mono_ns(), .latency_ns = -1};
    int rc = source->below->ops->stream(source->below, length, offset, take_limited, &limited, err);

    rate_note(self->transfer, rc == 0 || !error_is_retryable(err), limited.latency_ns);
    return rc;
}

static int rate_extents(struct source *source, uint64_t offset, uint64_t length,
                        struct extent_list *out, struct error *err)
{
    return source->below->ops->extents(source->below, offset, length, out, err);
}

static const struct source_ops rate_ops = {rate_read, rate_stream, rate_extents, wrapper_reset,
                                           wrapper_close};

struct source *source_with_rate_take(struct source *below, struct rate_transfer *transfer,
                                     const atomic_bool *stopped, atomic_uint_fast64_t *waited_ns)
{
    struct rate_source *self = xcalloc(1, sizeof *self);

    source_wrap_init(&self->base, &rate_ops, below);
    self->transfer = transfer;
    self->stopped = stopped;
    self->waited_ns = waited_ns;
    return &self->base;
}
