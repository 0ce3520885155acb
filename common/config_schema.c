/* The key tables of the configuration file: parser, defaults, ranges and help in one place. */
#include "common/config_schema.h"

#include "common/config_tables.h"

#define KEY(section, member) offsetof(struct section##_config, member)
#define HOUR_MS              UINT64_C(3600000)

static const struct config_key daemon_keys[] = {
    {"address", CONFIG_STRING, KEY(daemon, address), "127.0.0.1:8080", 1, 255, 0,
     "host:port of the REST API"},
    {"workers", CONFIG_U32, KEY(daemon, workers), "4", 1, 64, 0,
     "control tasks at a time per worker process (listings, checks)"},
    {"dev_mode", CONFIG_BOOL, KEY(daemon, dev_mode), "false", 0, 0, 0,
     "no login; only with a loopback address"},
    {"tls_cert_file", CONFIG_STRING, KEY(daemon, tls_cert_file), "", 0, 4095, 0,
     "PEM certificate chain; with tls_key_file the API speaks HTTPS"},
    {"tls_key_file", CONFIG_STRING, KEY(daemon, tls_key_file), "", 0, 4095, 0, "PEM key"},
    {"log_level", CONFIG_STRING, KEY(daemon, log_level), "info", 1, 8, 0,
     "debug, info, warn or error, for every service"},
    {"drain_ms", CONFIG_DURATION_MS, KEY(daemon, drain_ms), "20s", 0, 600000, 0,
     "after SIGTERM work is finished or handed back within this time"},
    {0},
};

static const struct config_key database_keys[] = {
    {"url", CONFIG_STRING, KEY(database, url), NULL, 1, 2047, CONFIG_REQUIRED,
     "PostgreSQL URI or conninfo"},
    {"owner_url", CONFIG_STRING, KEY(database, owner_url), "", 0, 2047, 0,
     "scheduler: connection that applies migrations; default url"},
    {"password", CONFIG_STRING, KEY(database, password), "", 0, 1023, CONFIG_SECRET,
     "better than a password in url"},
    {"password_file", CONFIG_FILE, KEY(database, password), NULL, 0, 4095, CONFIG_SECRET,
     "file holding the password"},
    {"pool_size", CONFIG_U32, KEY(database, pool_size), "4", 1, 64, 0, "connections per process"},
    {0},
};

static const struct config_key redis_keys[] = {
    {"address", CONFIG_STRING, KEY(redis, address), "127.0.0.1:6379", 1, 255, 0,
     "host:port or unix:/path"},
    {"password", CONFIG_STRING, KEY(redis, password), "", 0, 1023, CONFIG_SECRET, "AUTH password"},
    {"password_file", CONFIG_FILE, KEY(redis, password), NULL, 0, 4095, CONFIG_SECRET,
     "file holding the password"},
    {0},
};

static const struct config_key bus_keys[] = {
    {"lease", CONFIG_STRING_LIST, KEY(bus, lease), "tcp://127.0.0.1:7100", 0, 0, 0,
     "addresses of the schedulers' lease sockets (tcp://, ipc://, tls+tcp://)"},
    {"events", CONFIG_STRING_LIST, KEY(bus, events), "tcp://127.0.0.1:7101", 0, 0, 0,
     "addresses of the schedulers' event sockets"},
    {"announce", CONFIG_STRING_LIST, KEY(bus, announce), "tcp://127.0.0.1:7102", 0, 0, 0,
     "addresses of the schedulers' announcement sockets"},
    {"listen_lease", CONFIG_STRING, KEY(bus, listen_lease), "", 0, 255, 0,
     "scheduler: where to listen; default the first of lease"},
    {"listen_events", CONFIG_STRING, KEY(bus, listen_events), "", 0, 255, 0,
     "scheduler: default the first of events"},
    {"listen_announce", CONFIG_STRING, KEY(bus, listen_announce), "", 0, 255, 0,
     "scheduler: default the first of announce"},
    {"tls_ca_file", CONFIG_STRING, KEY(bus, tls_ca_file), "", 0, 4095, 0,
     "CA of the suite's certificates (tls+tcp)"},
    {"tls_cert_key_file", CONFIG_STRING, KEY(bus, tls_cert_key_file), "", 0, 4095, 0,
     "own certificate and key in one PEM (tls+tcp)"},
    {"tls_server_name", CONFIG_STRING, KEY(bus, tls_server_name), "scheduler", 1, 255, 0,
     "DNS name in the scheduler's certificate"},
    {0},
};

