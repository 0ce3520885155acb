/* VMs of the providers (rest-api.md 4.1, 4.2): lists come from the inventory, which a worker's
 * scan replaces as a whole; details are asked for at the source. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "control_task.h"
#include "handlers.h"
#include "common/provider_lookup.h"
#include "common/vm_filter.h"

#define INVENTORY_AGE_MAX_S   300  /* an older list is read again first */
#define SHORT_LIMIT_DEFAULT   1000 /* the bare array has no cursor in it: as much as allowed */
#define NUMBER_TEXT           24
#define FILTER_PARAMS         9 /* of VM_FILTERS */
#define CANDIDATES_MAX        5
#define VM_INFO_TIMEOUT_MAX_S 3600
#define VND_OBJECT_TYPE       "application/vnd.hypersdk.v1+json"

static const struct field list_fields[] = {
    {"provider", {NULL}, FIELD_TEXT, 1, PROVIDER_NAME_MAX, NULL},
    {"filter", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    {"refresh", {NULL}, FIELD_BOOL, 0, 0, NULL},
    PAGE_FIELDS,
    {0},
};
static const struct field filter_fields[] = {
    {"name", {NULL}, FIELD_TEXT, 1, 512, NULL},
    {"folder", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"datacenter", {NULL}, FIELD_TEXT, 1, 512, NULL},
    {"power_state", {NULL}, FIELD_TEXT, 1, 32, NULL},
    {"min_memory_mb", {NULL}, FIELD_NUMBER, 0, UINT32_MAX, NULL},
    {"min_cpus", {NULL}, FIELD_NUMBER, 0, 10000, NULL},
    VM_FILTER_FIELDS,
    {0},
};
static const struct field info_fields[] = {
    {"vm_path", {"vm_identifier", "vm", "vm_id"}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"provider", {NULL}, FIELD_TEXT, 1, PROVIDER_NAME_MAX, NULL},
    {"timeout", {NULL}, FIELD_DURATION, 0, VM_INFO_TIMEOUT_MAX_S * 1000, NULL},
    {"wait", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {0},
};

static const char state_sql[] = "SELECT " SQL_TIME(
    "completed_at") ", extract(epoch FROM now() - completed_at)::bigint FROM inventory_state WHERE "
                    "provider = $1";
/* $1 provider, $2 name pattern, $3 folder pattern, $4 datacenter, $5 power state, $6 memory,
 * $7 CPUs, $8 cluster, $9 tags. The generation is looked up inside the statement: a scan may
 * replace it any time. */
#define VM_FILTERS                                                                              \
    " FROM inventory_vms v WHERE v.provider = $1"                                               \
    " AND v.generation = (SELECT s.generation FROM inventory_state s WHERE s.provider = $1)"    \
    " AND ($2::text IS NULL OR v.name LIKE $2)"                                                 \
    " AND ($3::text IS NULL OR v.path LIKE $3)"                                                 \
    " AND ($4::text IS NULL OR v.vm->>'datacenter' = $4)"                                       \
    " AND ($5::text IS NULL OR v.power_state = $5)"                                             \
    " AND ($6::bigint IS NULL OR (v.vm->>'memory_mb')::bigint >= $6::bigint)"                   \
    " AND ($7::bigint IS NULL OR (v.vm->>'num_cpu')::bigint >= $7::bigint)" VM_FILTER_SQL("$8", \
                                                                                          "$9")
static const char list_sql[] = "SELECT v.vm, v.path, v.id, " SQL_TIME("v.updated_at") VM_FILTERS
    " AND ($10::text IS NULL OR (v.path, v.id) > ($10, $11)) ORDER BY v.path, v.id"
    " LIMIT $12 OFFSET $13";
static const char count_sql[] = "SELECT count(*) FROM (SELECT 1" VM_FILTERS " LIMIT 10001) few";
static const char candidates_sql[] =
    "SELECT v.id, v.name, v.path FROM inventory_vms v JOIN inventory_state s"
    " ON s.provider = v.provider AND s.generation = v.generation WHERE v.provider = $1"
    " AND (v.name = $2 OR v.name ILIKE $3) ORDER BY v.name <> $2, length(v.name), v.path LIMIT 5";
static_assert(CANDIDATES_MAX == 5 && PAGE_TOTAL_MAX == 10000, "limits in the statements");

/* LIKE's own characters lose their meaning; with glob, * and ? get theirs. Caller frees. */
static char *like_pattern(const char *before, const char *text, const char *after, bool glob)
{
    auto_strbuf sb;
    struct error ignored = ERROR_NONE;
    char *pattern = NULL;

    strbuf_init(&sb, 2 * strlen(text) + strlen(before) + strlen(after) + 1);
    strbuf_add(&sb, before);
    for (const char *p = text; *p != '\0'; p++) {
        if (glob && (*p == '*' || *p == '?')) {
            strbuf_addc(&sb, *p == '*' ? '%' : '_');
            continue;
        }
        if (*p == '%' || *p == '_' || *p == '\\')
            strbuf_addc(&sb, '\\');
        strbuf_addc(&sb, *p);
    }
    strbuf_add(&sb, after);
    return strbuf_finish(&sb, &pattern, &ignored) < 0 ? xstrdup("") : pattern;
}

struct vm_query {
    json_t *canonical;
    json_t *filter; /* canonical; NULL: none */
    const char *provider;
    struct provider_row row;
    bool refresh;
    struct page page;
    char *after_path; /* of the cursor; NULL: from the start */
    char *after_id;
    /* what the inventory is */
    char completed_at[CLOCK_RFC3339_SIZE];
    int64_t age_s; /* -1: there is none */
    bool stale;    /* could not be read again */
};

static void vm_query_release(struct vm_query *query)
{
    json_decref(query->canonical);
    json_decref(query->filter);
    free(query->after_path);
    free(query->after_id);
}

/* A cursor is the place where the page ended: hex of ["path", "id"]. */
static int read_cursor(struct call *call, struct vm_query *query, struct error *err)
{
    const char *cursor = query->page.cursor;
    size_t size = cursor == NULL ? 0 : strlen(cursor) / 2;
    autofree char *text = NULL;
    auto_json *place = NULL;
    const char *path = NULL;
    const char *id = NULL;

    if (cursor == NULL)
        return 0;
    text = xcalloc(size + 1, 1);
    if (strlen(cursor) == 2 * size && hex_decode(cursor, text, size))
        place = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    if (place == NULL || json_unpack(place, "[ss]", &path, &id) < 0)
        return call_bad_field(call, "cursor", err, "'cursor' is not one of this list");
    query->after_path = xstrdup(path);
    query->after_id = xstrdup(id);
    return 0;
}

static char *cursor_of(const PGresult *rows, int row)
{
    auto_json *place = json_pack("[ss]", db_text(rows, row, 1), db_text(rows, row, 2));
    autofree char *text = json_text(place);
    char *hex = xmalloc(2 * strlen(text) + 1);

    hex_encode(text, strlen(text), hex);
    return hex;
}

/* Parameters: the filter's members stand beside the others. */
static int query_from_parameters(struct call *call, json_t **out, struct error *err)
{
    static const struct field parameters[] = {
        {"provider", {NULL}, FIELD_TEXT, 0, 0, NULL},
        {"refresh", {NULL}, FIELD_BOOL, 0, 0, NULL},
        PAGE_FIELDS,
        {0},
    };
    auto_json *body = NULL;
    json_t *filter = NULL;

    if (query_as_body(call, parameters, &body, err) < 0 ||
        query_as_body(call, filter_fields, &filter, err) < 0)
        return -1;
    (void)json_object_set_new(body, "filter", filter);
    *out = STEAL(body);
    return 0;
}

static int read_list(struct call *call, struct vm_query *query, struct error *err)
{
    static const char *const powers[] = {"poweredOn", "poweredOff", "suspended", NULL};
    bool is_short = (call->route->flags & ROUTE_SHORT) != 0;
    auto_json *parameters = NULL;
    struct field_problem problem = {0};
    const json_t *filter;
    const char *power;

    if (call->body == NULL && query_from_parameters(call, &parameters, err) < 0)
        return -1;
    if (fields_canonical(list_fields, "", call->body != NULL ? call->body : parameters,
                         &query->canonical, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    filter = json_object_get(query->canonical, "filter");
    if (filter != NULL &&
        fields_canonical(filter_fields, "filter.", filter, &query->filter, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (vm_filter_check(query->filter, "filter.", &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    query->provider = field_text(query->canonical, "provider", PROVIDER_DEFAULT);
    query->refresh = field_bool(query->canonical, "refresh", false);
    page_from(query->canonical, is_short ? SHORT_LIMIT_DEFAULT : PAGE_LIMIT_DEFAULT, &query->page);
    power = field_text(query->filter, "power_state", powers[0]);
    if (!word_in(power, powers)) {
        return call_bad_field(call, "filter.power_state", err,
                              "'power_state' must be poweredOn, poweredOff or suspended");
    }
    if (provider_lookup(call->db, query->provider, true, &query->row, &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    return read_cursor(call, query, err);
}

static int look_at_inventory(struct call *call, struct vm_query *query, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, state_sql, DB_PARAMS(query->provider), &rows, err) < 0)
        return -1;
    query->age_s = -1;
    if (PQntuples(rows) == 0)
        return 0;
    (void)snprintf(query->completed_at, sizeof query->completed_at, "%s", db_text(rows, 0, 0));
    query->age_s = db_i64(rows, 0, 1) < 0 ? 0 : db_i64(rows, 0, 1);
    return 0;
}

/* Has a worker read the inventory when it was asked for, is missing, or too old. *out_later: the
 * answer was given already (202). */
static int refresh(struct call *call, struct vm_query *query, bool *out_later, struct error *err)
{
    auto_json *spec = json_object();
    auto_control_task task = {0};
    const struct control_request request = {.kind = "inventory",
                                            .provider = query->provider,
                                            .provider_kind = query->row.kind,
                                            .spec = spec,
                                            .wait_ms = CONTROL_WAIT_MS,
                                            .share = !query->refresh};
    bool needed;

    if (look_at_inventory(call, query, err) < 0)
        return -1;
    needed = query->age_s < 0 || query->refresh;
    /* a page further on belongs to the list that the first one came from */
    if (query->age_s >= 0 && query->page.cursor != NULL && !query->refresh)
        return 0;
    if (!needed && query->age_s <= INVENTORY_AGE_MAX_S)
        return 0;
    if (control_task_run(call, &request, &task, err) < 0)
        return -1;
    if (strcmp(task.state, "done") == 0)
        return look_at_inventory(call, query, err);
    query->stale = true;
    if (!needed)
        return 0; /* an old list that says so is better than none */
    if (control_task_is_over(&task))
        return control_task_fail(call, &task, NULL, err);
    control_task_answer_later(call, &task);
    *out_later = true;
    return 0;
}

static json_t *vm_of(const PGresult *rows, int row, const char *provider)
{
    json_t *vm = cell_json(rows, row, 0);

    if (json_is_object(vm)) {
        json_set_text(vm, "provider", provider);
        (void)json_object_set_new(vm, "updated_at", cell_text(rows, row, 3));
    }
    return vm;
}

static void answer_list(struct call *call, const struct vm_query *query, const PGresult *rows,
                        int64_t total)
{
    bool bare = (call->route->flags & ROUTE_SHORT) != 0 && !call_accepts(call, VND_OBJECT_TYPE);
    const char *total_key = total > PAGE_TOTAL_MAX ? "total_at_least" : "total";
    autofree char *cursor = NULL;
    autofree char *total_text = NULL;
    json_t *vms = json_array();
    json_t *answer;
    int count = PQntuples(rows);

    if (count > (int)query->page.limit) {
        count = (int)query->page.limit;
        cursor = cursor_of(rows, count - 1);
    }
    for (int i = 0; i < count; i++)
        (void)json_array_append_new(vms, vm_of(rows, i, query->provider));
    total = total > PAGE_TOTAL_MAX ? PAGE_TOTAL_MAX : total;
    if (bare) { /* what the array cannot say stands in the header */
        total_text = xasprintf("%lld", (long long)total);
        call_set_header(call, "X-Total-Count", total_text);
        if (cursor != NULL)
            call_set_header(call, "X-Next-Cursor", cursor);
        call_set_header(call, "X-Inventory-Time", query->completed_at);
        call_answer_json(call, 200, vms);
        return;
    }
    answer = json_object();
    (void)json_object_set_new(answer, "vms", vms);
    json_set_i64(answer, total_key, total);
    if (cursor != NULL)
        json_set_text(answer, "next_cursor", cursor);
    json_set_text(answer, "inventory_time", query->completed_at);
    if (query->stale)
        json_set_text(answer, "stale_since", query->completed_at);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
}

/* "/DC0/vm/prod" = below that path; "prod" = below a folder of that name. */
static char *folder_pattern(const char *folder)
{
    size_t length = strlen(folder);
    autofree char *trimmed = NULL;

    while (length > 1 && folder[length - 1] == '/')
        length--;
    trimmed = xstrndup(folder, length);
    if (strcmp(trimmed, "/") == 0)
        return xstrdup("/%");
    return like_pattern(trimmed[0] == '/' ? "" : "%/", trimmed, "/%", false);
}

int handle_vm_list(struct call *call, struct error *err)
{
    CLEANUP(vm_query_release) struct vm_query query = {0};
    auto_pgresult *rows = NULL;
    auto_pgresult *total = NULL;
    autofree char *name = NULL;
    autofree char *folder = NULL;
    autofree char *tags = NULL;
    struct field_problem problem = {0};
    char numbers[4][NUMBER_TEXT];
    bool later = false;

    if (read_list(call, &query, err) < 0 || refresh(call, &query, &later, err) < 0)
        return -1;
    if (later)
        return 0;
    if (vm_filter_known(call->db, query.provider, query.filter, "filter.", &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    tags = vm_filter_tags(query.filter);
    if (field_text(query.filter, "name", NULL) != NULL)
        name = like_pattern("", field_text(query.filter, "name", ""), "", true);
    if (field_text(query.filter, "folder", NULL) != NULL)
        folder = folder_pattern(field_text(query.filter, "folder", ""));
    (void)snprintf(numbers[0], NUMBER_TEXT, "%" PRIu64,
                   field_number(query.filter, "min_memory_mb", 0));
    (void)snprintf(numbers[1], NUMBER_TEXT, "%" PRIu64, field_number(query.filter, "min_cpus", 0));
    (void)snprintf(numbers[2], NUMBER_TEXT, "%" PRIu32, query.page.limit + 1);
    (void)snprintf(numbers[3], NUMBER_TEXT, "%" PRIu32, query.page.offset);
    const char *params[] = {query.provider,
                            name,
                            folder,
                            field_text(query.filter, "datacenter", NULL),
                            field_text(query.filter, "power_state", NULL),
                            json_object_get(query.filter, "min_memory_mb") == NULL ? NULL
                                                                                   : numbers[0],
                            json_object_get(query.filter, "min_cpus") == NULL ? NULL : numbers[1],
                            field_text(query.filter, "cluster", NULL),
                            tags,
                            query.after_path,
                            query.after_id,
                            numbers[2],
                            numbers[3]};
    if (db_exec(call->db, list_sql, params, ARRAY_LEN(params), &rows, err) < 0 ||
        db_exec(call->db, count_sql, params, FILTER_PARAMS, &total, err) < 0)
        return -1;
    answer_list(call, &query, rows, db_i64(total, 0, 0));
    return 0;
}

/* VMs of the inventory that were probably meant. New reference. */
static json_t *candidates(struct call *call, const char *provider, const char *vm)
{
    const char *slash = strrchr(vm, '/');
    const char *name = slash == NULL ? vm : slash + 1;
    autofree char *pattern = like_pattern("%", name, "%", false);
    auto_pgresult *rows = NULL;
    struct error ignored = ERROR_NONE;
    json_t *list = json_array();

    if (db_exec(call->db, candidates_sql, DB_PARAMS(provider, name, pattern), &rows, &ignored) < 0)
        return list; /* the refusal itself is what matters */
    for (int i = 0; i < PQntuples(rows); i++) {
        (void)json_array_append_new(list,
                                    json_pack("{s:s, s:s, s:s}", "id", db_text(rows, i, 0), "name",
                                              db_text(rows, i, 1), "path", db_text(rows, i, 2)));
    }
    return list;
}

/* The body, or parameters; the path's {id} wins over neither: it is the only name then. */
static int read_info(struct call *call, json_t **out, struct error *err)
{
    auto_json *parameters = NULL;
    auto_json *canonical = NULL;
    struct field_problem problem = {0};
    const char *id = call_param(call, "id");

    if (call->body == NULL && query_as_body(call, info_fields, &parameters, err) < 0)
        return -1;
    if (fields_canonical(info_fields, "", call->body != NULL ? call->body : parameters, &canonical,
                         &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (id[0] != '\0')
        json_set_text(canonical, "vm_path", id);
    if (json_object_get(canonical, "vm_path") == NULL)
        return call_bad_field(call, "vm_path", err, "'vm_path' is missing");
    *out = STEAL(canonical);
    return 0;
}

static int fail_task(struct call *call, const struct control_task *task, const char *provider,
                     const char *vm, struct error *err)
{
    json_t *extra = NULL;

    if (task->error_code == ERR_NOT_FOUND || task->error_code == ERR_CONFLICT) {
        extra = json_pack("{s:s, s:o}", "field", "vm_path", "candidates",
                          candidates(call, provider, vm));
    }
    return control_task_fail(call, task, extra, err);
}

/* The result's member `name` as the answer's member `as`; NULL: as the answer itself. */
static int answer_task(struct call *call, const struct control_task *task, const char *name,
                       const char *as)
{
    const json_t *facts = json_object_get(task->result, name);
    json_t *answer = as == NULL ? json_deep_copy(facts) : json_object();

    if (answer == NULL)
        answer = json_object();
    json_put(answer, "success", json_true());
    if (as != NULL)
        (void)json_object_set(answer, as, json_object_get(task->result, name));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* A control task about one VM, which body, parameters or path name. action may be NULL. */
struct vm_question {
    const char *kind;
    const char *action;
    const char *result; /* see answer_task */
    const char *as;
};

static int ask_vm(struct call *call, const struct vm_question *question, struct error *err)
{
    auto_json *body = NULL;
    auto_json *spec = NULL;
    auto_control_task task = {0};
    struct provider_row row;
    struct field_problem problem = {0};
    struct control_request request = {.kind = question->kind, .wait_ms = CONTROL_WAIT_MS};

    if (read_info(call, &body, err) < 0)
        return -1;
    request.provider = field_text(body, "provider", PROVIDER_DEFAULT);
    if (provider_lookup(call->db, request.provider, true, &row, &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    request.provider_kind = row.kind;
    if (!field_bool(body, "wait", true)) {
        request.wait_ms = 0;
    } else if (field_duration_ms(body, "timeout", CONTROL_WAIT_MS) < CONTROL_WAIT_MS) {
        request.wait_ms = field_duration_ms(body, "timeout", CONTROL_WAIT_MS);
    }
    spec = json_object();
    (void)json_object_set(spec, "vm", json_object_get(body, "vm_path"));
    if (question->action != NULL)
        json_set_text(spec, "action", question->action);
    request.spec = spec;
    call_resource(call, "vm", field_text(body, "vm_path", ""));
    if (control_task_run(call, &request, &task, err) < 0)
        return -1;
    if (!control_task_is_over(&task)) {
        control_task_answer_later(call, &task);
        return 0;
    }
    if (strcmp(task.state, "done") != 0)
        return fail_task(call, &task, request.provider, field_text(body, "vm_path", ""), err);
    return answer_task(call, &task, question->result, question->as);
}

int handle_vm_info(struct call *call, struct error *err)
{
    return ask_vm(call, &(struct vm_question){.kind = "vm_info", .result = "vm", .as = "vm_info"},
                  err);
}

static int ask_tracking(struct call *call, const char *action, struct error *err)
{
    return ask_vm(call,
                  &(struct vm_question){.kind = "tracking", .action = action, .result = "tracking"},
                  err);
}

int handle_cbt_enable(struct call *call, struct error *err)
{
    return ask_tracking(call, "enable", err);
}

int handle_cbt_disable(struct call *call, struct error *err)
{
    return ask_tracking(call, "disable", err);
}

int handle_cbt_status(struct call *call, struct error *err)
{
    return ask_tracking(call, "status", err);
}
