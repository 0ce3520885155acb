/* See hooks.h. */
#include "common/hooks.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "common/civil.h"
#include "common/cleanup_policy.h"
#include "common/json.h"
#include "common/libvirt_wish.h"
#include "common/provider_lookup.h"
#include "common/shutdown_wish.h"
#include "common/upload_url.h"
#include "common/webhook_post.h"

#define HOUR_MS          UINT64_C(3600000)
#define SCRIPT_MS_MAX    (24 * HOUR_MS)
#define WAIT_MS_MAX      (30 * 24 * HOUR_MS)
#define WEBHOOK_MS_MAX   60000 /* as of webhooks that are told of events */
#define CONVERT_MS_MAX   (48 * HOUR_MS)
#define RETRY_MAX        99
#define RETRY_INITIAL_MS 5000 /* of a hook that says only how often */
#define RETRY_MAX_MS     300000
#define TRIES_MAX        100
#define PREFIX_MAX       24 /* "post_hooks[19]." */

#define TEXT(name, max)                        \
    {                                          \
        name, {NULL}, FIELD_TEXT, 1, max, NULL \
    }
#define MILLIS(name, min, max)                       \
    {                                                \
        name, {NULL}, FIELD_DURATION, min, max, NULL \
    }
#define BOOL(name)                           \
    {                                        \
        name, {NULL}, FIELD_BOOL, 0, 0, NULL \
    }
#define NOT_HERE(name, neutral)                \
    {                                          \
        name, {NULL}, FIELD_ANY, 0, 0, neutral \
    }
#define TYPE   TEXT("type", 16)
#define MAY    TEXT("on_error", 16)
#define MUST   NOT_HERE("on_error", "\"fail\"")
#define TRIES  NOT_HERE("retry", NULL)
#define ONCE   NOT_HERE("retry", "0")
#define NO_END NOT_HERE("timeout", "")

static const struct field script_fields[] = {
    TYPE,
    MAY,
    TRIES,
    MILLIS("timeout", 100, SCRIPT_MS_MAX),
    TEXT("command", FIELD_TEXT_MAX),
    {"args", {NULL}, FIELD_TEXT_LIST, 0, HOOK_ARGS_MAX, NULL},
    {0}};
static const struct field webhook_fields[] = {TYPE,
                                              MAY,
                                              TRIES,
                                              MILLIS("timeout", 100, WEBHOOK_MS_MAX),
                                              TEXT("url", WEBHOOK_URL_BYTES_MAX),
                                              {"body", {NULL}, FIELD_OBJECT, 0, 0, NULL},
                                              {0}};
static const struct field wait_fields[] = {
    TYPE, MUST, ONCE, NO_END, MILLIS("duration", 1, WAIT_MS_MAX), TEXT("until", 40), {0}};
static const struct field shutdown_fields[] = {
    TYPE, MAY, ONCE, MILLIS("timeout", 1000, SHUTDOWN_TIMEOUT_MS_MAX), BOOL("power_on_after"), {0}};
static const struct field snapshot_fields[] = {
    TYPE, MAY, ONCE, NO_END, TEXT("name", 80), BOOL("memory"), BOOL("quiesce"), {0}};
static const struct field convert_fields[] = {
    TYPE, MAY, TRIES, MILLIS("timeout", 1000, CONVERT_MS_MAX), TEXT("format", 16), {0}};
static const struct field upload_fields[] = {
    TYPE, MAY, ONCE, NO_END, TEXT("destination", UPLOAD_URL_BYTES_MAX), {0}};
static const struct field import_fields[] = {TYPE, MAY, TRIES, NO_END, LIBVIRT_WISH_FIELDS, {0}};
static const struct field cleanup_fields[] = {TYPE, MUST, ONCE, NO_END, CLEANUP_POLICY_FIELDS, {0}};
static const struct field retry_fields[] = {
    {"max_attempts", {NULL}, FIELD_NUMBER, 1, TRIES_MAX, NULL},
    MILLIS("initial_delay", 100, 24 * HOUR_MS),
    MILLIS("max_delay", 100, 24 * HOUR_MS),
    {0}};