#define ADMIN_KEY(name)                                                     \
    {                                                                       \
#name, CONFIG_STRING, KEY(admin, name), "127.0.0.1:0", 1, 255, 0,   \
            "host:port of /healthz /readyz /metrics; port 0 = any free one" \
    }
static const struct config_key admin_keys[] = {
    ADMIN_KEY(api_gateway),
    ADMIN_KEY(scheduler),
    ADMIN_KEY(exporter),
    ADMIN_KEY(notifier),
    ADMIN_KEY(metrics_exporter),
    ADMIN_KEY(hyper2kvm_bridge),
    {0},
};

static const struct config_key secrets_keys[] = {
    {"master_key", CONFIG_STRING, KEY(secrets, master_key), "", 0, 64, CONFIG_SECRET,
     "gateway: 64 hex digits that seal all secrets"},
    {"master_key_file", CONFIG_FILE, KEY(secrets, master_key), NULL, 0, 4095, CONFIG_SECRET,
     "gateway: file holding the master key"},
    {"key_dir", CONFIG_STRING, KEY(secrets, key_dir), "/etc/hypersdk/keys", 1, 4095, 0,
     "other services: directory with the subkeys written by api-gateway --export-keys"},
    {0},
};

static const struct config_key export_keys[] = {
    {"base_path", CONFIG_STRING, KEY(export, base_path), "/exports", 1, 4095, 0,
     "where exports go; relative output paths are below it"},
    {"allowed_paths", CONFIG_STRING_LIST, KEY(export, allowed_paths), "", 0, 0, 0,
     "further base directories that users may name"},
    {"concurrent_exports", CONFIG_U32, KEY(export, concurrent_exports), "2", 1, 64, 0,
     "exports at a time per worker process"},
    {"chunk_size", CONFIG_SIZE, KEY(export, chunk_size), "10485760", MIB, 64 * MIB, 0,
     "bytes per range request; unit of the journal"},
    {"max_retries", CONFIG_U32, KEY(export, max_retries), "3", 0, 20, 0,
     "how often one failed read is repeated before the task fails"},
    {"bandwidth_limit_mbps", CONFIG_U32, KEY(export, bandwidth_limit_mbps), "0", 0, 1000000, 0,
     "MB/s (1048576 B) of all transfers of a worker process together; 0 = no limit"},
    {"bandwidth_burst_mb", CONFIG_U32, KEY(export, bandwidth_burst_mb), "0", 0, 1000000, 0,
     "what may pass at once after a pause; 0 = 2 x the limit"},
    {"bandwidth_profiles", CONFIG_STRING_LIST, KEY(export, bandwidth_profiles), "", 0, 0, 0,
     "other limits by time of day: 'mon-fri 08:00-18:00 20'"},
    {"encryption_key_dir", CONFIG_STRING, KEY(export, encryption_key_dir), "", 0, 4095, 0,
     "exporters: directory with <name>.key files (mode 0600) that exports may be encrypted with"},
    {"provider_limit", CONFIG_U32, KEY(export, provider_limit), "8", 1, 1000, 0,
     "exports at a time per provider, over all workers; a provider's export_limit wins"},
    {"host_limit", CONFIG_U32, KEY(export, host_limit), "0", 0, 1000, 0,
     "exports at a time from one host of a provider, where the inventory tells it; 0 = no limit"},
    {0},
};

