/* Templates of jobs: a job's fields with placeholders (common/placeholders.h) under a name. A
 * submission that names one gets its fields where it has none of its own. */
#ifndef COMMON_JOB_TEMPLATE_H
#define COMMON_JOB_TEMPLATE_H

#include "common/config_schema.h"
#include "common/db.h"
#include "common/fields.h"

#define JOB_TEMPLATE_NAME_MAX 63

/* Letters, digits, '.', '_' and '-'. 400. */
MUST_CHECK int job_template_name_check(const char *name, struct field_problem *problem,
                                       struct error *err);
/* What is stored of a template: names of a job's fields made canonical, placeholders known, no
 * secrets, nothing that belongs to one job only. Values are checked when a job is made. *out: new
 * reference. */
MUST_CHECK int job_template_canonical(const struct templates_config *config, const json_t *template,
                                      json_t **out, struct field_problem *problem,
                                      struct error *err);
/* ERR_NOT_FOUND without one of that name. *out: new reference. */
MUST_CHECK int job_template_load(struct db *db, const char *name, json_t **out, struct error *err);

/* A submitted element with "template": *out is the whole job, which has no such member, and an id.
 * Of one without it *out is NULL. */
MUST_CHECK int job_template_expand(struct db *db, const struct templates_config *config,
                                   const json_t *element, json_t **out,
                                   struct field_problem *problem, struct error *err);

#endif
