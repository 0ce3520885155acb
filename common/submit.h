/* From a submitted body to struct job_submission: aliases, checks, defaults, the tasks' specs
 * (docs/tasks.md). Pure but for the look at the file system that path_confine needs; knows no
 * database: the caller has looked up the provider. Also what the fuzz target drives. */
#ifndef COMMON_SUBMIT_H
#define COMMON_SUBMIT_H

#include "common/config_schema.h"
#include "common/fields.h"
#include "common/hooks.h"
#include "common/job_store.h"
#include "common/provider_lookup.h"
#include "common/seal.h"

#define SUBMIT_JOBS_MAX       10000      /* of one request; the body limit allows about 50,000 */
#define SUBMIT_FREE_BYTES_MAX (64 * KIB) /* metadata and tags together, travel in every lease */
#define SUBMIT_PRIORITY       50
#define SUBMIT_PARALLEL       4
#define SUBMIT_COMPRESS_LEVEL 6
#define SUBMIT_FULL_DAYS      30 /* then the restore points begin anew */
#define SUBMIT_FULL_DAYS_MAX  3650
#define SUBMIT_COMPRESSION    "zstd" /* 6 times as quick as zlib; QEMU reads it since 2020 */

struct submit_settings { /* what the configuration says; borrowed */
    const struct config_list *bases;
    const struct hyper2kvm_config *hyper2kvm;
    const struct libvirt_config *libvirt;
    const struct retry_config *retry;
    const struct seal_key *exports_key; /* for passphrases; NULL: secrets.master_key is not set */
    const struct hooks_config *hooks;   /* NULL: no scripts */
    const struct templates_config *templates; /* NULL: no variables in placeholders */
    const struct config_list *windows;        /* scheduler.maintenance_windows; NULL: none */
};

struct submit_batch { /* borrowed from the body */
    const json_t *elements[SUBMIT_JOBS_MAX];
    size_t count;
    bool atomic;
    bool single; /* the body is one job, not a list */
};
/* One job, a list, or {"jobs": [...], "atomic": bool}. */
MUST_CHECK int submit_split(const json_t *body, struct submit_batch *out,
                            struct field_problem *problem, struct error *err);

struct submit_request {
    struct job_submission submission; /* strings are borrowed from the members below */
    json_t *definition;
    json_t *export_spec; /* a passphrase in it is sealed */
    json_t *convert_spec;
    json_t *import_spec;
    struct hook_plan plan; /* the tasks of a job with hooks */
    char *output_path;
    struct provider_row provider; /* submit_prepare fills it */
    char *volume;                 /* submit_store does */
    char id[64];
};
/* vm_name: file name for the default output path; NULL: made from vm_path. The submission's
 * provider_kind, submitted_by, trace_id and idempotency members are the caller's to fill. */
MUST_CHECK int submit_parse(const struct submit_settings *settings, const json_t *element,
                            const char *vm_name, struct submit_request **out,
                            struct field_problem *problem, struct error *err);
/* A job's fields by their canonical names and checked types, values not looked at further; for
 * templates. New reference. */
MUST_CHECK int submit_names(const json_t *element, json_t **out, struct field_problem *problem,
                            struct error *err);
/* Checks the passphrase of a canonical object, if it has one, and puts it sealed into a task's
 * spec; field: its name in errors. */
MUST_CHECK int submit_seal_passphrase(const struct seal_key *key, const json_t *object,
                                      const char *field, json_t *spec,
                                      struct field_problem *problem, struct error *err);
void submit_request_free(struct submit_request *request);
DEFINE_AUTO(submit_request, struct submit_request, submit_request_free)
#define auto_submit_request CLEANUP(submit_request_auto) struct submit_request

extern const struct field submit_stage_fields[]; /* of a conversion: which ones run */
extern const char *const submit_formats[];       /* that this build writes */
extern const char *const submit_formats_later[]; /* that the reference has as well */

#endif
