/* See session.h. */
#include "services/exporter/engine/session.h"

#include <string.h>

#include "common/json.h"

#define CANDIDATES_MAX 5 /* names in one error message */

/* ---- opening ---- */

/* A setting that every kind has and the gateway keeps for itself. */
static bool is_common_setting(const char *name)
{
    return strcmp(name, "kind") == 0 || strcmp(name, "enabled") == 0;
}

static int merge(json_t *into, const json_t *from)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)from, name, value)
    {
        if (!is_common_setting(name) && json_object_set(into, name, value) < 0)
            abort(); /* out of memory */
    }
    return 0;
}

static int open_secrets(const struct exporter *exporter, const struct exporter_settings *settings,
                        json_t *into, struct error *err)
{
    auto_secret *text = NULL;
    json_t *secrets = NULL;
    size_t size = 0;

    if (settings->sealed_size == 0)
        return 0;
    if (seal_open(exporter->key, settings->sealed, settings->sealed_size, &text, &size, err) < 0)
        return error_wrap(err, "secrets of the provider");
    if (json_parse(text, size, SEAL_SECRET_BYTES_MAX, &secrets, err) < 0)
        return error_wrap(err, "secrets of the provider");
    (void)merge(into, secrets);
    json_decref(secrets);
    return 0;
}

/* The gateway reads secret files of its own configuration. A path that came with a task would let
 * who may add a provider send any file of this machine to a server of theirs. */
static int refuse_files(const struct config_key *keys, const json_t *settings, struct error *err)
{
    for (; keys->name != NULL; keys++) {
        if (keys->type == CONFIG_FILE && json_object_get(settings, keys->name) != NULL)
            return error_set(err, ERR_INVALID, "%s: a task cannot name files", keys->name);
    }
    return 0;
}

int exporter_session_open(struct exporter *exporter, const struct exporter_settings *settings,
                          const atomic_bool *stopped, struct exporter_session *out,
                          struct error *err)
{
    struct exporter_session session = {.exporter = exporter};
    json_t *all = json_object();
    int rc;

    (void)merge(all, settings->plain);
    session.config = xcalloc(1, exporter->provider->config_size);
    rc = open_secrets(exporter, settings, all, err);
    if (rc == 0)
        rc = refuse_files(exporter->provider->config_keys, all, err);
    if (rc == 0)
        rc = config_from_json(exporter->provider->config_keys, all, session.config, err);
    json_decref(all);
    if (rc < 0) {
        free(session.config);
        return error_wrap(err, "settings of provider '%s'", exporter->provider->name);
    }
    if (exporter->provider->open(session.config, stopped, &session.session, err) < 0) {
        config_release(exporter->provider->config_keys, session.config);
        free(session.config);
        return -1;
    }
    *out = session;
    return 0;
}

void exporter_session_close(struct exporter_session *session)
{
    if (session->exporter == NULL)
        return;
    session->exporter->provider->close(session->session);
    config_release(session->exporter->provider->config_keys, session->config);
    free(session->config);
    *session = (struct exporter_session){0};
}

/* ---- records ---- */

static int records_put(struct task_records *records, const char *key, const char *value,
                       struct error *err)
{
    return worker_task_record_put(((struct exporter_records *)records)->task, key, value, err);
}

static const char *records_get(struct task_records *records, const char *key)
{
    return worker_task_record_get(((struct exporter_records *)records)->task, key);
}

void exporter_records_init(struct exporter_records *records, struct worker_task *task)
{
    records->base.put = records_put;
    records->base.get = records_get;
    records->task = task;
}

/* ---- finding a VM ---- */

/* How a VM was named; the order is the order of preference. */
enum match { MATCH_ID, MATCH_PATH, MATCH_NAME, MATCH_COUNT };

struct search {
    const char *identifier;
    size_t counts[MATCH_COUNT];
    char *ids[MATCH_COUNT];           /* of the first match */
    char *candidates[CANDIDATES_MAX]; /* "id (path)" of matches by name */
    size_t candidate_count;
    char *similar[CANDIDATES_MAX]; /* paths of VMs whose names hold the identifier */
    size_t similar_count;
};

