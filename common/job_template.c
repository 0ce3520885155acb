/* See job_template.h. */
#include "common/job_template.h"

#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/json.h"
#include "common/paths.h"
#include "common/placeholders.h"
#include "common/submit.h"
#include "common/submit_job.h"

static const char load_sql[] = "SELECT template FROM templates WHERE name = $1";

int job_template_name_check(const char *name, struct field_problem *problem, struct error *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "._-";
    size_t length = strlen(name);

    if (length > 0 && length <= JOB_TEMPLATE_NAME_MAX && strspn(name, allowed) == length &&
        strchr("._-", name[0]) == NULL)
        return 0;
    return field_fail(problem, 400, "name", err, ERR_INVALID,
                      "the name of a template has 1 to %d letters, digits, '.', '_' and '-', and "
                      "begins with a letter or digit",
                      JOB_TEMPLATE_NAME_MAX);
}

int job_template_canonical(const struct templates_config *config, const json_t *template,
                           json_t **out, struct field_problem *problem, struct error *err)
{
    auto_json *canonical = NULL;
    const char *secret = json_find_secret(template);

    if (secret != NULL) {
        return field_fail(problem, 422, secret, err, ERR_INVALID,
                          "'%.64s': a template keeps no secrets", secret);
    }
    if (submit_names(template, &canonical, problem, err) < 0)
        return -1;
    if (json_object_get(canonical, "id") != NULL) {
        return field_fail(problem, 422, "id", err, ERR_INVALID,
                          "'id' belongs to one job: leave it out");
    }
    if (placeholders_check(canonical, config == NULL ? NULL : &config->env, problem, err) < 0)
        return -1;
    *out = STEAL(canonical);
    return 0;
}

int job_template_load(struct db *db, const char *name, json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, load_sql, DB_PARAMS(name), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no template '%.64s'", name);
    *out = json_loads(db_text(rows, 0, 0), 0, NULL);
    return 0;
}

/* The element's own fields over the template's; objects member by member. */
static int merge(struct db *db, const char *name, const json_t *element, json_t **out,
                 struct field_problem *problem, struct error *err)
{
    auto_json *rest = json_copy(json_unconst(element));
    auto_json *own = NULL;
    auto_json *job = NULL;
    struct error why = ERROR_NONE;

    (void)json_object_del(rest, "template");
    if (submit_names(rest, &own, problem, err) < 0)
        return -1;
    if (job_template_load(db, name, &job, &why) < 0) {
        if (why.code == ERR_NOT_FOUND)
            return field_fail(problem, 422, "template", err, why.code, "%s", why.message);
        *err = why;
        return -1;
    }
    if (json_object_update_recursive(job, own) < 0)
        return error_set(err, ERR_INTERNAL, "a template cannot be merged");
    *out = STEAL(job);
    return 0;
}

/* A text of the job that no placeholder is in; NULL: there is none. */
static const char *plain(const json_t *job, const char *name)
{
    const char *text = field_text(job, name, NULL);

    return text == NULL || strstr(text, "{{") != NULL ? NULL : text;
}

int job_template_expand(struct db *db, const struct templates_config *config, const json_t *element,
                        json_t **out, struct field_problem *problem, struct error *err)
{
    const json_t *name = json_object_get(element, "template");
    struct placeholder_facts facts = {.now_ms = clock_wall_ms(),
                                      .env = config == NULL ? NULL : &config->env};
    auto_json *job = NULL;
    auto_json *vars = NULL;
    autofree char *vm_name = NULL;
    char id[ID_SIZE];

    *out = NULL;
    if (name == NULL || json_is_null(name))
        return 0;
    if (!json_is_string(name)) {
        return field_fail(problem, 400, "template", err, ERR_INVALID,
                          "'template' must be the name of a template");
    }
    if (merge(db, json_string_value(name), element, &job, problem, err) < 0)
        return -1;
    if (json_object_get(job, "id") == NULL) {
        id_new("job", id);
        json_set_text(job, "id", id);
    }
    facts.job_id = plain(job, "id");
    facts.vm_path = plain(job, "vm_path");
    facts.provider =
        json_object_get(job, "provider") == NULL ? PROVIDER_DEFAULT : plain(job, "provider");
    if (facts.vm_path != NULL && facts.provider != NULL &&
        submit_vm_name(db, facts.provider, facts.vm_path, &vm_name, err) < 0)
        return -1;
    facts.vm_name = vm_name != NULL         ? vm_name
                    : facts.vm_path != NULL ? path_last(facts.vm_path)
                                            : NULL;
    vars = placeholders_vars(&facts);
    return placeholders_expand(job, vars, out, problem, err);
}
