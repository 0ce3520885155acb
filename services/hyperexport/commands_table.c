/* What can be called, and with which flags; see flags.h. A flag stands here when the command's code
 * reads it. Order is the order of help. */
#include "flags.h"

#define GATEWAY FLAGS_OF_GATEWAY
#define TALKS   (FLAGS_OF_GATEWAY | FLAGS_OF_OUTPUT)

#define ROW(id, word, action, arguments, mode, groups, ...) \
    {                                                       \
        id, word, action, arguments, mode, groups,          \
        {                                                   \
            __VA_ARGS__                                     \
        }                                                   \
    }
/* Words with a gateway behind them; SHOW always prints JSON, --quiet would change nothing. */
#define CALL(id, word, action, arguments, ...) \
    ROW(id, word, action, arguments, FLAG_LATER, TALKS, __VA_ARGS__)
#define SHOW(id, word, action, arguments, ...) \
    ROW(id, word, action, arguments, FLAG_LATER, GATEWAY, __VA_ARGS__)
/* In place of an export; the flags that are typed decide. */
#define MODE(flag, groups, ...) ROW(COMMAND_EXPORT, NULL, NULL, NULL, flag, groups, __VA_ARGS__)

#define PASSPHRASE FLAG_PASSPHRASE, FLAG_PASSPHRASE_FILE

