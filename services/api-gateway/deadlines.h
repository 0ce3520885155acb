/* Deadlines of connections against slow clients: the HTTP library only counts silence, so that one
 * byte every two seconds would live for ever. A late connection's socket is shut down; the library
 * then ends it in the usual way. Thread-safe. */
#ifndef GATEWAY_DEADLINES_H
#define GATEWAY_DEADLINES_H

#include "common/base.h"

struct deadlines;
struct deadline; /* of one connection */

struct deadlines *deadlines_new(void);
/* A new connection; its first request must have arrived within ms. */
struct deadline *deadline_add(struct deadlines *deadlines, int fd, int64_t ms);
/* ms from now; 0: none. */
void deadline_set(struct deadlines *deadlines, struct deadline *deadline, int64_t ms);
/* Before the fd is closed. Frees it. */
void deadline_remove(struct deadlines *deadlines, struct deadline *deadline);
/* Shuts down the late ones; how many. To be called every second. */
size_t deadlines_enforce(struct deadlines *deadlines);

#endif