static void search_release(struct search *search)
{
    for (size_t i = 0; i < MATCH_COUNT; i++)
        free(search->ids[i]);
    for (size_t i = 0; i < search->candidate_count; i++)
        free(search->candidates[i]);
    for (size_t i = 0; i < search->similar_count; i++)
        free(search->similar[i]);
}

static void count_match(struct search *search, enum match match, const struct vm *vm)
{
    if (search->counts[match]++ == 0)
        search->ids[match] = xstrdup(vm->id);
    if (match == MATCH_NAME && search->candidate_count < CANDIDATES_MAX)
        search->candidates[search->candidate_count++] = xasprintf("%s (%s)", vm->id, vm->path);
}

/* What someone may have meant who typed a part of the name, or other capitals. */
static bool is_similar(const struct search *search, const struct vm *vm)
{
    const char *slash = strrchr(search->identifier, '/');
    const char *word = slash == NULL ? search->identifier : slash + 1;

    return word[0] != '\0' && strcasestr(vm->name, word) != NULL;
}

static int on_page(void *arg, const struct vm *vms, size_t count, struct error *err)
{
    struct search *search = arg;

    (void)err;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(vms[i].id, search->identifier) == 0)
            count_match(search, MATCH_ID, &vms[i]);
        if (strcmp(vms[i].path, search->identifier) == 0)
            count_match(search, MATCH_PATH, &vms[i]);
        if (strcmp(vms[i].name, search->identifier) == 0) {
            count_match(search, MATCH_NAME, &vms[i]);
        } else if (search->similar_count < CANDIDATES_MAX && is_similar(search, &vms[i])) {
            search->similar[search->similar_count++] = xstrdup(vms[i].path);
        }
    }
    return 0;
}

static int ambiguous(const struct search *search, size_t count, struct error *err)
{
    auto_strbuf list;

    strbuf_init(&list, 300);
    for (size_t i = 0; i < search->candidate_count; i++)
        strbuf_addf(&list, "%s%s", i == 0 ? "" : ", ", search->candidates[i]);
    return error_set(err, ERR_CONFLICT, "'%.128s' names %zu VMs, use an id or a path: %s%s",
                     search->identifier, count, list.data,
                     count > search->candidate_count ? " ..." : "");
}

static int not_found(const struct search *search, struct error *err)
{
    auto_strbuf list;

    strbuf_init(&list, 300);
    for (size_t i = 0; i < search->similar_count; i++)
        strbuf_addf(&list, "%s%s", i == 0 ? "; similar: " : ", ", search->similar[i]);
    return error_set(err, ERR_NOT_FOUND, "no VM has the id, path or exact name '%.128s'%s",
                     search->identifier, list.data);
}

/* Asks for the VM of this id: much cheaper than a listing. 1: it exists, 0: it is no id. */
static int is_id(struct exporter_session *session, const char *identifier, struct error *err)
{
    auto_vm vm;

    vm_init(&vm);
    if (identifier[0] == '/') /* a path */
        return 0;
    if (session->exporter->provider->vm_get(session->session, identifier, &vm, err) == 0)
        return 1;
    if (err->code != ERR_NOT_FOUND && err->code != ERR_INVALID && err->code != ERR_PROTOCOL)
        return -1;
    error_clear(err);
    return 0;
}

int exporter_vm_find(struct exporter_session *session, const char *identifier, char **out_id,
                     struct error *err)
{
    CLEANUP(search_release) struct search search = {.identifier = identifier};
    int id;

    if (identifier[0] == '\0')
        return error_set(err, ERR_INVALID, "the VM's id, path or name is missing");
    id = is_id(session, identifier, err);
    if (id < 0)
        return error_wrap(err, "looking for VM '%.128s'", identifier);
    if (id == 1) {
        *out_id = xstrdup(identifier);
        return 0;
    }
    if (session->exporter->provider->vm_list(session->session, on_page, &search, err) < 0)
        return error_wrap(err, "looking for VM '%.128s'", identifier);
    for (size_t i = 0; i < MATCH_COUNT; i++) {
        if (search.counts[i] > 1)
            return ambiguous(&search, search.counts[i], err);
        if (search.counts[i] == 1) {
            *out_id = STEAL(search.ids[i]);
            return 0;
        }
    }
    return not_found(&search, err);
}