const struct command commands_table[] = {
    CALL(COMMAND_JOBS, "jobs", "list", NULL, FLAG_STATUS, FLAG_VM, FLAG_PROVIDER, FLAG_LIMIT),
    CALL(COMMAND_JOBS, "jobs", "get", "ID", FLAG_LATER),
    CALL(COMMAND_JOBS, "jobs", "cancel", "ID", FLAG_LATER),
    CALL(COMMAND_JOBS, "jobs", "retry", "ID", FLAG_LATER),
    CALL(COMMAND_JOBS, "jobs", "pause", "ID", FLAG_LATER),
    CALL(COMMAND_JOBS, "jobs", "resume", "ID", FLAG_LATER),
    CALL(COMMAND_JOBS, "jobs", "delete", "ID", FLAG_YES),
    CALL(COMMAND_JOBS, "jobs", "limit", "ID MB/S", FLAG_BANDWIDTH_BURST, FLAG_ADAPTIVE_BANDWIDTH,
         FLAG_BANDWIDTH_MIN, FLAG_BANDWIDTH_MAX),
    SHOW(COMMAND_JOBS, "jobs", "logs", "ID", FLAG_FOLLOW, FLAG_JSON),
    CALL(COMMAND_JOBS, "jobs", "watch", "ID", FLAG_LATER),
    CALL(COMMAND_WORKFLOW, "workflow", "list", NULL, FLAG_LATER),
    CALL(COMMAND_WORKFLOW, "workflow", "create", "FILE", FLAG_LATER),
    SHOW(COMMAND_WORKFLOW, "workflow", "show", "NAME", FLAG_JSON),
    CALL(COMMAND_WORKFLOW, "workflow", "delete", "NAME", FLAG_YES),
    CALL(COMMAND_WORKFLOW, "workflow", "run", "NAME", FLAG_WATCH),
    CALL(COMMAND_WORKFLOW, "workflow", "status", "RUN", FLAG_WATCH),
    CALL(COMMAND_WORKFLOW, "workflow", "cancel", "RUN", FLAG_LATER),
    CALL(COMMAND_WORKFLOW, "workflow", "pause", "RUN", FLAG_LATER),
    CALL(COMMAND_WORKFLOW, "workflow", "resume", "RUN", FLAG_LATER),
    CALL(COMMAND_WORKFLOW, "workflow", "retry", "RUN", FLAG_LATER),
    CALL(COMMAND_EXPORTS, "exports", "list", NULL, FLAG_VM, FLAG_PROVIDER, FLAG_LIMIT),
    CALL(COMMAND_EXPORTS, "exports", "show", "ID", FLAG_LATER),
    CALL(COMMAND_EXPORTS, "exports", "verify", "ID", PASSPHRASE, FLAG_DETACH),
    CALL(COMMAND_EXPORTS, "exports", "check", "ID", FLAG_DETACH),
    CALL(COMMAND_EXPORTS, "exports", "prune", "ID KEEP", FLAG_DETACH),
    CALL(COMMAND_EXPORTS, "exports", "flatten", "ID", FLAG_DETACH),
    CALL(COMMAND_VERIFY, "verify", NULL, "DIR", PASSPHRASE, FLAG_DETACH),
    ROW(COMMAND_DECRYPT, "decrypt", NULL, "FILE|DIR [TO]", FLAG_LATER, 0, PASSPHRASE, FLAG_KEYFILE,
        FLAG_QUIET),
    CALL(COMMAND_SCHEDULE, "schedule", "list", NULL, FLAG_LIMIT),
    SHOW(COMMAND_SCHEDULE, "schedule", "show", "NAME", FLAG_JSON),
    CALL(COMMAND_SCHEDULE, "schedule", "runs", "NAME", FLAG_LIMIT),
    CALL(COMMAND_SCHEDULE, "schedule", "trigger", "NAME", FLAG_LATER),
    CALL(COMMAND_SCHEDULE, "schedule", "enable", "NAME", FLAG_LATER),
    CALL(COMMAND_SCHEDULE, "schedule", "disable", "NAME", FLAG_LATER),
    CALL(COMMAND_SCHEDULE, "schedule", "delete", "NAME", FLAG_YES),
    CALL(COMMAND_POLICY, "policy", "list", NULL, FLAG_LATER),
    SHOW(COMMAND_POLICY, "policy", "show", "NAME", FLAG_JSON),
    CALL(COMMAND_POLICY, "policy", "create", "FILE", FLAG_DEPENDS_ON),
    CALL(COMMAND_POLICY, "policy", "update", "NAME FILE", FLAG_DEPENDS_ON),
    CALL(COMMAND_POLICY, "policy", "delete", "NAME", FLAG_YES),
    CALL(COMMAND_POLICY, "policy", "preview", "NAME", FLAG_LATER),
    CALL(COMMAND_POLICY, "policy", "run", "NAME", FLAG_WATCH),
    CALL(COMMAND_POLICY, "policy", "runs", "NAME", FLAG_LATER),
    CALL(COMMAND_POLICY, "policy", "results", "NAME", FLAG_LATER),
    CALL(COMMAND_TEMPLATE, "template", "list", NULL, FLAG_LATER),
    SHOW(COMMAND_TEMPLATE, "template", "show", "NAME", FLAG_JSON),
    CALL(COMMAND_TEMPLATE, "template", "create", "NAME FILE", FLAG_LATER),
    CALL(COMMAND_TEMPLATE, "template", "update", "NAME FILE", FLAG_LATER),
    CALL(COMMAND_TEMPLATE, "template", "delete", "NAME", FLAG_YES),
    SHOW(COMMAND_TEMPLATE, "template", "render", "NAME", FLAG_VM, FLAG_PROVIDER, FLAG_SET,
         FLAG_JSON),
    CALL(COMMAND_VMS, "vms", "list", NULL, FLAG_PROVIDER, FLAG_NAME, FLAG_CLUSTER, FLAG_TAG,
         FLAG_LIMIT),
    CALL(COMMAND_VMS, "vms", "info", NULL, FLAG_VM, FLAG_PROVIDER),
    CALL(COMMAND_PROVIDERS, "providers", "list", NULL, FLAG_LATER),
    CALL(COMMAND_PROVIDERS, "providers", "add", NULL, FLAG_NAME, FLAG_KIND, FLAG_URL, FLAG_HOST,
         FLAG_USERNAME, FLAG_PASSWORD, FLAG_PASSWORD_FILE, FLAG_CA_FILE, FLAG_THUMBPRINT),
    CALL(COMMAND_PROVIDERS, "providers", "validate", "NAME", FLAG_LATER),
    CALL(COMMAND_PROVIDERS, "providers", "remove", "NAME", FLAG_YES),
    CALL(COMMAND_PROVIDERS, "providers", "limit", "KIND [MB/S|config]", FLAG_BANDWIDTH_BURST),
    CALL(COMMAND_STATUS, "status", NULL, NULL, FLAG_LATER),
    CALL(COMMAND_QUEUE, "queue", "show", NULL, FLAG_LATER),
    CALL(COMMAND_QUEUE, "queue", "pause", "[REASON]", FLAG_LATER),
    CALL(COMMAND_QUEUE, "queue", "resume", NULL, FLAG_LATER),
    CALL(COMMAND_WORKERS, "workers", "list", NULL, FLAG_LATER),
    CALL(COMMAND_WORKERS, "workers", "drain", "NAME", FLAG_LATER),
    CALL(COMMAND_WORKERS, "workers", "resume", "NAME", FLAG_LATER),
    /* no token is sent: it is what comes of it */
    ROW(COMMAND_LOGIN, "login", NULL, NULL, FLAG_LATER, 0, FLAG_USERNAME, FLAG_PASSWORD,
        FLAG_PASSWORD_FILE, FLAG_DAEMON_URL, FLAG_DAEMON_CA_FILE, FLAG_DAEMON_INSECURE,
        FLAG_INSECURE, FLAG_QUIET),
    MODE(FLAG_DECRYPT, 0, FLAG_DECRYPT, PASSPHRASE, FLAG_KEYFILE, FLAG_QUIET),
    MODE(FLAG_DAEMON_WATCH, TALKS, FLAG_DAEMON_WATCH),
    MODE(FLAG_DAEMON_LIST, TALKS, FLAG_DAEMON_LIST),
    MODE(FLAG_DAEMON_CANCEL, TALKS, FLAG_DAEMON_CANCEL),
    MODE(FLAG_DAEMON_STATUS, TALKS, FLAG_DAEMON_STATUS),
    MODE(FLAG_VERIFY_ONLY, TALKS, FLAG_VERIFY_ONLY, PASSPHRASE, FLAG_DETACH),
    MODE(FLAG_CLEANUP, TALKS | FLAGS_OF_CLEANUP, FLAG_DETACH),
    /* --vm-info and --incremental-info look at what the other flags would export */
    MODE(FLAG_LATER, TALKS | FLAGS_OF_EXPORT | FLAGS_OF_CLEANUP, FLAG_LATER),
};
const size_t commands_table_count = ARRAY_LEN(commands_table);
