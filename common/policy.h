/* Backup policies (rest-api.md section 5): a schedule over a VM query. A policy is a schedule's row
 * with a policy_id, whose fields say which VMs instead of which job (schedule.h); the same code
 * fires it. The VMs are those that the inventory has when it fires. */
#ifndef COMMON_POLICY_H
#define COMMON_POLICY_H

#include "common/db.h"
#include "common/fields.h"

#define POLICY_VMS_MAX         1000 /* as many jobs as one request may submit */
#define POLICY_INVENTORY_AGE_S 300  /* an older inventory is read again first */

/* Besides SCHEDULE_FIELDS. */
#define POLICY_FIELDS                                                 \
    {"vm_filter", {NULL}, FIELD_OBJECT, 0, 0, NULL},                  \
        {"export_options", {NULL}, FIELD_OBJECT, 0, 0, NULL},         \
        {"hyper2kvm_integration", {NULL}, FIELD_OBJECT, 0, 0, NULL},  \
    {                                                                 \
        "max_parallel", {NULL}, FIELD_NUMBER, 1, POLICY_VMS_MAX, NULL \
    }

/* Checks and canonicalises these members; export_options is looked at by submit_prepare. */
MUST_CHECK int policy_check(json_t *fields, struct field_problem *problem, struct error *err);
const char *policy_provider(const json_t *fields);
/* id, name, path, power state of the VMs that the inventory has now; ERR_LIMIT: too many;
 * ERR_NOT_AVAILABLE: the inventory does not know the tags or clusters that are asked for. */
MUST_CHECK int policy_vms(struct db *db, const json_t *fields, PGresult **out, struct error *err);
/* The job of one VM as a submit takes it. New reference. */
json_t *policy_element(const json_t *fields, const char *vm_path);
/* The jobs of a run. ERR_CONFLICT: no VM matches. New reference. */
MUST_CHECK int policy_elements(struct db *db, const json_t *fields, json_t **out,
                               struct error *err);
/* Is the inventory young enough, or could a worker not read it again? If neither, a worker is asked
 * to. Works in the caller's transaction. */
MUST_CHECK int policy_inventory_ready(struct db *db, const json_t *fields, bool *out,
                                      struct error *err);

#endif