static const struct config_key hyper2kvm_keys[] = {
    {"daemon_enabled", CONFIG_BOOL, KEY(hyper2kvm, daemon_enabled), "false", 0, 0, 0,
     "a hyper2kvm daemon watches watch_dir"},
    {"watch_dir", CONFIG_STRING, KEY(hyper2kvm, watch_dir), "/var/lib/hyper2kvm/watch", 1, 4095, 0,
     "queue directory of the daemon"},
    {"output_dir", CONFIG_STRING, KEY(hyper2kvm, output_dir), "/var/lib/kvm/images", 1, 4095, 0,
     "where converted images go"},
    {"default_format", CONFIG_STRING, KEY(hyper2kvm, default_format), "qcow2", 1, 16, 0,
     "format of converted images"},
    {"path", CONFIG_STRING, KEY(hyper2kvm, path), "", 0, 4095, 0,
     "program of direct calls; empty: hyper2kvm on PATH"},
    {"fallback", CONFIG_STRING, KEY(hyper2kvm, fallback), "builtin", 1, 16, 0,
     "without hyper2kvm: builtin (qcow2 and domain XML by ourselves) or fail"},
    {"virt_v2v", CONFIG_STRING, KEY(hyper2kvm, virt_v2v), "auto", 1, 4095, 0,
     "virt-v2v-in-place of the built-in path: auto (on PATH), never, or its path"},
    {"restart_command", CONFIG_STRING_LIST, KEY(hyper2kvm, restart_command), "", 0, 0, 0,
     "program and arguments that restart a daemon without a sign of life"},
    {"poll_interval", CONFIG_DURATION_MS, KEY(hyper2kvm, poll_interval_ms), "5s", 100, 600000, 0,
     "how often queue directories are looked at"},
    {"job_timeout", CONFIG_DURATION_MS, KEY(hyper2kvm, job_timeout_ms), "60m", 1000, 48 * HOUR_MS,
     0, "a conversion that takes longer has failed"},
    {"stuck_after", CONFIG_DURATION_MS, KEY(hyper2kvm, stuck_after_ms), "10m", 1000, 48 * HOUR_MS,
     0, "hyper2kvm that shows no sign of life for so long is given up"},
    {0},
};

static const struct config_key libvirt_keys[] = {
    {"uri", CONFIG_STRING, KEY(libvirt, uri), "qemu:///system", 1, 1023, 0,
     "libvirt that imports and calls go to"},
    {"allowed_uris", CONFIG_STRING_LIST, KEY(libvirt, allowed_uris), "", 0, 0, 0,
     "further URIs that jobs and calls may name"},
    {"pool", CONFIG_STRING, KEY(libvirt, pool), "", 0, 255, 0,
     "storage pool that images are copied into; empty: they are used where they are"},
    {"network", CONFIG_STRING, KEY(libvirt, network), "default", 1, 255, 0,
     "libvirt network of NICs whose network is not mapped; user: QEMU's own NAT"},
    {"networks", CONFIG_STRING_LIST, KEY(libvirt, networks), "", 0, 0, 0,
     "source networks: '<name>=network:<name>', '<name>=bridge:<name>', '<name>=user'"},
    {"domain_type", CONFIG_STRING, KEY(libvirt, domain_type), "auto", 1, 8, 0,
     "kvm, qemu (emulated), auto: kvm where the host has it"},
    {"timeout", CONFIG_DURATION_MS, KEY(libvirt, timeout_ms), "30s", 1000, 600000, 0,
     "libvirt that does not answer for so long is given up, the task tried again later"},
    {0},
};

static const struct config_key webhooks_keys[] = {
    {"enabled", CONFIG_BOOL, KEY(webhooks, enabled), "true", 0, 0, 0, "send webhooks"},
    {"allow_private", CONFIG_BOOL, KEY(webhooks, allow_private), "false", 0, 0, 0,
     "targets may have loopback or private addresses"},
    {0},
};

static const struct config_key templates_keys[] = {
    {"dir", CONFIG_STRING, KEY(templates, dir), "", 0, 4095, 0,
     "directory with <name>.yaml files that are templates of jobs"},
    {"env", CONFIG_STRING_LIST, KEY(templates, env), "", 0, 0, 0,
     "environment variables of the service that placeholders may name"},
    {0},
};

