/* Removing exports by rules: what may go, in which order, and how it goes. Only directories with an
 * export.json are looked at. */
#ifndef EXPORTER_CLEANUP_H
#define EXPORTER_CLEANUP_H

#include <jansson.h>
#include <stdatomic.h>

#include "common/config.h"

#define CLEANUP_ITEMS_MAX   100000
#define CLEANUP_DELETE_MAX  1000 /* of one run: its list has to fit a message; the next goes on */
#define CLEANUP_AGE_DEFAULT INT64_C(2592000000) /* 720 h, when there is no other limit */
#define CLEANUP_TRASH_START ".hypersdk-trash-"

struct cleanup_policy { /* 0: no such limit */
    int64_t max_age_ms;
    uint64_t max_count;
    bool per_vm; /* max_count is per VM, else for all of them together */
    uint64_t max_size;
    uint64_t min_free;      /* with this much free nothing is removed; else until it is */
    const json_t *preserve; /* list of globs on path, base name, VM name or export id; borrowed */
};

struct cleanup_item {
    char *dir;
    char *export_id;
    char *vm_name;
    char *vm; /* provider and id: whose newest full export stays */
    char *vm_id;
    char *base_id;      /* "": a full export */
    bool restore_point; /* stands beside others of its VM (chain.h) */
    int64_t completed_ms;
    uint64_t bytes;      /* a file that exports share counts for the newest of them */
    bool outside;        /* not in the directory to be cleaned: counts as a user of its base only */
    const char *guarded; /* NULL, or why it must not go: "being written", "in use" */
    const char
        *reason;     /* of the decision: why it goes, or why it stays although a limit wants it */
    bool deleted;    /* decision */
    bool unfinished; /* a removal that was cut short */
};

struct cleanup_list {
    struct cleanup_item *items; /* newest first once decided */
    size_t count;
};
void cleanup_list_release(struct cleanup_list *list);
#define auto_cleanup_list CLEANUP(cleanup_list_release) struct cleanup_list

/* All exports below base; those not below dir are marked outside. busy: list of directories that
 * jobs work in; exports there and below are guarded. ERR_LIMIT: more than CLEANUP_ITEMS_MAX. */
MUST_CHECK int cleanup_scan(const char *base, const char *dir, const json_t *busy,
                            const atomic_bool *stopped, struct cleanup_list *out,
                            struct error *err);
/* Sets deleted and reason of every item. Pure. */
void cleanup_decide(struct cleanup_list *list, const struct cleanup_policy *policy, int64_t now_ms,
                    uint64_t free_bytes);
/* Before a removal: keeps readers and writers of the VM's restore points away until *out_fd (-1:
 * not needed) is closed. *out_why: why it must not go now, NULL when it may. */
MUST_CHECK int cleanup_lock(const struct cleanup_item *item, int *out_fd, const char **out_why,
                            struct error *err);
/* Moves the files of one export into a trash directory, its export.json first, and removes that.
 * Files that are not of the export stay. Repeatable: what was cut short is finished. */
MUST_CHECK int cleanup_remove(const struct cleanup_item *item, const char *base, struct error *err);

#endif
