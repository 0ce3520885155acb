/* What an import has made, or is about to make, outside: in the task's records. */
#ifndef BRIDGE_LIBVIRT_RECORDS_H
#define BRIDGE_LIBVIRT_RECORDS_H

#include "common/worker.h"
#include "connection.h"

#define REPLACED_XML_MAX ((size_t)(64 * KIB)) /* of the definition that ours replaces */

struct made_volume { /* texts are borrowed from json */
    json_t *json;
    const char *pool;
    const char *name;
    bool complete;
};
/* false: no such record, or it was found to be someone else's. Release json. */
bool record_volume(const struct worker_task *task, size_t index, struct made_volume *out);
MUST_CHECK int record_volume_put(struct worker_task *task, size_t index, const char *pool,
                                 const char *name, bool complete, struct error *err);
MUST_CHECK int record_volume_drop(struct worker_task *task, size_t index, struct error *err);

/* Where the import goes and whose it is, before anything else. The job's id also names it for a
 * release, which has no job. */
MUST_CHECK int record_target_put(struct worker_task *task, const char *uri, const char *job_id,
                                 struct error *err);
/* NULL: nothing was begun. New reference: {"uri", "job"} */
json_t *record_target(const struct worker_task *task);

/* "": none. The domain's UUID, before it is defined. */
const char *record_uuid(const struct worker_task *task);
MUST_CHECK int record_uuid_put(struct worker_task *task, const char *uuid, struct error *err);

/* Names and UUIDs of that libvirt are ours to look at and to take, until the release: for libvirt a
 * definition of the same name and UUID is the same domain, so that two imports of one VM would
 * both be told that they had made it. Waits for the one before. */
MUST_CHECK int record_names_claim(struct worker_task *task, const char *uri, struct error *err);
MUST_CHECK int record_names_release(struct worker_task *task, struct error *err);

/* The definition that ours takes the place of; NULL: none. Caller frees. */
char *record_replaced(const struct worker_task *task);
/* xml "": none. ERR_LIMIT. */
MUST_CHECK int record_replaced_put(struct worker_task *task, const char *xml, struct error *err);

/* A finished export's directory that gets the mark of being used; "": none. */
const char *record_mark(const struct worker_task *task, size_t index);
MUST_CHECK int record_mark_put(struct worker_task *task, size_t index, const char *dir,
                               struct error *err);

#endif