struct apply { /* one hook while it is looked at */
    const struct hooks_config *config;
    json_t *job;
    json_t *hook;
    const char *list;        /* "pre_hooks" */
    char prefix[PREFIX_MAX]; /* "pre_hooks[0]." */
    struct field_problem *problem;
    struct error *err;
};

static int fail(const struct apply *a, unsigned int status, const char *member,
                enum error_code code, const char *message)
{
    char field[FIELD_NAME_MAX];

    (void)snprintf(field, sizeof field, "%s%s", a->prefix, member);
    return field_fail(a->problem, status, field, a->err, code, "'%s': %s", field, message);
}

/* ---- checks ---- */

static bool has_dots(const char *path)
{
    for (const char *p = path; *p != '\0';) {
        size_t n = strcspn(p, "/");
        if ((n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
            return true;
        p += n + (p[n] == '/');
    }
    return false;
}

/* By its text only: the directory is the bridge's, which looks at the file itself. */
static bool is_inside(const char *dir, const char *command)
{
    size_t length = strlen(dir);

    while (length > 1 && dir[length - 1] == '/')
        length--;
    if (command[0] == '/' && (strncmp(command, dir, length) != 0 || command[length] != '/' ||
                              command[length + 1] == '\0'))
        return false;
    return !has_dots(command) && command[strlen(command) - 1] != '/';
}

static int check_script(const struct apply *a)
{
    const char *command = field_text(a->hook, "command", NULL);

    if (command == NULL)
        return fail(a, 400, "command", ERR_INVALID, "a script hook needs 'command'");
    if (a->config == NULL || a->config->scripts_dir[0] == '\0') {
        return fail(a, 422, "command", ERR_NOT_AVAILABLE,
                    "scripts are not run here: hooks.scripts_dir of the configuration is not set");
    }
    if (!is_inside(a->config->scripts_dir, command)) {
        return fail(a, 422, "command", ERR_DENIED,
                    "scripts must be inside hooks.scripts_dir of the configuration, without '.' "
                    "and '..'");
    }
    return 0;
}

static int check_webhook(const struct apply *a)
{
    const char *url = field_text(a->hook, "url", NULL);
    const json_t *body = json_object_get(a->hook, "body");
    struct error why = ERROR_NONE;

    if (url == NULL)
        return fail(a, 400, "url", ERR_INVALID, "a webhook hook needs 'url'");
    if (webhook_url_check(url, &why) < 0)
        return fail(a, 400, "url", why.code, why.message);
    if (body != NULL && json_dumpb(body, NULL, 0, JSON_COMPACT) > HOOK_BODY_BYTES_MAX)
        return fail(a, 400, "body", ERR_INVALID, "over 65536 bytes");
    return 0;
}

/* "2026-03-01T02:03:04Z", with fractions (passed over) and offsets. Milliseconds since 1970. */
static int parse_time(const char *text, int64_t *out_ms)
{
    struct tm tm = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    int64_t seconds;

    if (rest == NULL)
        return -1;
    if (*rest == '.')
        rest += 1 + strspn(rest + 1, "0123456789");
    seconds = civil_days(tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday) * DAY_SECONDS +
              tm.tm_hour * INT64_C(3600) + tm.tm_min * INT64_C(60) + tm.tm_sec;
    if (*rest == '+' || *rest == '-') {
        struct tm offset = {0};
        const char *end = strptime(rest + 1, "%H:%M", &offset);
        int64_t ahead = offset.tm_hour * INT64_C(3600) + offset.tm_min * INT64_C(60);
        if (end == NULL || *end != '\0')
            return -1;
        seconds -= *rest == '+' ? ahead : -ahead;
    } else if (strcmp(rest, "Z") != 0) {
        return -1;
    }
    *out_ms = seconds * 1000;
    return 0;
}

static int check_wait(const struct apply *a)
{
    const char *until = field_text(a->hook, "until", NULL);
    bool lasts = json_object_get(a->hook, "duration") != NULL;
    int64_t unused = 0;

    if (lasts == (until != NULL)) {
        return fail(a, 400, "duration", ERR_INVALID,
                    "a wait hook needs either 'duration' or 'until'");
    }
    if (until != NULL && parse_time(until, &unused) < 0)
        return fail(a, 400, "until", ERR_INVALID, "must be a time like 2026-03-01T02:00:00Z");
    return 0;
}

static int check_on_error(const struct apply *a)
{
    const char *word = field_text(a->hook, "on_error", "fail");

    if (strcmp(json_str(a->hook, "type"), "shutdown") == 0) {
        return word_in(word, shutdown_policies)
                   ? 0
                   : fail(a, 400, "on_error", ERR_INVALID, "must be fail, power_off or continue");
    }
    if (strcmp(word, "fail") != 0 && strcmp(word, "continue") != 0)
        return fail(a, 400, "on_error", ERR_INVALID, "must be fail or continue");
    return 0;
}

/* A number says how often it is repeated, an object more. */
static int check_retry(const struct apply *a)
{
    const json_t *retry = json_object_get(a->hook, "retry");
    char prefix[FIELD_NAME_MAX];

    if (retry == NULL)
        return 0;
    if (json_is_integer(retry)) {
        json_int_t n = json_integer_value(retry);
        return n >= 0 && n <= RETRY_MAX
                   ? 0
                   : fail(a, 400, "retry", ERR_INVALID, "must be 0 to 99 repeats");
    }
    if (!json_is_object(retry))
        return fail(a, 400, "retry", ERR_INVALID, "must be a number of repeats or an object");
    (void)snprintf(prefix, sizeof prefix, "%sretry.", a->prefix);
    if (fields_member(a->hook, "retry", prefix, retry_fields, a->problem, a->err) < 0)
        return -1;
    retry = json_object_get(a->hook, "retry");
    if (field_duration_ms(retry, "initial_delay", RETRY_INITIAL_MS) >
        field_duration_ms(retry, "max_delay", SCRIPT_MS_MAX))
        return fail(a, 422, "retry", ERR_INVALID, "'initial_delay' is over 'max_delay'");
    return 0;
}

/* ---- hooks that are the job's own steps ---- */

/* object[key] = value, unless the request says something else there. */
static int ask(const struct apply *a, const char *member, json_t *object, const char *key,
               json_t *value_taken)
{
    auto_json *value = value_taken;
    const json_t *before = json_object_get(object, key);

    if (before != NULL && !json_equal(before, value)) {
        autofree char *message = xasprintf("the job's own '%s' says something else", key);
        return fail(a, 400, member, ERR_INVALID, message);
    }
    (void)json_object_set(object, key, value);
    return 0;
}

/* The object of that name in the job, made if it is not there. */
static json_t *object_of(const struct apply *a, const char *name)
{
    json_t *object = json_object_get(a->job, name);

    if (object == NULL) {
        object = json_object();
        json_put(a->job, name, object);
    }
    return object;
}

static int copy(const struct apply *a, const char *member, json_t *object, const char *key)
{
    json_t *value = json_object_get(a->hook, member);

    return value == NULL ? 0 : ask(a, member, object, key, json_incref(value));
}

/* The hook's timeout, which is milliseconds by now, in a form that is read again as the same. */
static int copy_timeout(const struct apply *a, json_t *object, const char *key)
{
    autofree char *text = NULL;

    if (json_object_get(a->hook, "timeout") == NULL)
        return 0;
    text = xasprintf("%" PRId64 "ms", field_duration_ms(a->hook, "timeout", 0));
    return ask(a, "timeout", object, key, json_string(text));
}

static int apply_shutdown(const struct apply *a)
{
    json_t *options = object_of(a, "options");

    if (ask(a, "type", options, "shutdown_vm", json_true()) < 0)
        return -1;
    if (copy_timeout(a, options, "shutdown_timeout") < 0 ||
        copy(a, "power_on_after", options, "power_on_after") < 0)
        return -1;
    return json_object_get(a->hook, "on_error") == NULL
               ? 0
               : ask(a, "on_error", options, "shutdown_on_error",
                     json_incref(json_object_get(a->hook, "on_error")));
}

static int apply_snapshot(const struct apply *a)
{
    if (ask(a, "type", a->job, "snapshot", json_true()) < 0 ||
        copy(a, "name", a->job, "snapshot_name") < 0 ||
        copy(a, "memory", a->job, "snapshot_memory") < 0 ||
        copy(a, "quiesce", a->job, "snapshot_quiesce") < 0)
        return -1;
    return copy(a, "on_error", a->job, "snapshot_on_error");
}

static int apply_convert(const struct apply *a)
{
    json_t *conversion = object_of(a, "hyper2kvm_integration");

    if (ask(a, "type", conversion, "enabled", json_true()) < 0 ||
        copy(a, "format", conversion, "target_format") < 0)
        return -1;
    if (json_is_false(json_object_get(conversion, "auto_convert"))) {
        return fail(a, 400, "type", ERR_INVALID,
                    "'hyper2kvm_integration.auto_convert' is false: nothing would be converted");
    }
    return copy_timeout(a, conversion, "timeout");
}

static int apply_upload(const struct apply *a)
{
    if (json_object_get(a->hook, "destination") == NULL)
        return fail(a, 400, "destination", ERR_INVALID, "an upload hook needs 'destination'");
    if (copy(a, "destination", a->job, "upload") < 0)
        return -1;
    return copy(a, "on_error", a->job, "upload_on_error");
}

/* All but what every hook has becomes the member `name` of the job. */
static int apply_object(const struct apply *a, const char *name)
{
    static const char *const common[] = {"type", "on_error", "retry", "timeout", NULL};
    json_t *object = object_of(a, name);
    const char *key;
    json_t *value;

    json_object_foreach(a->hook, key, value)
    {
        if (!word_in(key, common) && ask(a, key, object, key, json_incref(value)) < 0)
            return -1;
    }
    return 0;
}

static int apply_import(const struct apply *a)
{
    if (apply_object(a, "libvirt") < 0)
        return -1;
    return ask(a, "type", object_of(a, "libvirt"), "define", json_true());
}

static int apply_cleanup(const struct apply *a)
{
    return apply_object(a, "cleanup");
}

/* ---- the list ---- */

enum where { PRE = 1, POST = 2 };
struct hook_type {
    const char *name;
    const struct field *fields;
    int (*check)(const struct apply *a);
    unsigned int where;
    bool step; /* of the job itself */
};
static const struct hook_type types[] = {
    {"script", script_fields, check_script, PRE | POST, false},
    {"webhook", webhook_fields, check_webhook, PRE | POST, false},
    {"wait", wait_fields, check_wait, PRE | POST, false},
    {"shutdown", shutdown_fields, apply_shutdown, PRE, true},
    {"snapshot", snapshot_fields, apply_snapshot, PRE, true},
    {"convert", convert_fields, apply_convert, POST, true},
    {"upload", upload_fields, apply_upload, POST, true},
    {"import", import_fields, apply_import, POST, true},
    {"cleanup", cleanup_fields, apply_cleanup, POST, true},
};
static const char *const type_names[] = {"script",  "webhook", "wait",   "shutdown", "snapshot",
                                         "convert", "upload",  "import", "cleanup",  NULL};

static const struct hook_type *type_of(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    }
    return NULL;
}

/* Of a hook that was looked at before. */
static bool is_step(const json_t *hook)
{
    const struct hook_type *type = type_of(json_str(hook, "type"));

    return type != NULL && type->step;
}

static int find_type(const struct apply *a, const json_t *element, const struct hook_type **out)
{
    const char *name = json_str(element, "type");
    const char *near = nearest_word(name, type_names);
    unsigned int where = strcmp(a->list, "pre_hooks") == 0 ? PRE : POST;

    *out = type_of(name);
    if (*out != NULL && ((*out)->where & where) != 0)
        return 0;
    if (*out != NULL) {
        return fail(a, 422, "type", ERR_INVALID,
                    where == PRE ? "this type belongs into post_hooks"
                                 : "this type belongs into pre_hooks");
    }
    if (strcmp(name, "email") == 0) {
        return fail(a, 422, "type", ERR_NOT_AVAILABLE,
                    "'email' is not available in this version: use a webhook or a script");
    }
    if (near != NULL) {
        autofree char *message = xasprintf("unknown type '%.32s', did you mean '%s'", name, near);
        (void)snprintf(a->problem->candidate, sizeof a->problem->candidate, "%s", near);
        return fail(a, 400, "type", ERR_INVALID, message);
    }
    return fail(a, 400, "type", ERR_INVALID,
                "must be script, webhook, wait, shutdown, snapshot, convert, upload, import or "
                "cleanup");
}

static int apply_one(struct apply *a, json_t *list, size_t index)
{
    const struct hook_type *type;

    (void)snprintf(a->prefix, sizeof a->prefix, "%s[%zu].", a->list, index);
    if (!json_is_object(json_array_get(list, index)))
        return fail(a, 400, "type", ERR_INVALID, "a hook must be an object with 'type'");
    if (find_type(a, json_array_get(list, index), &type) < 0)
        return -1;
    if (fields_canonical(type->fields, a->prefix, json_array_get(list, index), &a->hook, a->problem,
                         a->err) < 0)
        return -1;
    (void)json_array_set_new(list, index, a->hook);
    if (check_on_error(a) < 0 || check_retry(a) < 0)
        return -1;
    return type->check(a);
}

static bool is_type(const json_t *hook, const char *name)
{
    return strcmp(json_str(hook, "type"), name) == 0;
}

static int at(struct apply *a, size_t index, const char *message)
{
    (void)snprintf(a->prefix, sizeof a->prefix, "%s[%zu].", a->list, index);
    return fail(a, 422, "type", ERR_NOT_AVAILABLE, message);
}

/* Each step of the job's own happens once, and where the job has it. */
static int check_order(struct apply *a, const json_t *list)
{
    bool pre = strcmp(a->list, "pre_hooks") == 0;
    bool step_seen = false;
    bool own_seen = false;
    size_t i;
    const json_t *hook;

    json_array_foreach(list, i, hook)
    {
        bool step = is_step(hook);
        for (size_t k = 0; step && k < i; k++) {
            if (is_type(json_array_get(list, k), json_str(hook, "type")))
                return at(a, i, "this is done once only");
        }
        if (pre && !step && step_seen) {
            return at(a, i,
                      "shutdown and snapshot are the first steps of the export itself: put them "
                      "last");
        }
        if (!pre && is_type(hook, "upload") && own_seen) {
            return at(a, i,
                      "the upload is the last step of the export itself: put it before scripts, "
                      "webhooks and waits");
        }
        if (!pre && is_type(hook, "cleanup") && i + 1 < json_array_size(list))
            return at(a, i, "the clean-up begins when the job is complete: put it last");
        if (!pre && is_type(hook, "convert") && hook_find(a->job, a->list, "import") != NULL &&
            field_text(hook, "on_error", "fail")[0] == 'c')
            return at(a, i, "an import needs the conversion: leave out 'on_error: continue'");
        step_seen = step_seen || step;
        own_seen = own_seen || !step;
    }
    return 0;
}

/* What an import waits for must stand before it; a wait needs something that waits. */
static int check_post(struct apply *a, const json_t *list)
{
    bool imported = false;
    bool waits = false;
    size_t wait_at = 0;
    size_t i;
    const json_t *hook;

    json_array_foreach(list, i, hook)
    {
        if (is_type(hook, "convert") && imported)
            return at(a, i, "the import needs the conversion: put it before the import");
        imported = imported || is_type(hook, "import");
        if (is_type(hook, "wait")) {
            waits = true;
            wait_at = i;
        } else if (!is_type(hook, "upload") && !is_type(hook, "cleanup")) {
            waits = false;
        }
    }
    return waits ? at(a, wait_at, "nothing that could wait stands behind it") : 0;
}

int hooks_apply(const struct hooks_config *config, json_t *job, struct field_problem *problem,
                struct error *err)
{
    static const char *const lists[] = {"pre_hooks", "post_hooks"};
    struct apply a = {.config = config, .job = job, .problem = problem, .err = err};

    for (size_t l = 0; l < ARRAY_LEN(lists); l++) {
        auto_json *list = json_deep_copy(json_object_get(job, lists[l]));
        a.list = lists[l];
        if (list == NULL)
            continue;
        if (!json_is_array(list) || json_array_size(list) > HOOKS_MAX) {
            return field_fail(problem, 400, a.list, err, ERR_INVALID,
                              "'%s' must be a list of at most %d hooks", a.list, HOOKS_MAX);
        }
        for (size_t i = 0; i < json_array_size(list); i++) {
            if (apply_one(&a, list, i) < 0)
                return -1;
        }
        (void)json_object_set(job, a.list, list);
        if (check_order(&a, list) < 0 || (l == 1 && check_post(&a, list) < 0))
            return -1;
    }
    return 0;
}

const json_t *hook_find(const json_t *job, const char *list, const char *type)
{
    const json_t *hook;
    size_t i;

    json_array_foreach(json_object_get(job, list), i, hook)
    {
        if (is_type(hook, type))
            return hook;
    }
    return NULL;
}

/* ---- tasks ---- */

static void set_retries(struct job_task *task, const json_t *hook,
                        const struct retry_config *fallback)
{
    const json_t *retry = json_object_get(hook, "retry");

    task->may_fail = strcmp(field_text(hook, "on_error", "fail"), "continue") == 0;
    if (retry == NULL && fallback != NULL)
        return; /* the job's */
    task->max_attempts = json_is_integer(retry) ? (uint32_t)json_integer_value(retry) + 1
                                                : (uint32_t)field_number(retry, "max_attempts", 1);
    task->retry_initial_ms = field_duration_ms(retry, "initial_delay", RETRY_INITIAL_MS);
    task->retry_max_ms = field_duration_ms(retry, "max_delay", RETRY_MAX_MS);
    if (task->retry_max_ms < task->retry_initial_ms)
        task->retry_max_ms = task->retry_initial_ms;
}

static void add_facts(const struct hook_facts *facts, json_t *spec)
{
    const json_t *job = facts->job;

    json_set_text(spec, "job_id", facts->job_id);
    json_set_text(spec, "vm_name", facts->vm_name);
    json_set_text(spec, "vm_path", field_text(job, "vm_path", ""));
    json_set_text(spec, "provider", field_text(job, "provider", PROVIDER_DEFAULT));
    json_set_text(spec, "output_path", facts->output_path);
    json_set_text(spec, "format", field_text(job, "format", "ovf"));
}

/* What a script or webhook does, and how long it may take. */
static void add_action(const json_t *hook, json_t *spec)
{
    static const char *const members[] = {"command", "args", "url", "body"};

    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        json_t *value = json_object_get(hook, members[i]);
        if (value != NULL)
            (void)json_object_set(spec, members[i], value);
    }
    if (is_type(hook, "webhook")) {
        json_set_i64(spec, "timeout_ms",
                     field_duration_ms(hook, "timeout", HOOK_WEBHOOK_TIMEOUT_MS));
    } else if (json_object_get(hook, "timeout") != NULL) {
        json_set_i64(spec, "timeout_ms", field_duration_ms(hook, "timeout", 0));
    }
}

