/* See gate.h. */
#include "gate.h"

#include <string.h>

static const char LOAD[] = "SELECT instance FROM workers WHERE drained_at IS NOT NULL"
                           " UNION ALL SELECT '' FROM settings WHERE key = 'queue.paused'";

int gate_load(struct db *db, struct gate *out, struct error *err)
{
    *out = (struct gate){0};
    if (db_exec(db, LOAD, DB_NO_PARAMS, &out->rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(out->rows); i++)
        out->queue_paused = out->queue_paused || db_text(out->rows, i, 0)[0] == '\0';
    return 0;
}

void gate_release(struct gate *gate)
{
    PQclear(gate->rows);
    gate->rows = NULL;
}

bool gate_lets(const struct gate *gate, const Hypersdk__V1__LeaseRequest *request)
{
    if (gate->queue_paused && request->class_ == HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER)
        return false;
    for (int i = 0; i < PQntuples(gate->rows); i++) {
        if (strcmp(db_text(gate->rows, i, 0), request->instance) == 0)
            return false;
    }
    return true;
}
