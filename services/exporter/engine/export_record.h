/* export.json: what an export is, written last; whoever finds it in a directory knows that the
 * export there is complete. The same text stands as export.json.partial before the first file gets
 * its final name, so that any process can repeat the finishing from it.
 *
 *   record_version 1, export_id, job_id, task_id, tool{name,version}, started_at, completed_at,
 *   duration_seconds, provider{kind,instance}, source{vm_id,vm_name,...,method}, format, convert,
 *   verified, options{the task's spec}, transferred_bytes, phases{<phase>: seconds},
 *   disks[{disk_id,label,capacity_bytes,data_bytes,root,leaves,mark,change_id,file,size_bytes,
 *          sha256,images[{name,member}]; of incremental ones changed_bytes, backing}],
 *   incremental{mode: full|leaf|disk,reason | base_id,base_dir,chain[],full_at_ms,changed_bytes,
 *          total_bytes,disks[{id,shared,shared_with,checksum}]},
 * files[{name,type,size,sha256,shared_with}], warnings[]
 *
 * An export of mode "leaf" stands on its base (chain.h). One of mode "disk" needs no other: files
 * with "shared_with" are hard links of the base's. */
#ifndef EXPORTER_EXPORT_RECORD_H
#define EXPORTER_EXPORT_RECORD_H

#include <jansson.h>

#include "services/exporter/formats/digest.h"

#define EXPORT_RECORD_NAME      "export.json"
#define EXPORT_RECORD_VERSION   1
#define EXPORT_RECORD_BYTES_MAX ((size_t)(2 * MIB)) /* 64 disks need 100 KiB, metadata 1 MiB */
#define EXPORT_FILES_MAX        300 /* 64 disks: two images and leaves each, and seven more */

struct export_record_file { /* borrowed from the document */
    const char *name;       /* plain base name, never export.json */
    const char *type;       /* ovf, ova, mf, disk, leaves, manifest, checksums, evidence */
    const char *sha256;
    uint64_t size;
    bool shared; /* a hard link of an earlier export's file */
};

struct export_record {
    json_t *document;
    const char *export_id;
    struct export_record_file files[EXPORT_FILES_MAX];
    size_t file_count;
};

/* ERR_CORRUPT: not such a document, or a name in it that is no plain file name, or a name twice. */
MUST_CHECK int export_record_parse(const char *text, size_t size, struct export_record **out,
                                   struct error *err);
/* ERR_NOT_FOUND: there is none. */
MUST_CHECK int export_record_load(const char *path, struct export_record **out, struct error *err);
void export_record_free(struct export_record *record); /* NULL-safe */
/* Id of the export that this one stands on; "" when it needs none. */
const char *export_record_base_id(const struct export_record *record);
DEFINE_AUTO(export_record, struct export_record, export_record_free)
#define auto_export_record CLEANUP(export_record_auto) struct export_record

struct export_place { /* of a finished export */
    const char *dir;
    const char *volume;
    uint64_t record_bytes;  /* of export.json */
    const json_t *manifest; /* artifact-manifest.json */
};

/* The task's result (docs/tasks.md) of the finished export: new reference. */
void export_record_result(const struct export_record *record, const struct export_place *place,
                          json_t **out);

/* object[key] = a size or count below 2^63. */
void export_set_u64(json_t *object, const char *key, uint64_t value);
/* A new object at the array's end, borrowed. */
json_t *export_append(json_t *array);

#endif
