/* The shared skeleton of every process: arguments, configuration, logging, signals, admin port,
 * draining. main.c is:
 *
 *   int main(int argc, char **argv) { return service_main(argc, argv, &description); }
 *
 * Order: parse arguments -> load configuration (all problems at once, exit 64) -> --check-config
 * ends here with "configuration ok" -> log_init -> admin port -> run(). run() owns the main thread;
 * it returns when service_stopping() turns true and its work is handed back. A second SIGTERM exits
 * at once, and so does the end of drain_ms and SERVICE_DRAIN_GRACE_MS. The process ends by _exit,
 * nng sockets are never closed.
 *
 * SIGTERM, SIGINT and SIGHUP are blocked in all threads (one waits for them) and SIGPIPE is
 * ignored: who spawns a child resets both (posix_spawnattr_setsigmask, _setsigdefault). */
#ifndef COMMON_SERVICE_H
#define COMMON_SERVICE_H

#include "common/config.h"
#include "common/config_schema.h"

#define HYPERSDK_VERSION       "1.0.0"
#define SERVICE_DRAIN_GRACE_MS 5000 /* after drain_ms: for run() to notice that time is up */
#define SERVICE_CONDITIONS_MAX 16

struct service; /* the running process */

struct service_flag {     /* an extra command line flag */
    const char *name;     /* "export-keys" */
    const char *argument; /* "DIR" or NULL for a boolean */
    const char *help;
    bool once; /* run() does this and ends: no admin port, so that it works beside a running
                  process of the same configuration */
};

struct service_description {
    const char *name;                 /* "api-gateway": logs, metrics, `services` table */
    const char *purpose;              /* one line for --help */
    const char *admin_key;            /* member of admin_config: "api_gateway" */
    const struct service_flag *flags; /* ends with {0}; may be NULL */
    /* Reads and checks the service's own sections; problems to *problems. Run once, at start and by
     * --check-config; may keep results in static storage. A service that reloads (see
     * service_reload_requested) loads the file again by itself, because its threads still read
     * the old values. May be NULL. */
    int (*configure)(const struct config_file *file, struct strbuf *problems, struct error *err);
    /* -1: the process logs err and exits with error_exit_status. */
    int (*run)(struct service *service, struct error *err);
};

int service_main(int argc, char **argv, const struct service_description *description);

const char *service_name(const struct service *service);
/* "<name>-<host>-<pid>-<4 hex>": unique per process start. */
const char *service_instance(const struct service *service);
/* Value of an extra flag; "" for a given boolean; NULL when not given. */
const char *service_flag_value(const struct service *service, const char *name);
/* The path given with --config (NULL: default), for reloads. */
const char *service_config_path(const struct service *service);
/* SIGTERM or SIGINT arrived. */
bool service_stopping(const struct service *service);
/* SIGHUP arrived since the last call. */
bool service_reload_requested(struct service *service);
/* Waits up to ms, returns early (true) when stopping. */
bool service_wait(const struct service *service, int64_t ms);
/* Readiness is the AND of named conditions, and false until the first one is set and when stopping:
 * set each by name (a literal); reason (copied) is shown by /readyz when false. Thread-safe;
 * changes are logged. */
void service_set_ready(struct service *service, const char *condition, bool ready,
                       const char *reason);
int64_t service_drain_ms(const struct service *service);

#endif
