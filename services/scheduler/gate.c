/* See gate.h. */
#include "gate.h"

#include <string.h>

static const char LOAD[] = "SELECT instance FROM workers WHERE drained_at IS NOT NULL"
                           " UNION ALL SELECT '' FROM settings WHERE key = 'queue.paused'";

int gate_load(struct db *db, struct gate *out, struct error *err)
{
    *out = (struct gate){0};
    return db_later(db, LOAD, DB_NO_PARAMS, &out->rows, err);
}

void gate_release(struct gate *gate)
{
    PQclear(gate->rows);
    gate->rows = NULL;
}

bool gate_lets(const struct gate *gate, const Hypersdk__V1__LeaseRequest *request)
{
    bool transfer = request->class_ == HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;

    for (int i = 0; i < PQntuples(gate->rows); i++) {
        const char *whom = db_text(gate->rows, i, 0);
        if (whom[0] == '\0' ? transfer : strcmp(whom, request->instance) == 0)
            return false;
    }
    return true;
}
