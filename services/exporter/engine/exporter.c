/* See exporter.h. */
#include "services/exporter/engine/exporter.h"

#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "services/exporter/engine/control.h"
#include "services/exporter/engine/worker_limit.h"
#include "services/exporter/targets/target.h"

#define KEY_WAIT_MS 1000 /* the gateway's operator writes the keys, maybe after our start */

/* One exporter per process; filled by configure(). */
static struct {
    struct daemon_config daemon;
    struct bus_config bus;
    struct secrets_config secrets;
    struct exporter exporter;
    struct worker_limit limit;
    pthread_mutex_t limit_mutex; /* guards the next two */
    bool limit_is_set;           /* by the API */
    struct rate_settings limit_set;
    struct service *service;
    char service_name[64];
} state = {.limit_mutex = PTHREAD_MUTEX_INITIALIZER};

static void add_path(struct config_list *list, const char *path)
{
    list->items = xreallocarray(list->items, list->count + 1, sizeof *list->items);
    list->items[list->count++] = xstrdup(path);
}

static void check_bases(struct strbuf *problems)
{
    for (size_t i = 0; i < state.exporter.bases.count; i++) {
        const char *path = state.exporter.bases.items[i];
        if (path[0] != '/') {
            strbuf_addf(problems, "export.%s: '%.256s' is not an absolute path\n",
                        i == 0 ? "base_path" : "allowed_paths", path);
        }
    }
}

static int configure_uploads(const struct config_file *file, struct strbuf *problems,
                             struct error *err)
{
    struct error why = ERROR_NONE;

    if (config_section_json(file, "uploads", &state.exporter.uploads, err) < 0)
        return -1;
    if (target_settings_check(state.exporter.uploads, &why) < 0)
        strbuf_addf(problems, "%s\n", why.message);
    return 0;
}

static int configure(const struct config_file *file, struct strbuf *problems, struct error *err)
{
    if (config_section(file, "daemon", &state.daemon, problems, err) < 0 ||
        config_section(file, "bus", &state.bus, problems, err) < 0 ||
        config_section(file, "secrets", &state.secrets, problems, err) < 0 ||
        config_section(file, "export", &state.exporter.export, problems, err) < 0)
        return -1;
    if (configure_uploads(file, problems, err) < 0)
        return -1;
    add_path(&state.exporter.bases, state.exporter.export.base_path);
    for (size_t i = 0; i < state.exporter.export.allowed_paths.count; i++)
        add_path(&state.exporter.bases, state.exporter.export.allowed_paths.items[i]);
    check_bases(problems);
    worker_limit_read(&state.exporter.export, &state.limit, problems);
    return 0;
}

/* control.c, export.c, verify_task.c, cleanup_task.c. */
static const struct worker_kind kinds[] = {
    {"export", false, exporter_run_export},
    {"inventory", true, exporter_run_inventory},
    {"vm_info", true, exporter_run_vm_info},
    {"validate", true, exporter_run_validate},
    {"tracking", true, exporter_run_tracking},
    {"incremental_info", true, exporter_run_incremental_info},
    {"release", true, exporter_run_release},
    {"verify", false, exporter_run_verify},
    {"cleanup", false, exporter_run_cleanup},
    {"check_chain", false, exporter_run_check_chain},
    {"prune", false, exporter_run_prune},
    {"flatten", false, exporter_run_flatten},
};

static json_t *checked(json_t *json)
{
    if (json == NULL)
        abort(); /* out of memory */
    return json;
}

/* docs/tasks.md, "Capability record": what the vtable and this build really have. */
static json_t *capabilities(const struct provider *provider)
{
    json_t *methods = checked(json_array());
    json_t *formats = checked(json_pack("[s,s,s,s,s]", "ovf", "ova", "vmdk", "raw", "qcow2"));

    for (const struct provider_method *m = provider->methods; m->name != NULL; m++) {
        (void)json_array_append_new(
            methods, checked(json_pack("{s:s, s:s, s:I}", "name", m->name, "version",
                                       HYPERSDK_VERSION, "priority", (json_int_t)m->priority)));
    }
    return checked(json_pack(
        "{s:s, s:o, s:o, s:i, s:{s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:b}}", "title",
        provider->title, "formats", formats, "methods", methods, "parallel_reads_max",
        (int)provider->parallel_reads_max, "features", "bandwidth_limit", true, "snapshot",
        provider->snapshots, "resume", true, "verify", true, "upload", true, "extents",
        provider->disk_extents != NULL, "cbt", provider->disk_changes != NULL, "inventory",
        provider->vm_list != NULL, "guest_shutdown", provider->shut_down != NULL, "remove_cdrom",
        provider->remove_cdroms != NULL));
}

