/* The audit log: one row per call, committed before its answer leaves. */
#ifndef GATEWAY_AUDIT_H
#define GATEWAY_AUDIT_H

#include "transport.h"

/* Writes the row of a call whose status is known. ERR_UNAVAILABLE: the database is not there; the
 * log line "audit_not_stored" then stands for the row. */
MUST_CHECK int audit_write(struct call *call, struct db *db, struct error *err);

#endif
