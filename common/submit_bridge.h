/* Jobs that are the bridge's alone, the same for whoever asks: conversions and imports of what
 * exists already (rest-api.md section 8), kinds "convert" and "import"; and scripts and webhooks as
 * steps of workflows, kinds "script" and "webhook". See submit_job.h. */
#ifndef COMMON_SUBMIT_BRIDGE_H
#define COMMON_SUBMIT_BRIDGE_H

#include "common/submit_job.h"

struct bridge_request {
    struct job_submission submission; /* strings are borrowed from the members below */
    struct job_task task;             /* of a workflow's step */
    json_t *definition;               /* canonical */
    json_t *spec;
    json_t *import_spec; /* of a conversion that goes on into libvirt; NULL: it does not */
    json_t *disks;       /* of an import: confined paths; NULL: the manifest's */
    PGresult *export;    /* of an import: the catalogue's row, with export_id */
    char *path;          /* confined source or manifest; NULL: none */
    const char *domain;  /* of an import; NULL: the manifest says it */
    char id[64];
};
void bridge_request_free(struct bridge_request *request);
DEFINE_AUTO(bridge_request, struct bridge_request, bridge_request_free)
#define auto_bridge_request CLEANUP(bridge_request_auto) struct bridge_request

/* problem->status stays 0 when it is not the request's fault. */
MUST_CHECK int submit_convert_prepare(const struct submit_settings *settings, const json_t *element,
                                      struct bridge_request **out, struct field_problem *problem,
                                      struct error *err);
/* Of a manifest that is sent along; kept until the request is freed. */
MUST_CHECK int submit_convert_manifest(const struct submit_settings *settings, json_t *manifest,
                                       struct bridge_request **out, struct field_problem *problem,
                                       struct error *err);
MUST_CHECK int submit_import_prepare(const struct submit_settings *settings, struct db *db,
                                     const json_t *element, struct bridge_request **out,
                                     struct field_problem *problem, struct error *err);
/* A script or webhook as a step of a workflow; element: its type and the members of such a hook. */
struct submit_step_facts { /* borrowed, also by the request */
    const char *workflow;
    const char *run_id; /* NULL: only to be checked */
    const char *step;
};
MUST_CHECK int submit_step_prepare(const struct submit_settings *settings,
                                   const struct submit_step_facts *facts, const json_t *element,
                                   struct bridge_request **out, struct field_problem *problem,
                                   struct error *err);
/* Stores it as submit_store does. */
MUST_CHECK int submit_bridge_store(struct db *db, struct bridge_request *request,
                                   const struct submit_origin *origin, char out_id[64],
                                   struct error *err);

#endif