static json_t *spec_of(const struct hook_facts *facts, const json_t *hook, const char *when)
{
    json_t *spec = json_object();

    add_facts(facts, spec);
    json_set_text(spec, "hook", when);
    add_action(hook, spec);
    return spec;
}

static_assert(2 * HOOKS_MAX + 3 <= JOB_TASKS_MAX, "hooks and the job's own tasks fit");

struct planner {
    const struct hook_facts *facts;
    struct hook_plan *plan;
    json_t *wait; /* of the next task; owned by the plan. NULL: nothing */
};

static struct job_task *add_task(struct planner *p, const char *kind, const json_t *spec,
                                 bool bridge)
{
    struct job_task *task = &p->plan->tasks[p->plan->count];

    assert(p->plan->count < JOB_TASKS_MAX);
    p->plan->count++;
    *task = (struct job_task){.kind = kind, .spec = spec, .bridge = bridge, .wait = p->wait};
    p->wait = NULL;
    return task;
}

static void add_wait(struct planner *p, const json_t *hook)
{
    const char *until = field_text(hook, "until", NULL);
    json_t *step = json_object();
    int64_t until_ms = 0;

    if (until == NULL) {
        json_set_i64(step, "ms", field_duration_ms(hook, "duration", 0));
    } else if (parse_time(until, &until_ms) == 0) {
        json_set_i64(step, "until_ms", until_ms);
    }
    if (p->wait == NULL) {
        p->wait = json_array();
        (void)json_array_append_new(p->plan->owned, p->wait);
    }
    (void)json_array_append_new(p->wait, step);
}

