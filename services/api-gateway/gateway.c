/* The process: configuration, the parts built from it, the loop, the end. */
#include "gateway.h"

#include <stdio.h>
#include <string.h>
#include <sodium.h>

#include "auth.h"
#include "bootstrap.h"
#include "common/address.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/service_heartbeat.h"
#include "common/time_window.h"
#include "config_sync.h"
#include "hub.h"
#include "server.h"

#define TICK_MS       1000
#define LAST_WORDS_MS 100 /* good-byes to live clients leave on the sockets' threads */

static struct gateway the_gateway; /* one per process; filled by configure, before any thread */

/* ---- configuration ---- */

static void check_tls(const struct gateway *gateway, struct strbuf *problems)
{
    if ((gateway->daemon.tls_cert_file[0] == '\0') != (gateway->daemon.tls_key_file[0] == '\0'))
        strbuf_add(problems, "daemon: tls_cert_file and tls_key_file belong together\n");
}

static void check_dev_mode(const struct gateway *gateway, struct strbuf *problems)
{
    struct address address;
    struct error err = ERROR_NONE;

    if (address_parse("daemon.address", gateway->daemon.address, &address, &err) < 0) {
        strbuf_addf(problems, "%s\n", err.message);
        return;
    }
    if (gateway->daemon.dev_mode &&
        !address_is_loopback((const struct sockaddr *)&address.storage)) {
        strbuf_addf(problems,
                    "daemon: dev_mode has no login, so it wants a loopback address, not '%s'\n",
                    gateway->daemon.address);
    }
}

static void check_roles(const struct gateway *gateway, struct strbuf *problems)
{
    const char *role;
    json_t *permissions;

    json_object_foreach(gateway->roles, role, permissions)
    {
        size_t i;
        json_t *permission;
        json_array_foreach(permissions, i, permission)
        {
            const char *name = json_string_value(permission);
            if (name == NULL || !permission_is_known(name)) {
                strbuf_addf(problems, "roles.%s: there is no permission '%.64s'\n", role,
                            name == NULL ? "" : name);
            }
        }
    }
}

static int load_master(struct gateway *gateway, struct strbuf *problems)
{
    struct error err = ERROR_NONE;

    if (gateway->secrets.master_key[0] != '\0' &&
        seal_master_new(gateway->secrets.master_key, &gateway->master, &err) < 0)
        strbuf_addf(problems, "secrets.master_key: %s\n", err.message);
    return 0;
}

static int configure(const struct config_file *file, struct strbuf *problems, struct error *err)
{
    struct gateway *gateway = &the_gateway;

    if (sodium_init() < 0)
        return error_set(err, ERR_INTERNAL, "libsodium cannot start");
    if (config_section(file, "daemon", &gateway->daemon, problems, err) < 0 ||
        config_section(file, "database", &gateway->database, problems, err) < 0 ||
        config_section(file, "redis", &gateway->redis, problems, err) < 0 ||
        config_section(file, "bus", &gateway->bus, problems, err) < 0 ||
        config_section(file, "export", &gateway->export, problems, err) < 0 ||
        config_section(file, "hyper2kvm", &gateway->hyper2kvm, problems, err) < 0 ||
        config_section(file, "libvirt", &gateway->libvirt, problems, err) < 0 ||
        config_section(file, "hooks", &gateway->hooks, problems, err) < 0 ||
        config_section(file, "templates", &gateway->templates, problems, err) < 0 ||
        config_section(file, "security", &gateway->security, problems, err) < 0 ||
        config_section(file, "secrets", &gateway->secrets, problems, err) < 0 ||
        config_section(file, "retry", &gateway->retry, problems, err) < 0 ||
        config_section(file, "scheduler", &gateway->scheduler, problems, err) < 0 ||
        config_section_json(file, "roles", &gateway->roles, err) < 0)
        return -1;
    check_tls(gateway, problems);
    check_dev_mode(gateway, problems);
    check_roles(gateway, problems);
    gateway->bases = export_bases(&gateway->export);
    time_windows_check(&gateway->scheduler.maintenance_windows, problems);
    config_sync_check(file, problems);
    return load_master(gateway, problems);
}

/* ---- shared services ---- */

struct db *gateway_db_new(const struct gateway *gateway, const char *purpose)
{
    autofree char *application = xasprintf("api-gateway %s", purpose);

    return db_new(&gateway->database, GATEWAY_DB_ROLE, application);
}

void gateway_poke(struct gateway *gateway, const char *job_id)
{
    bus_envelope envelope;
    struct bus_envelope_store store;
    Hypersdk__V1__JobsChanged changed = HYPERSDK__V1__JOBS_CHANGED__INIT;
    char id[BUS_TEXT_MAX];
    char *ids[] = {id};

    bus_envelope_init(&envelope, &store, service_instance(gateway->service), NULL);
    if (job_id != NULL) {
        (void)snprintf(id, sizeof id, "%s", job_id);
        changed.n_job_ids = 1;
        changed.job_ids = ids;
    }
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED;
    envelope.jobs_changed = &changed;
    bus_push(gateway->pusher, &envelope);
}

/* ---- the run ---- */

static int start(struct gateway *gateway, struct server **out_server, struct error *err)
{
    gateway->started_ms = clock_mono_ms();
    if (gateway->daemon.dev_mode) {
        LOG(WARN, "dev_mode", F_STR("address", gateway->daemon.address),
            F_STR("meaning", "no login: everyone on this machine is admin"));
    }
    service_set_ready(gateway->service, "api", false, "the REST port is not open yet");
    if (service_heartbeat_start(gateway->service, &gateway->database, GATEWAY_DB_ROLE, err) < 0 ||
        bus_pusher_open(&gateway->bus, &gateway->pusher, err) < 0 ||
        bootstrap_start(gateway, err) < 0 || hub_start(gateway, &gateway->hub, err) < 0)
        return -1;
    if (server_start(gateway, out_server, err) < 0)
        return -1;
    service_set_ready(gateway->service, "api", true, "");
    return 0;
}

static void drain(struct gateway *gateway, struct server *server)
{
    int64_t deadline_ms = clock_mono_ms() + service_drain_ms(gateway->service);

    server_quiesce(server);
    hub_drain(gateway->hub);
    while (server_busy(server) > 0 && clock_mono_ms() < deadline_ms)
        clock_sleep_ms(20);
    clock_sleep_ms(LAST_WORDS_MS);
}

static int run(struct service *service, struct error *err)
{
    struct gateway *gateway = &the_gateway;
    struct server *server = NULL;
    const char *keys = service_flag_value(service, "export-keys");

    gateway->service = service;
    if (keys != NULL)
        return export_keys(gateway, keys, err);
    if (service_flag_value(service, "routes") != NULL) {
        print_routes();
        return 0;
    }
    if (start(gateway, &server, err) < 0)
        return -1;
    while (!service_wait(service, TICK_MS))
        server_tick(server);
    drain(gateway, server);
    return 0;
}

static const struct service_flag flags[] = {
    {.name = "export-keys",
     .argument = "DIR",
     .once = true,
     .help = "write the subkeys of the other services into DIR and end"},
    {.name = "routes", .once = true, .help = "print the route table as JSON and end"},
    {0},
};

const struct service_description gateway_description = {
    .name = "api-gateway",
    .purpose = "REST, WebSocket and SSE interface of the suite",
    .admin_key = "api_gateway",
    .flags = flags,
    .configure = configure,
    .run = run,
};
