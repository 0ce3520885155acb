/* Placeholders in templates, schedules, policies and workflows: "{{ .VMName }}" in any text of a
 * JSON document becomes the value of that name. One pass: what a value brings in is not looked at
 * again. Names are VMName, VMPath, Date (2026-03-01, UTC), Time (140509, UTC), JobID, Provider and
 * Env.<NAME> for the variables that the configuration allows.
 *
 * Where a text names a place, a value is one part of it and no more: in paths and upload URLs it is
 * made a file name (no '/', no ".."), in web addresses it is percent-encoded. Values of Env come
 * from whoever runs the service and are taken as they are. Paths are confined afterwards anyway. */
#ifndef COMMON_PLACEHOLDERS_H
#define COMMON_PLACEHOLDERS_H

#include "common/config.h"
#include "common/fields.h"

#define PLACEHOLDER_TEXT_BYTES_MAX  65536   /* of one expanded text */
#define PLACEHOLDER_TOTAL_BYTES_MAX 1048576 /* of all expanded texts: the limit of a body */

struct placeholder_facts { /* NULL: has no value here; borrowed */
    const char *vm_name;
    const char *vm_path;
    const char *job_id;
    const char *provider;
    int64_t now_ms;                /* for Date and Time */
    const struct config_list *env; /* templates.env; variables that are not set have no value */
};
/* {"VMName": "web", ..., "Env": {"SITE": "a"}}; new reference. */
json_t *placeholders_vars(const struct placeholder_facts *facts);
/* vars of a user over those of the facts (both as above; given: NULL or an object). Unknown names
 * are 422, values that are no clean texts 400. Env cannot be given. */
MUST_CHECK int placeholders_merge(json_t *vars, const json_t *given, struct field_problem *problem,
                                  struct error *err);
/* *out: a new document in which all texts are expanded; names of members stay as they are. A name
 * that is unknown or has no value, and "{{" without a proper end, are 422; problem->field is the
 * place ("post_hooks[1].destination"). */
MUST_CHECK int placeholders_expand(const json_t *document, const json_t *vars, json_t **out,
                                   struct field_problem *problem, struct error *err);
/* Only the syntax and the names, for documents that are stored: values are not known yet. */
MUST_CHECK int placeholders_check(const json_t *document, const struct config_list *env,
                                  struct field_problem *problem, struct error *err);
/* Does any text of it name the placeholder ("VMName")? */
bool placeholders_uses(const json_t *document, const char *name);

#endif
