/* The catalogue's restore points of a directory: what an incremental export may stand on. The
 * scheduler puts it into the lease of an export, the gateway into that of an analysis; workers do
 * not ask the database. */
#ifndef COMMON_RESTORE_POINTS_H
#define COMMON_RESTORE_POINTS_H

#include <jansson.h>

#include "common/db.h"

#define RESTORE_POINTS_VMS_MAX 5 /* VMs of the same name whose points lie in one directory */

struct restore_points_wish {
    const char *provider;
    const char *dir;
    const char *vm;     /* provider id, path or name */
    const char *format; /* of the new export */
};

/* Of each VM that may be meant the youngest export in `dir` or directly below it: of that format,
 * else of any. A new array of {"id", "path", "volume", "vm_id", "format", "base_id",
 * "created_at_ms", "disks": [{"disk_id", "file", "size_bytes", "capacity_bytes", "sha256",
 * "root"}]}. */
MUST_CHECK int restore_points_find(struct db *db, const struct restore_points_wish *wish,
                                   json_t **out, struct error *err);
/* The same into spec["bases"] of an export or analysis that wants to be incremental; other specs
 * stay as they are. *out_volume ("" if there is none; may be NULL; caller frees): where they lie.
 */
MUST_CHECK int restore_points_add(struct db *db, const char *provider, json_t *spec,
                                  char **out_volume, struct error *err);

#endif
