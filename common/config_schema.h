/* The sections of the configuration file as structs. Strings are never NULL. */
#ifndef COMMON_CONFIG_SCHEMA_H
#define COMMON_CONFIG_SCHEMA_H

#include "common/config.h"

struct daemon_config {   /* section "daemon": the gateway, and limits that users know */
    char *address;       /* host:port, default 127.0.0.1:8080 */
    uint32_t workers;    /* control tasks at a time per worker process, 1-64, default 4 */
    bool dev_mode;       /* no login; loopback only */
    char *tls_cert_file; /* PEM path; both or none */
    char *tls_key_file;
    char *log_level;  /* for every service */
    int64_t drain_ms; /* SIGTERM: finish or hand back within, default 20s */
};

struct database_config { /* section "database" */
    char *url;           /* libpq conninfo or URI, required by those who use it */
    char *owner_url;     /* scheduler only: applies migrations; default url */
    char *password;      /* secret; also password_file */
    uint32_t pool_size;  /* connections per process, 1-64, default 4 */
};

struct redis_config { /* section "redis" */
    char *address;    /* host:port or unix:/path */
    char *password;   /* secret; also password_file */
};

struct bus_config {           /* section "bus" */
    struct config_list lease; /* what workers and gateways dial; several = leader and standby */
    struct config_list events;
    struct config_list announce;
    char *listen_lease; /* what this scheduler listens on; default: first of each list */
    char *listen_events;
    char *listen_announce;
    char *tls_ca_file;       /* with tls+tcp addresses: all three required */
    char *tls_cert_key_file; /* certificate and key in one PEM */
    char *tls_server_name;   /* default "scheduler" */
};

struct admin_config { /* section "admin": host:port of each process; port 0 = any free one */
    char *api_gateway;
    char *scheduler;
    char *exporter;
    char *notifier;
    char *metrics_exporter;
    char *hyper2kvm_bridge;
};

struct secrets_config { /* section "secrets" */
    char *master_key;   /* gateway only: 64 hex digits; also master_key_file */
    char *key_dir;      /* subkey files "<audience>.key" (audience with ':' as '-') of the
                           other services */
};

struct export_config {                     /* section "export" */
    char *base_path;                       /* default /exports */
    struct config_list allowed_paths;      /* further base directories */
    uint32_t concurrent_exports;           /* transfer slots per worker process, 1-64, default 2 */
    uint64_t chunk_size;                   /* range request and journal unit, 1M-64M, default 10M */
    uint32_t max_retries;                  /* repeats of one failed read, 0-20, default 3 */
    uint32_t bandwidth_limit_mbps;         /* of a worker process, MB/s, 0 = no limit */
    uint32_t bandwidth_burst_mb;           /* 0 = 2 x the limit */
    char *encryption_key_dir;              /* <name>.key: keys of encrypted exports; "": none */
    struct config_list bandwidth_profiles; /* "mon-fri 08:00-18:00 20": engine/rate_profile.h */
    uint32_t host_limit;     /* the same per host of a provider, where known; 0 = none */
    uint32_t provider_limit; /* exports at a time per provider instance, all workers; default 8 */
};
/* Where exports may lie: base_path first, then allowed_paths. Owned by the caller; lives as long as
 * the process. */
struct config_list export_bases(const struct export_config *config);

#define HYPER2KVM_RESTART_WORDS_MAX 16
struct hyper2kvm_config { /* section "hyper2kvm" */
    bool daemon_enabled;
    char *watch_dir;
    char *output_dir;
    char *default_format;
    char *path;                         /* program of direct calls; empty: PATH */
    char *fallback;                     /* builtin | fail */
    char *virt_v2v;                     /* auto | never | path of virt-v2v-in-place */
    struct config_list restart_command; /* argv; empty: nobody may restart the daemon */
    int64_t poll_interval_ms;
    int64_t job_timeout_ms;
    int64_t stuck_after_ms; /* no output, no growing file for so long: hyper2kvm hangs */
};

struct libvirt_config {              /* section "libvirt" */
    char *uri;                       /* where domains are defined */
    struct config_list allowed_uris; /* others that jobs may name: a URI can start programs */
    char *pool;                      /* images are copied into it; "": used where they are */
    char *network;                   /* libvirt network of what networks does not map; "user" */
    struct config_list networks;     /* "<source network>=bridge:<name>" ... */
    char *domain_type;               /* auto | kvm | qemu */
    int64_t timeout_ms;              /* a libvirtd that is silent for so long is given up */
};

struct webhooks_config { /* section "webhooks"; endpoints[] is read as JSON */
    bool enabled;
    bool allow_private; /* loopback and private targets, e.g. for tests */
};

struct templates_config {   /* section "templates" */
    char *dir;              /* <name>.yaml files; "": none */
    struct config_list env; /* variables that placeholders may name */
};

struct hooks_config {    /* section "hooks" */
    char *scripts_dir;   /* the only place that scripts may be in; "": none are run */
    int64_t timeout_ms;  /* of a script that does not say its own */
    uint64_t memory_max; /* address space of each of its processes */
    uint32_t files_max;  /* open files of each */
};

struct security_config {                /* section "security" */
    uint32_t max_request_size_mb;       /* default 10 */
    uint32_t rate_limit_per_min;        /* per client address, 0 = off */
    uint32_t login_attempts_per_min;    /* per user and address, default 10 */
    int64_t session_ttl_ms;             /* default 24h */
    int64_t header_timeout_ms;          /* header and body of one request, default 30s */
    uint32_t connections_max;           /* default 2048 */
    uint32_t connections_per_ip_max;    /* default 256, 0 = off */
    struct config_list allowed_origins; /* WebSocket and CORS */
};

struct metrics_config { /* section "metrics" */
    char *address;      /* default 127.0.0.1:9464 */
};

struct retry_config {         /* section "retry": defaults of a job's retry object */
    uint32_t max_attempts;    /* default 3 */
    int64_t initial_delay_ms; /* default 60s */
    int64_t max_delay_ms;     /* default 30m */
};

struct cleanup_config {  /* section "cleanup": what the scheduler repeats; 0: no such limit */
    int64_t schedule_ms; /* 0: never */
    int64_t max_age_ms;
    uint32_t max_count;
    bool per_vm;
    uint64_t max_size;
    uint64_t min_free;
    struct config_list preserve;
};

struct history_config {       /* section "history": of jobs; 0: never */
    int64_t archive_after_ms; /* after their end */
    int64_t delete_after_ms;  /* out of the archive, after their end */
};

struct scheduler_config {     /* section "scheduler" */
    int64_t lease_ms;         /* default 30s; worker's write deadline is lease - 5 s */
    int64_t poll_interval_ms; /* reaper and queue poll, default 1500ms */
    int64_t
        priority_aging_ms; /* a wait that counts as one point of priority, default 1m; 0: none */
    uint32_t losses_max;   /* leases lost without progress before the task fails, default 5 */
    struct config_list maintenance_windows; /* "NAME DAYS TIMES [ZONE]": common/time_window.h */
};

#endif
