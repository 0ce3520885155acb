/* See restore_points.h. */
#include "common/restore_points.h"

#include <string.h>

#include "common/autos.h"
#include "common/json.h"

static_assert(RESTORE_POINTS_VMS_MAX == 5, "limit in the statement");

/* '0' is the character behind '/': all paths below $2. */
static const char FIND[] =
    "SELECT jsonb_build_object('id', p.id, 'path', p.path, 'volume', p.volume, 'vm_id', p.vm_id,"
    " 'format', p.format,"
    " 'base_id', p.base_id,"
    " 'created_at_ms', (extract(epoch FROM p.created_at) * 1000)::bigint,"
    " 'disks', coalesce((SELECT jsonb_agg(jsonb_build_object('disk_id', d.disk_id, 'file', d.file,"
    "   'size_bytes', d.size_bytes, 'capacity_bytes', d.capacity_bytes, 'sha256', d.sha256,"
    "   'root', d.root)) FROM export_disks d WHERE d.export_id = p.id), '[]'::jsonb))"
    " FROM (SELECT DISTINCT ON (e.vm_id) e.* FROM exports e WHERE e.provider = $1"
    "   AND (e.path = $2"
    "     OR (e.path ~>=~ ($2 || '/') AND e.path ~<~ ($2 || '0')"
    "       AND strpos(substr(e.path, length($2) + 2), '/') = 0))"
    "   AND (e.vm_id = $3 OR e.vm_name = $4)"
    "   ORDER BY e.vm_id, (e.format = $5) DESC, e.created_at DESC, e.id DESC) p"
    " ORDER BY p.created_at DESC LIMIT 5";

int restore_points_find(struct db *db, const struct restore_points_wish *wish, json_t **out,
                        struct error *err)
{
    const char *vm = wish->vm;
    const char *slash = strrchr(vm, '/');
    auto_pgresult *rows = NULL;
    auto_json *points = json_array();

    if (db_exec(
            db, FIND,
            DB_PARAMS(wish->provider, wish->dir, vm, slash == NULL ? vm : slash + 1, wish->format),
            &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *point = json_loads(db_text(rows, i, 0), 0, NULL);
        if (point == NULL || json_array_append_new(points, point) < 0)
            return error_set(err, ERR_INTERNAL, "a restore point cannot be read");
    }
    *out = STEAL(points);
    return 0;
}

int restore_points_add(struct db *db, const char *provider, json_t *spec, char **out_volume,
                       struct error *err)
{
    json_t *points = NULL;

    if (json_is_true(json_object_get(spec, "incremental"))) {
        const struct restore_points_wish wish = {.provider = provider,
                                                 .dir = json_str(spec, "output_path"),
                                                 .vm = json_str(spec, "vm"),
                                                 .format = json_str(spec, "format")};
        if (restore_points_find(db, &wish, &points, err) < 0)
            return -1;
        json_put(spec, "bases", points);
    }
    if (out_volume != NULL)
        *out_volume = xstrdup(json_str(json_array_get(points, 0), "volume"));
    return 0;
}