static int load_key(struct service *service, struct error *err)
{
    autofree char *audience = xasprintf("provider:%s", state.exporter.provider->name);
    struct log_throttle throttle = {0};

    while (seal_key_load(state.secrets.key_dir, audience, &state.exporter.key, err) < 0) {
        uint64_t held = 0;
        service_set_ready(service, "key", false, err->message);
        if (log_throttle_pass(&throttle, err->message, &held))
            LOG(WARN, "waiting_for_key", F_STR("audience", audience), F_ERR(err));
        error_clear(err);
        if (service_wait(service, KEY_WAIT_MS))
            return error_set(err, ERR_CANCELLED, "stopped before the key was there");
    }
    service_set_ready(service, "key", true, "");
    return 0;
}

/* Keys that were exported by an older gateway lack this one: exports go on without evidence. */
static void load_evidence_key(void)
{
    struct error err = ERROR_NONE;

    if (seal_key_load(state.secrets.key_dir, SEAL_EVIDENCE, &state.exporter.evidence_key, &err) < 0)
        LOG(WARN, "no_evidence_key", F_ERR(&err));
}

static void apply_limit(void)
{
    time_t now = time(NULL);
    struct tm local;

    struct rate_settings set;
    bool is_set;

    (void)pthread_mutex_lock(&state.limit_mutex);
    is_set = state.limit_is_set;
    set = state.limit_set;
    (void)pthread_mutex_unlock(&state.limit_mutex);
    if (localtime_r(&now, &local) != NULL)
        worker_limit_apply(&state.limit, &local, is_set ? &set : NULL, state.exporter.limiter);
}

/* With a lease or renewal; the next tick applies it. */
static void take_limit(void *arg, const struct worker_rate *rate)
{
    (void)arg;
    LOCK_SCOPE(&state.limit_mutex);
    state.limit_is_set = rate != NULL;
    if (rate != NULL)
        state.limit_set = (struct rate_settings){.rate = rate->rate, .burst = rate->burst};
}

static void tick(void *arg)
{
    (void)arg;
    if (service_reload_requested(state.service))
        worker_limit_reload(service_config_path(state.service), &state.limit);
    apply_limit();
}

static int run(struct service *service, struct error *err)
{
    auto_json *record = capabilities(state.exporter.provider);
    struct worker_description description = {
        .role = "exporter",
        .provider = state.exporter.provider->name,
        .kinds = kinds,
        .kind_count = ARRAY_LEN(kinds),
        .transfer_slots = state.exporter.export.concurrent_exports,
        .control_slots = state.daemon.workers,
        .bases = &state.exporter.bases,
        .capabilities = record,
        .tick = tick,
        .limit = take_limit,
        .arg = &state.exporter,
    };

    state.service = service;
    tzset(); /* localtime_r need not */
    apply_limit();
    if (load_key(service, err) < 0) {
        if (!service_stopping(service))
            return -1;
        error_clear(err);
        return 0;
    }
    load_evidence_key();
    state.exporter.key_dir = state.secrets.key_dir;
    return worker_run(service, &state.bus, &description, err);
}

int exporter_main(int argc, char **argv, const struct provider *provider)
{
    struct service_description description = {
        .name = state.service_name,
        .purpose = "exports virtual machines of one provider: inventory, snapshots, disks",
        .admin_key = "exporter",
        .configure = configure,
        .run = run,
    };

    state.exporter.provider = provider;
    state.exporter.limiter = rate_limiter_new();
    (void)snprintf(state.service_name, sizeof state.service_name, "exporter-%s", provider->name);
    return service_main(argc, argv, &description);
}
