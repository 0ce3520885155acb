/* What a leased task of an exporter works with: its configuration sections, the provider, and a
 * session opened with the unsealed secrets of the task's provider instance. */
#ifndef EXPORTER_SESSION_H
#define EXPORTER_SESSION_H

#include "common/config_schema.h"
#include "common/seal.h"
#include "common/worker.h"
#include "services/exporter/engine/provider.h"
#include "services/exporter/engine/rate_limit.h"

struct exporter { /* one per process; read-only while tasks run */
    const struct provider *provider;
    struct seal_key *key;          /* audience provider:<kind> */
    struct seal_key *evidence_key; /* signs (export_evidence.h); NULL: exports have no evidence */
    const char *key_dir;           /* secrets.key_dir; borrowed */
    struct export_config export;
    struct config_list bases;     /* base_path, then allowed_paths */
    json_t *uploads;              /* section "uploads"; secrets inside */
    struct rate_limiter *limiter; /* what all transfers of the process share */
};

struct exporter_session {
    struct exporter *exporter;
    void *config;                     /* provider->config_size bytes */
    struct provider_session *session; /* open, not necessarily logged in */
};

/* The task's own, or an override (validate). */
struct exporter_settings {
    const json_t *plain;
    const void *sealed;
    size_t sealed_size; /* 0: no secrets */
};
/* ERR_INVALID: a setting is wrong or missing; ERR_DENIED: the secrets were sealed with another key.
 */
MUST_CHECK int exporter_session_open(struct exporter *exporter,
                                     const struct exporter_settings *settings,
                                     const atomic_bool *stopped, struct exporter_session *out,
                                     struct error *err);
void exporter_session_close(struct exporter_session *session);
#define auto_exporter_session CLEANUP(exporter_session_close) struct exporter_session

/* provider.h's record interface over a task's records. */
struct exporter_records {
    struct task_records base; /* first: provider callbacks get this */
    struct worker_task *task;
};
void exporter_records_init(struct exporter_records *records, struct worker_task *task);

/* The VM that `identifier` means: provider id, inventory path, or exact name, in this order.
 * ERR_NOT_FOUND / ERR_CONFLICT list candidates (at most 5). *out_id: caller frees. */
MUST_CHECK int exporter_vm_find(struct exporter_session *session, const char *identifier,
                                char **out_id, struct error *err);

/* The task kind "export" (export.c); arg is the struct exporter. */
int exporter_run_export(struct worker_task *task, void *arg, json_t **out_result,
                        struct error *err);
/* Removes the partial files that the records of `task` (those of a dead export) name. */
MUST_CHECK int exporter_discard_output(struct worker_task *task, struct exporter *exporter,
                                       struct error *err);
/* Aborts the unfinished uploads that the records of `task` (those of a dead export) name. */
MUST_CHECK int exporter_abort_uploads(struct worker_task *task, struct exporter *exporter,
                                      struct error *err);

#endif
