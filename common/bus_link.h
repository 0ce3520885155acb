/* Part of common/bus (includes nng, so nobody else includes it): sockets that dial, one for each
 * configured address, because only one scheduler leads.
 *
 * One socket for all addresses would go round among its connections, and the connection to a
 * leader that was stopped, or whose machine is cut off, looks alive for minutes: every second
 * message would be lost with it. Only the leader listens, so the newest connection is the
 * leader's: it is used, and what waits for an answer on another one is called off. */
#ifndef COMMON_BUS_LINK_H
#define COMMON_BUS_LINK_H

#include <nng/nng.h>

#include "common/config_schema.h"
#include "common/error.h"

struct bus_links;

struct bus_links_description {
    int (*open)(nng_socket *out);
    /* Dials in the background; socket options are set before. */
    int (*dial)(nng_socket socket, const struct bus_config *config, const char *address,
                struct error *err);
    const char *what; /* for errors: "req" */
};

/* Lives as long as the process. */
MUST_CHECK int bus_links_open(const struct bus_links_description *description,
                              const struct bus_config *config, const struct config_list *addresses,
                              struct bus_links **out, struct error *err);

/* The socket that the leader was last seen on; any when there was none yet. */
nng_socket bus_links_current(struct bus_links *links);

/* One call: on the caller's stack from begin to end. */
struct bus_link_call {
    nng_aio *aio;
    size_t link;
    int pipe;
    int64_t sent_ms;
    bool called_off;
    struct bus_link_call *next;
};

/* Waits until deadline_ms for a connection (with one address nng itself waits: the message goes out
 * when it is there). false: none came. */
bool bus_links_begin(struct bus_links *links, struct bus_link_call *call, nng_aio *aio,
                     int64_t deadline_ms, nng_socket *out);
/* rv: what became of it. Before the aio is freed. */
void bus_links_end(struct bus_links *links, struct bus_link_call *call, int rv);

#endif
