/* Envelopes of the bus in memory: made, decoded, freed. What they may hold: bus_check.c. */
#include <stdio.h>

#include "common/bus.h"
#include "common/clock.h"
#include "common/id.h"

void bus_envelope_init(bus_envelope *out, struct bus_envelope_store *store, const char *sender,
                       const char *traceparent)
{
    char id[ID_SIZE];

    hypersdk__v1__envelope__init(out);
    id_new("msg", id);
    (void)snprintf(store->message_id, sizeof store->message_id, "%s", id);
    (void)snprintf(store->traceparent, sizeof store->traceparent, "%s",
                   traceparent == NULL ? "" : traceparent);
    out->version = BUS_PROTOCOL_VERSION;
    out->message_id = store->message_id;
    out->traceparent = store->traceparent;
    out->sender = (char *)(uintptr_t)sender;
    out->sent_at_ms = clock_wall_ms();
}

void bus_envelope_free(bus_envelope *envelope)
{
    if (envelope != NULL)
        hypersdk__v1__envelope__free_unpacked(envelope, NULL);
}

int bus_envelope_decode(const void *data, size_t size, bus_envelope **out, struct error *err)
{
    auto_bus_envelope *envelope = NULL;

    if (size > BUS_MESSAGE_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "bus: message of %zu bytes is over %zu", size,
                         BUS_MESSAGE_BYTES_MAX);
    }
    envelope = hypersdk__v1__envelope__unpack(NULL, size, data);
    if (envelope == NULL)
        return error_set(err, ERR_PROTOCOL, "bus: message of %zu bytes cannot be decoded", size);
    if (bus_envelope_check(envelope, err) < 0)
        return -1;
    *out = STEAL(envelope);
    return 0;
}
