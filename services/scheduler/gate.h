/* Who gets nothing now, whatever waits: everyone while the queue is paused, workers that are
 * drained. Looked at once per round of the dispatcher. */
#ifndef SCHEDULER_GATE_H
#define SCHEDULER_GATE_H

#include "scheduler.h"

struct gate {
    PGresult *rows; /* drained instances; '': the queue is paused */
};
/* In a transaction: it is there with its next answer (db_later). */
MUST_CHECK int gate_load(struct db *db, struct gate *out, struct error *err);
void gate_release(struct gate *gate);
/* May this worker be given what it asks for? A paused queue holds transfers only: listings and
 * releases go on. */
bool gate_lets(const struct gate *gate, const Hypersdk__V1__LeaseRequest *request);

#endif