static void add_own(struct planner *p, const json_t *hook, const char *when)
{
    json_t *spec;
    struct job_task *task;

    if (is_type(hook, "wait")) {
        add_wait(p, hook);
        return;
    }
    spec = spec_of(p->facts, hook, when);
    (void)json_array_append_new(p->plan->owned, spec);
    task = add_task(p, is_type(hook, "script") ? "script" : "webhook", spec, true);
    task->hook = when;
    set_retries(task, hook, NULL);
}

/* The conversion, or the import, as a hook asks for it (NULL: the job's own fields do). */
static void add_step(struct planner *p, const char *kind, const json_t *spec, const json_t *hook)
{
    if (spec != NULL)
        set_retries(add_task(p, kind, spec, true), hook, p->facts->retry);
}

static void add_post(struct planner *p, const json_t *list)
{
    const json_t *job = p->facts->job;
    bool import_hook = hook_find(job, "post_hooks", "import") != NULL;
    size_t i;
    const json_t *hook;

    if (hook_find(job, "post_hooks", "convert") == NULL) {
        add_step(p, "convert", p->facts->convert_spec, NULL);
        if (!import_hook)
            add_step(p, "import", p->facts->import_spec, NULL);
    }
    json_array_foreach(list, i, hook)
    {
        if (!is_step(hook))
            add_own(p, hook, "post");
        if (is_type(hook, "import"))
            add_step(p, "import", p->facts->import_spec, hook);
        if (!is_type(hook, "convert"))
            continue;
        add_step(p, "convert", p->facts->convert_spec, hook);
        if (!import_hook)
            add_step(p, "import", p->facts->import_spec, NULL);
    }
}

