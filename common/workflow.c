/* See workflow.h. */
#include "common/workflow.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/hooks.h"
#include "common/json.h"
#include "common/vm_dir.h"
#include "common/webhook_post.h"

#define DESCRIPTION_MAX 1000

static const char *const type_names[] = {"batch", "job",    "convert", "import",
                                         "wait",  "script", "webhook", NULL};
static const char *const when_names[] = {"success", "failure", "always", NULL};
/* Words that are routes below /workflows/. */
static const char *const reserved_names[] = {"list", "runs", NULL};

static const struct field wrapper_fields[] = {
    {"workflow", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    {0},
};
static const struct field workflow_fields[] = {
    {"name", {NULL}, FIELD_TEXT, 1, WORKFLOW_ID_BYTES_MAX, NULL},
    {"description", {NULL}, FIELD_TEXT, 0, DESCRIPTION_MAX, NULL},
    {"steps", {NULL}, FIELD_ANY, 0, 0, NULL},
    {0},
};

#define STEP_FIELDS                                                       \
    {"id", {NULL}, FIELD_TEXT, 1, WORKFLOW_ID_BYTES_MAX, NULL},           \
        {"type", {NULL}, FIELD_TEXT, 1, 16, NULL},                        \
        {"depends_on", {NULL}, FIELD_TEXT_LIST, 0, FIELD_LIST_MAX, NULL}, \
    {                                                                     \
        "when", {NULL}, FIELD_TEXT, 1, 16, NULL                           \
    }
static const struct field batch_fields[] = {
    STEP_FIELDS,
    {"vms", {NULL}, FIELD_TEXT_LIST, 1, WORKFLOW_ITEMS_MAX, NULL},
    {"parallel", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"max_parallel", {NULL}, FIELD_NUMBER, 1, WORKFLOW_PARALLEL_MAX, NULL},
    {"job", {"job_template", "job_definition"}, FIELD_OBJECT, 0, 0, NULL},
    {0},
};
static const struct field job_step_fields[] = {
    STEP_FIELDS,
    {"job", {"job_template", "job_definition"}, FIELD_OBJECT, 0, 0, NULL},
    {0},
};
static const struct field convert_step_fields[] = {
    STEP_FIELDS,
    {"convert", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    {0},
};
static const struct field import_step_fields[] = {
    STEP_FIELDS,
    {"import", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    {0},
};
static const struct field wait_fields[] = {
    STEP_FIELDS,
    {"duration", {NULL}, FIELD_DURATION, 1, WORKFLOW_WAIT_MAX_MS, NULL},
    {0},
};
/* Their values are looked at when they are submitted, as those of hooks. */
static const struct field script_fields[] = {
    STEP_FIELDS,
    {"command", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"args", {NULL}, FIELD_TEXT_LIST, 0, HOOK_ARGS_MAX, NULL},
    {"timeout", {NULL}, FIELD_ANY, 0, 0, NULL},
    {"retry", {NULL}, FIELD_ANY, 0, 0, NULL},
    {0},
};
static const struct field webhook_fields[] = {
    STEP_FIELDS,
    {"url", {NULL}, FIELD_TEXT, 1, WEBHOOK_URL_BYTES_MAX, NULL},
    {"body", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    {"timeout", {NULL}, FIELD_ANY, 0, 0, NULL},
    {"retry", {NULL}, FIELD_ANY, 0, 0, NULL},
    {0},
};
static const struct field *const step_fields[] = {
    batch_fields, job_step_fields, convert_step_fields, import_step_fields,
    wait_fields,  script_fields,   webhook_fields};

const char *workflow_step_type_name(enum workflow_step_type type)
{
    return type_names[type];
}

const char *workflow_when_name(enum workflow_when when)
{
    return when_names[when];
}

static bool find_word(const char *const *words, const char *text, size_t *out)
{
    for (size_t i = 0; words[i] != NULL; i++) {
        if (strcmp(words[i], text) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

bool workflow_when_parse(const char *text, enum workflow_when *out)
{
    size_t i = 0;

    if (!find_word(when_names, text, &i))
        return false;
    *out = (enum workflow_when)i;
    return true;
}

void workflow_free(struct workflow *workflow)
{
    if (workflow == NULL)
        return;
    json_decref(workflow->definition);
    free(workflow);
}

/* ---- names ---- */

static bool name_is_right(const char *text)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "._-";

    return text[0] != '\0' && text[0] != '.' && text[0] != '-' &&
           strspn(text, allowed) == strlen(text);
}

static int check_name(const char *name, struct field_problem *problem, struct error *err)
{
    if (name == NULL) {
        return field_fail(problem, 400, "name", err, ERR_INVALID, "'name' is missing");
    }
    if (!name_is_right(name)) {
        return field_fail(problem, 400, "name", err, ERR_INVALID,
                          "'name' may hold letters, digits, '.', '_' and '-' and must not begin "
                          "with '.' or '-'");
    }
    if (word_in(name, reserved_names))
        return field_fail(problem, 400, "name", err, ERR_INVALID, "'name': '%s' is reserved", name);
    return 0;
}

/* ---- problems that name their step ---- */

static void name_step(const char *id, struct field_problem *problem, struct error *err)
{
    char field[FIELD_NAME_MAX];
    struct error cause = *err;

    (void)snprintf(field, sizeof field, "%s", problem->field);
    (void)snprintf(problem->field, sizeof problem->field, "steps.%.40s%s%.40s", id,
                   field[0] == '\0' ? "" : ".", field);
    error_clear(err);
    (void)error_set(err, cause.code, "step '%.63s': %.900s", id, cause.message);
}

void workflow_problem(const struct workflow *workflow, uint32_t step, struct field_problem *problem,
                      struct error *err)
{
    name_step(workflow->steps[step].id, problem, err);
}

/* ---- steps ---- */

static int check_type(const char *type, size_t *out, struct field_problem *problem,
                      struct error *err)
{
    const char *near;

    if (type == NULL)
        return field_fail(problem, 422, "type", err, ERR_INVALID, "'type' is missing");
    if (find_word(type_names, type, out))
        return 0;
    near = nearest_word(type, type_names);
    return field_fail(problem, 422, "type", err, ERR_INVALID, "'type': '%.16s' is not known%s%s%s",
                      type, near == NULL ? "" : ", did you mean '", near == NULL ? "" : near,
                      near == NULL ? "" : "'");
}

/* Of what is submitted by every run, an id could be taken once only, and nothing here can seal a
 * passphrase. */
static int check_job(const json_t *job, struct field_problem *problem, struct error *err)
{
    const json_t *encrypt = json_object_get(job, "encrypt");

    if (json_object_get(job, "id") != NULL) {
        return field_fail(problem, 422, "job.id", err, ERR_INVALID,
                          "'id': every run makes jobs of its own, leave it out");
    }
    if (json_is_object(encrypt) && json_object_get(encrypt, "passphrase") != NULL) {
        return field_fail(problem, 422, "job.encrypt.passphrase", err, ERR_NOT_AVAILABLE,
                          "'encrypt.passphrase': a workflow keeps no passphrase, name a key with "
                          "'encrypt.key_ref'");
    }
    return 0;
}

static int check_batch(const json_t *step, struct workflow_step *out, struct field_problem *problem,
                       struct error *err)
{
    static const char *const vm_names[] = {"vm_path", "vm_identifier", "vm", "vm_id", NULL};
    const json_t *vms = json_object_get(step, "vms");
    const json_t *job = json_object_get(step, "job");
    bool parallel = field_bool(step, "parallel", true);

    if (json_array_size(vms) == 0)
        return field_fail(problem, 422, "vms", err, ERR_INVALID, "'vms' names no VM");
    for (size_t i = 0; i < json_array_size(vms); i++) {
        for (size_t k = i + 1; k < json_array_size(vms); k++) {
            if (json_equal(json_array_get(vms, i), json_array_get(vms, k))) {
                return field_fail(problem, 422, "vms", err, ERR_INVALID,
                                  "'vms' names '%.200s' twice",
                                  json_string_value(json_array_get(vms, i)));
            }
        }
    }
    for (size_t i = 0; vm_names[i] != NULL; i++) {
        if (json_object_get(job, vm_names[i]) != NULL) {
            return field_fail(problem, 422, "job", err, ERR_INVALID,
                              "'job.%s': the VMs are named by 'vms'", vm_names[i]);
        }
    }
    if (!parallel && json_object_get(step, "max_parallel") != NULL) {
        return field_fail(problem, 422, "max_parallel", err, ERR_INVALID,
                          "'max_parallel' means nothing with 'parallel': false");
    }
    out->item_count = (uint32_t)json_array_size(vms);
    out->parallel_max = parallel ? (uint32_t)field_number(step, "max_parallel", 0) : 1;
    return check_job(job, problem, err);
}

/* The member that says what the step does. */
static int need(const json_t *step, const char *name, struct field_problem *problem,
                struct error *err)
{
    if (json_object_get(step, name) != NULL)
        return 0;
    return field_fail(problem, 422, name, err, ERR_INVALID, "'%s' is missing", name);
}

/* What is stored is without secrets: the receiver would get asterisks. */
static int check_webhook_body(const json_t *body, struct field_problem *problem, struct error *err)
{
    if (json_find_secret(body) == NULL)
        return 0;
    return field_fail(problem, 422, "body", err, ERR_NOT_AVAILABLE,
                      "'body' has a secret: a workflow keeps none");
}

static int check_body(const json_t *step, struct workflow_step *out, struct field_problem *problem,
                      struct error *err)
{
    out->item_count = 1;
    switch (out->type) {
    case WORKFLOW_BATCH:
        return check_batch(step, out, problem, err);
    case WORKFLOW_JOB:
        if (need(step, "job", problem, err) < 0)
            return -1;
        return check_job(json_object_get(step, "job"), problem, err);
    case WORKFLOW_CONVERT:
        return need(step, "convert", problem, err);
    case WORKFLOW_IMPORT:
        return need(step, "import", problem, err);
    case WORKFLOW_WAIT:
        out->item_count = 0;
        out->wait_ms = field_duration_ms(step, "duration", 0);
        return need(step, "duration", problem, err);
    case WORKFLOW_SCRIPT:
        return need(step, "command", problem, err);
    case WORKFLOW_WEBHOOK:
        if (need(step, "url", problem, err) < 0)
            return -1;
        return check_webhook_body(json_object_get(step, "body"), problem, err);
    }
    return 0;
}

/* *canonical: new reference, also after some failures. */
static int read_step(const json_t *element, json_t **canonical, struct workflow_step *out,
                     struct field_problem *problem, struct error *err)
{
    const char *id;
    size_t type = 0;

    if (!json_is_object(element))
        return field_fail(problem, 422, "", err, ERR_INVALID, "a step must be an object");
    if (check_type(json_string_value(json_object_get(element, "type")), &type, problem, err) < 0 ||
        fields_canonical(step_fields[type], "", element, canonical, problem, err) < 0)
        return -1;
    id = field_text(*canonical, "id", NULL);
    if (id == NULL || !name_is_right(id)) {
        return field_fail(problem, 422, "id", err, ERR_INVALID,
                          "'id' must be of letters, digits, '.', '_' and '-' and must not begin "
                          "with '.' or '-'");
    }
    out->id = id;
    out->type = (enum workflow_step_type)type;
    if (!workflow_when_parse(field_text(*canonical, "when", when_names[0]), &out->when)) {
        return field_fail(problem, 422, "when", err, ERR_INVALID,
                          "'when' must be success, failure or always");
    }
    if (check_body(*canonical, out, problem, err) < 0)
        return -1;
    if (out->type == WORKFLOW_WAIT) { /* in a form that is read again as the same */
        autofree char *text = xasprintf("%" PRId64 "ms", out->wait_ms);
        json_set_text(*canonical, "duration", text);
    }
    return 0;
}

static int read_steps(struct workflow *w, const json_t *list, json_t *canonical_list,
                      struct field_problem *problem, struct error *err)
{
    uint32_t items = 0;

    if (!json_is_array(list) || json_array_size(list) == 0 ||
        json_array_size(list) > WORKFLOW_STEPS_MAX) {
        return field_fail(problem, 422, "steps", err, ERR_INVALID,
                          "'steps' must be a list of 1 to %d steps", WORKFLOW_STEPS_MAX);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *element = json_array_get(list, i);
        const char *id = json_string_value(json_object_get(element, "id"));
        json_t *canonical = NULL;
        char number[24];
        int rc = read_step(element, &canonical, &w->steps[i], problem, err);
        if (canonical != NULL)
            (void)json_array_append_new(canonical_list, canonical);
        if (rc < 0) {
            (void)snprintf(number, sizeof number, "%zu", i + 1);
            name_step(id != NULL && name_is_right(id) ? id : number, problem, err);
            return -1;
        }
        items += w->steps[i].item_count;
        w->step_count++;
    }
    if (items > WORKFLOW_ITEMS_MAX) {
        return field_fail(problem, 422, "steps", err, ERR_INVALID,
                          "the steps make %u jobs, at most %d are allowed", items,
                          WORKFLOW_ITEMS_MAX);
    }
    return 0;
}

/* ---- the graph ---- */

static int find_step(const struct workflow *w, const char *id)
{
    for (uint32_t i = 0; i < w->step_count; i++) {
        if (strcmp(w->steps[i].id, id) == 0)
            return (int)i;
    }
    return -1;
}

static int link_step(struct workflow *w, uint32_t i, const json_t *canonical,
                     struct field_problem *problem, struct error *err)
{
    struct workflow_step *step = &w->steps[i];
    const json_t *names = json_object_get(canonical, "depends_on");

    if ((uint32_t)find_step(w, step->id) != i) {
        return field_fail(problem, 422, "id", err, ERR_INVALID,
                          "'id': another step has the same id");
    }
    for (size_t k = 0; k < json_array_size(names); k++) {
        const char *name = json_string_value(json_array_get(names, k));
        int on = find_step(w, name);
        if (on < 0) {
            return field_fail(problem, 422, "depends_on", err, ERR_INVALID,
                              "'depends_on': there is no step '%.63s'", name);
        }
        step->depends |= UINT64_C(1) << on;
    }
    if (step->when == WORKFLOW_WHEN_FAILURE && step->depends == 0) {
        return field_fail(problem, 422, "when", err, ERR_INVALID,
                          "'when': failure of what? 'depends_on' is empty");
    }
    return 0;
}

static int link_steps(struct workflow *w, struct field_problem *problem, struct error *err)
{
    const json_t *list = json_object_get(w->definition, "steps");
    uint64_t depends[WORKFLOW_STEPS_MAX];
    int cycle;

    for (uint32_t i = 0; i < w->step_count; i++) {
        if (link_step(w, i, json_array_get(list, i), problem, err) < 0) {
            workflow_problem(w, i, problem, err);
            return -1;
        }
        depends[i] = w->steps[i].depends;
    }
    cycle = workflow_find_cycle(depends, w->step_count);
    if (cycle < 0)
        return 0;
    (void)field_fail(problem, 422, "depends_on", err, ERR_INVALID,
                     "'depends_on': the step waits for itself");
    workflow_problem(w, (uint32_t)cycle, problem, err);
    return -1;
}

static int take_body(const json_t *body, json_t **out, struct field_problem *problem,
                     struct error *err)
{
    auto_json *wrapper = NULL;

    if (json_object_get(body, "workflow") == NULL)
        return fields_canonical(workflow_fields, "", body, out, problem, err);
    if (fields_canonical(wrapper_fields, "", body, &wrapper, problem, err) < 0)
        return -1;
    return fields_canonical(workflow_fields, "workflow.", json_object_get(wrapper, "workflow"), out,
                            problem, err);
}

int workflow_parse(const json_t *body, struct workflow **out, struct field_problem *problem,
                   struct error *err)
{
    auto_workflow *w = xcalloc(1, sizeof *w);
    auto_json *steps = NULL;

    if (take_body(body, &w->definition, problem, err) < 0 ||
        check_name(field_text(w->definition, "name", NULL), problem, err) < 0)
        return -1;
    w->name = field_text(w->definition, "name", "");
    steps = json_incref(json_object_get(w->definition, "steps"));
    json_put(w->definition, "steps", json_array());
    if (read_steps(w, steps, json_object_get(w->definition, "steps"), problem, err) < 0 ||
        link_steps(w, problem, err) < 0)
        return -1;
    *out = STEAL(w);
    return 0;
}

/* ---- what a step submits ---- */

/* Have others of the batch the name of this one? */
static bool shares_name(const json_t *vms, const char *vm)
{
    autofree char *name = vm_dir_name(vm, false);
    unsigned int count = 0;
    size_t i;
    const json_t *other;

    json_array_foreach(vms, i, other)
    {
        autofree char *other_name = vm_dir_name(json_string_value(other), false);
        count += strcmp(name, other_name) == 0;
    }
    return count > 1;
}

/* output_path of a batch is where each VM gets a directory of its own. */
static json_t *batch_item(const json_t *step, uint32_t item)
{
    static const char *const path_names[] = {"output_path", "export_path", "output_dir"};
    const json_t *common = json_object_get(step, "job");
    const json_t *vms = json_object_get(step, "vms");
    const char *vm = json_string_value(json_array_get(vms, item));
    json_t *job = common == NULL ? json_object() : json_deep_copy(common);

    json_set_text(job, "vm_path", vm);
    for (size_t i = 0; i < ARRAY_LEN(path_names); i++) {
        const char *parent = json_string_value(json_object_get(job, path_names[i]));
        autofree char *name = NULL;
        autofree char *path = NULL;
        if (parent == NULL)
            continue;
        name = vm_dir_name(vm, shares_name(vms, vm));
        path = xasprintf("%s/%s", parent, name);
        json_set_text(job, path_names[i], path);
    }
    return job;
}

static json_t *hook_item(const json_t *step)
{
    static const char *const members[] = {"type", "command", "args", "url",
                                          "body", "timeout", "retry"};
    json_t *hook = json_object();

    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        json_t *value = json_object_get(step, members[i]);
        if (value != NULL)
            json_put(hook, members[i], json_deep_copy(value));
    }
    return hook;
}

json_t *workflow_item(const struct workflow *workflow, uint32_t step, uint32_t item)
{
    const json_t *canonical = json_array_get(json_object_get(workflow->definition, "steps"), step);

    switch (workflow->steps[step].type) {
    case WORKFLOW_BATCH:
        return batch_item(canonical, item);
    case WORKFLOW_JOB:
        return json_deep_copy(json_object_get(canonical, "job"));
    case WORKFLOW_CONVERT:
        return json_deep_copy(json_object_get(canonical, "convert"));
    case WORKFLOW_IMPORT:
        return json_deep_copy(json_object_get(canonical, "import"));
    case WORKFLOW_SCRIPT:
    case WORKFLOW_WEBHOOK:
        return hook_item(canonical);
    case WORKFLOW_WAIT:
        break;
    }
    return json_object();
}