static const struct config_key hooks_keys[] = {
    {"scripts_dir", CONFIG_STRING, KEY(hooks, scripts_dir), "", 0, 4095, 0,
     "the directory that scripts of hooks and workflows must be in; empty: none are run"},
    {"timeout", CONFIG_DURATION_MS, KEY(hooks, timeout_ms), "10m", 1000, 24 * HOUR_MS, 0,
     "a script that takes longer, and does not ask for more, is ended"},
    {"memory_max", CONFIG_SIZE, KEY(hooks, memory_max), "1073741824", 16 * MIB, 1024 * GIB, 0,
     "address space of each process of a script"},
    {"files_max", CONFIG_U32, KEY(hooks, files_max), "256", 16, 65536, 0,
     "open files of each process of a script"},
    {0},
};

static const struct config_key security_keys[] = {
    {"max_request_size_mb", CONFIG_U32, KEY(security, max_request_size_mb), "10", 1, 64, 0,
     "largest request body"},
    {"rate_limit_per_min", CONFIG_U32, KEY(security, rate_limit_per_min), "6000", 0, 1000000, 0,
     "requests per client address; 0 = no limit"},
    {"login_attempts_per_min", CONFIG_U32, KEY(security, login_attempts_per_min), "10", 1, 1000, 0,
     "per user and address"},
    {"session_ttl", CONFIG_DURATION_MS, KEY(security, session_ttl_ms), "24h", 60000, 720 * HOUR_MS,
     0, "life of a login"},
    {"header_timeout", CONFIG_DURATION_MS, KEY(security, header_timeout_ms), "30s", 500, 600000, 0,
     "header and body of one request must have arrived"},
    {"connections_max", CONFIG_U32, KEY(security, connections_max), "2048", 16, 60000, 0,
     "open connections"},
    {"connections_per_ip_max", CONFIG_U32, KEY(security, connections_per_ip_max), "256", 0, 60000,
     0, "0 = no limit (behind a proxy)"},
    {"allowed_origins", CONFIG_STRING_LIST, KEY(security, allowed_origins), "", 0, 0, 0,
     "further origins that browsers may connect from"},
    {0},
};

static const struct config_key metrics_keys[] = {
    {"address", CONFIG_STRING, KEY(metrics, address), "127.0.0.1:9464", 1, 255, 0,
     "host:port of the metrics-exporter"},
    {0},
};

static const struct config_key retry_keys[] = {
    {"max_attempts", CONFIG_U32, KEY(retry, max_attempts), "3", 1, 100, 0,
     "tries of a job after errors that may pass"},
    {"initial_delay", CONFIG_DURATION_MS, KEY(retry, initial_delay_ms), "60s", 100, 24 * HOUR_MS, 0,
     "wait before the second try; doubles, with jitter"},
    {"max_delay", CONFIG_DURATION_MS, KEY(retry, max_delay_ms), "30m", 100, 24 * HOUR_MS, 0,
     "longest wait"},
    {0},
};

static const struct config_key scheduler_keys[] = {
    {"lease", CONFIG_DURATION_MS, KEY(scheduler, lease_ms), "30s", 7000, 3600000, 0,
     "a worker that is silent this long has lost its task"},
    {"poll_interval", CONFIG_DURATION_MS, KEY(scheduler, poll_interval_ms), "1500ms", 100, 60000, 0,
     "how often lost messages are healed"},
    {"losses_max", CONFIG_U32, KEY(scheduler, losses_max), "5", 1, 100, 0,
     "lost leases without progress before a task fails"},
    {"priority_aging", CONFIG_DURATION_MS, KEY(scheduler, priority_aging_ms), "1m", 0, 86400000, 0,
     "so long a wait counts as much as one point of priority; 0 = priority alone"},
    {"maintenance_windows", CONFIG_STRING_LIST, KEY(scheduler, maintenance_windows), "", 0, 0, 0,
     "windows that jobs name in time_windows: 'nightly mon-fri 22:00-06:00 Europe/Berlin'"},
    {0},
};