void hooks_plan(const struct hook_facts *facts, struct hook_plan *out)
{
    struct planner p = {.facts = facts, .plan = out};
    const json_t *pre = json_object_get(facts->job, "pre_hooks");
    const json_t *post = json_object_get(facts->job, "post_hooks");
    size_t i;
    const json_t *hook;

    *out = (struct hook_plan){0};
    if (json_array_size(pre) + json_array_size(post) == 0)
        return;
    out->owned = json_array();
    json_array_foreach(pre, i, hook)
    {
        if (!is_step(hook))
            add_own(&p, hook, "pre");
    }
    (void)add_task(&p, "export", facts->export_spec, false);
    add_post(&p, post);
}

void hook_plan_release(struct hook_plan *plan)
{
    json_decref(plan->owned);
    *plan = (struct hook_plan){0};
}

int hook_step_task(const struct hooks_config *config, const json_t *hook, json_t **out_spec,
                   struct job_task *out, struct field_problem *problem, struct error *err)
{
    const struct hook_type *type = type_of(json_str(hook, "type"));
    auto_json *canonical = NULL;
    struct apply a = {.config = config, .problem = problem, .err = err};

    assert(type != NULL && (type->check == check_script || type->check == check_webhook));
    if (fields_canonical(type->fields, "", hook, &canonical, problem, err) < 0)
        return -1;
    a.hook = canonical;
    if (check_retry(&a) < 0 || type->check(&a) < 0)
        return -1;
    *out_spec = json_object();
    add_action(canonical, *out_spec);
    *out = (struct job_task){.kind = type->name, .spec = *out_spec, .bridge = true};
    set_retries(out, canonical, NULL);
    return 0;
}
