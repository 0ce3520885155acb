/* Removing a domain, with its volumes or without. */
#ifndef BRIDGE_LIBVIRT_DELETE_H
#define BRIDGE_LIBVIRT_DELETE_H

#include "call.h"

struct delete_wish {
    const char *name;
    bool force;          /* cut the power if it runs */
    bool remove_storage; /* its volumes too, where nothing else uses them */
    size_t index;        /* of the domain in the call */
};

/* Puts status ("success"; "partial": the domain is gone, some volumes could not be removed),
 * domain, removed, kept and failed into answer. ERR_CONFLICT: it runs. */
MUST_CHECK int delete_domain(struct hv_call *call, const struct delete_wish *wish, json_t *answer,
                             struct error *err);
/* Why the file of a volume is not removed, whoever asks: it belongs to an export. "" if not. Caller
 * frees. */
char *delete_export_reason(const char *path);

#endif