static const struct config_key cleanup_keys[] = {
    {"schedule", CONFIG_DURATION_MS, KEY(cleanup, schedule_ms), "0", 0, 8760 * HOUR_MS, 0,
     "exports are cleaned up at this interval; 0: only when asked for"},
    {"max_age", CONFIG_DURATION_MS, KEY(cleanup, max_age_ms), "0", 0, 87600 * HOUR_MS, 0,
     "older exports go; 0: no limit, and 720h when there is no other limit"},
    {"max_count", CONFIG_U32, KEY(cleanup, max_count), "0", 0, 1000000, 0,
     "so many of the newest stay; 0: no limit"},
    {"per_vm", CONFIG_BOOL, KEY(cleanup, per_vm), "true", 0, 0, 0,
     "max_count counts per VM, else all together"},
    {"max_size", CONFIG_SIZE, KEY(cleanup, max_size), "0", 0, INT64_MAX, 0,
     "the oldest go until all take at most this; 0: no limit"},
    {"min_free", CONFIG_SIZE, KEY(cleanup, min_free), "0", 0, INT64_MAX, 0,
     "with this much free nothing goes, else the oldest until it is; 0: no limit"},
    {"preserve", CONFIG_STRING_LIST, KEY(cleanup, preserve), "", 0, 0, 0,
     "globs on path, directory name, VM name or export id that never go"},
    {0},
};

static const struct config_key history_keys[] = {
    {"archive_after", CONFIG_DURATION_MS, KEY(history, archive_after_ms), "365d", 0,
     87600 * HOUR_MS, 0, "jobs go into the archive so long after their end; 0: never"},
    {"delete_after", CONFIG_DURATION_MS, KEY(history, delete_after_ms), "0", 0, 876000 * HOUR_MS, 0,
     "jobs of the archive go for good so long after their end; 0: never"},
    {0},
};

const struct config_table config_tables[] = {
    {"daemon", daemon_keys, sizeof(struct daemon_config), NULL},
    {"database", database_keys, sizeof(struct database_config), NULL},
    {"redis", redis_keys, sizeof(struct redis_config), NULL},
    {"bus", bus_keys, sizeof(struct bus_config), NULL},
    {"admin", admin_keys, sizeof(struct admin_config), NULL},
    {"secrets", secrets_keys, sizeof(struct secrets_config), NULL},
    {"export", export_keys, sizeof(struct export_config), NULL},
    {"hyper2kvm", hyper2kvm_keys, sizeof(struct hyper2kvm_config), NULL},
    {"libvirt", libvirt_keys, sizeof(struct libvirt_config), NULL},
    {"webhooks", webhooks_keys, sizeof(struct webhooks_config), "endpoints"},
    {"templates", templates_keys, sizeof(struct templates_config), NULL},
    {"hooks", hooks_keys, sizeof(struct hooks_config), NULL},
    {"security", security_keys, sizeof(struct security_config), NULL},
    {"metrics", metrics_keys, sizeof(struct metrics_config), NULL},
    {"retry", retry_keys, sizeof(struct retry_config), NULL},
    {"scheduler", scheduler_keys, sizeof(struct scheduler_config), NULL},
    {"cleanup", cleanup_keys, sizeof(struct cleanup_config), NULL},
    {"history", history_keys, sizeof(struct history_config), NULL},
};
const size_t config_tables_count = ARRAY_LEN(config_tables);

/* One line per setting that any provider kind knows; the kind itself checks which are its own. */
const char *const config_provider_keys[] = {
    "kind",          "enabled",      "host",    "username",   "password",
    "password_file", "insecure",     "ca_file", "thumbprint", "timeout",
    "datacenter",    "export_limit", NULL,
};
const char *const config_endpoint_keys[] = {
    "url", "events", "headers", "retry", "timeout", "secret", "secret_file", NULL,
};
/* One entry of "uploads"; services/exporter/targets checks which belong together. */
const char *const config_upload_keys[] = {
    "url",
    "parallel",
    "stale_after",
    "endpoint",
    "region",
    "path_style",
    "access_key_id",
    "secret_access_key",
    "secret_access_key_file",
    "session_token",
    "checksum",
    "ca_file",
    "username",
    "password",
    "password_file",
    "key_file",
    "known_hosts",
    NULL,
};

struct config_list export_bases(const struct export_config *config)
{
    const struct config_list *more = &config->allowed_paths;
    struct config_list bases = {.items = xcalloc(more->count + 1, sizeof *bases.items)};

    bases.items[bases.count++] = xstrdup(config->base_path);
    for (size_t i = 0; i < more->count; i++)
        bases.items[bases.count++] = xstrdup(more->items[i]);
    return bases;
}
