/* The command line: one table of flags drives parsing, environment, defaults and help; one table of
 * commands says which flags each takes.
 *
 * A flag that the table knows but this version cannot honour ends with ERR_NOT_AVAILABLE (exit
 * 65), an unknown one with ERR_INVALID (exit 64) and the nearest name. Precedence: flag, then
 * environment, then default. */
#ifndef HYPEREXPORT_FLAGS_H
#define HYPEREXPORT_FLAGS_H

#include "common/strbuf.h"

#define FLAGS_WORDS_MAX      4    /* "jobs get ID" has three */
#define FLAGS_VALUE_MAX      4096 /* the longest is a path */
#define FLAGS_TABLE_MAX      256  /* rows of flags_table */
#define FLAGS_OWN_MAX        12   /* flags of one command beyond its groups: providers add */
#define FLAGS_HELP_BYTES_MAX ((size_t)(64 * KIB))

enum flag_id {
    FLAG_LATER, /* every flag of the reference that is not available yet */
    FLAG_VM,
    FLAG_VM_INFO,
    FLAG_QUIET,
    FLAG_OUTPUT,
    FLAG_FORMAT,
    FLAG_METHOD,
    FLAG_PROVIDER,
    FLAG_VERIFY,
    FLAG_VERIFY_ONLY,
    FLAG_ENCRYPT,
    FLAG_ENCRYPT_METHOD,
    FLAG_ENCRYPT_KEY,
    FLAG_PASSPHRASE,
    FLAG_PASSPHRASE_FILE,
    FLAG_DECRYPT,
    FLAG_KEYFILE,
    FLAG_CLEANUP,
    FLAG_CLEANUP_MAX_AGE,
    FLAG_CLEANUP_MAX_COUNT,
    FLAG_CLEANUP_MAX_SIZE,
    FLAG_CLEANUP_DRY_RUN,
    FLAG_CLEANUP_SCHEDULE,
    FLAG_CLEANUP_PRESERVE,
    FLAG_CLEANUP_DIR,
    FLAG_CLEANUP_PER_VM,
    FLAG_CLEANUP_MIN_FREE,
    FLAG_CONVERT,
    FLAG_LIBVIRT,
    FLAG_LIBVIRT_URI,
    FLAG_LIBVIRT_AUTOSTART,
    FLAG_LIBVIRT_BRIDGE,
    FLAG_LIBVIRT_POOL,
    FLAG_PARALLEL,
    FLAG_DEADLINE,
    FLAG_DEPENDS_ON,
    FLAG_TIME_WINDOWS,
    FLAG_ON_WINDOW_END,
    FLAG_POWER_OFF,
    FLAG_SHUTDOWN_TIMEOUT,
    FLAG_POWER_ON_AFTER,
    FLAG_REMOVE_CDROM,
    FLAG_INCREMENTAL,
    FLAG_FORCE_FULL,
    FLAG_ENABLE_CBT,
    FLAG_INCREMENTAL_MAX_AGE,
    FLAG_INCREMENTAL_INFO,
    FLAG_COMPRESS,
    FLAG_COMPRESSION,
    FLAG_COMPRESSION_LEVEL,
    FLAG_SNAPSHOT,
    FLAG_SNAPSHOT_NAME,
    FLAG_SNAPSHOT_MEMORY,
    FLAG_SNAPSHOT_QUIESCE,
    FLAG_SNAPSHOT_ON_ERROR,
    FLAG_DELETE_SNAPSHOT,
    FLAG_CONSOLIDATE_SNAPSHOTS,
    FLAG_UPLOAD,
    FLAG_KEEP_LOCAL,
    FLAG_STREAM_UPLOAD,
    FLAG_UPLOAD_ON_ERROR,
    FLAG_RESUME,
    FLAG_BANDWIDTH_LIMIT,
    FLAG_BANDWIDTH_BURST,
    FLAG_ADAPTIVE_BANDWIDTH,
    FLAG_BANDWIDTH_MIN,
    FLAG_BANDWIDTH_MAX,
    FLAG_DETACH,
    FLAG_USE_DAEMON,
    FLAG_WATCH,
    FLAG_DAEMON_URL,
    FLAG_DAEMON_TOKEN_FILE,
    FLAG_DAEMON_CA_FILE,
    FLAG_DAEMON_INSECURE,
    FLAG_DAEMON_WATCH,
    FLAG_DAEMON_LIST,
    FLAG_DAEMON_STATUS,
    FLAG_DAEMON_CANCEL,
    FLAG_DAEMON_SCHEDULE,
    FLAG_TIMEZONE,
    FLAG_TEMPLATE,
    FLAG_SET,
    FLAG_FOLLOW,
    FLAG_STATUS,
    FLAG_LIMIT,
    FLAG_NAME,
    FLAG_CLUSTER,
    FLAG_TAG,
    FLAG_KIND,
    FLAG_URL,
    FLAG_HOST,
    FLAG_USERNAME,
    FLAG_PASSWORD,
    FLAG_PASSWORD_FILE,
    FLAG_CA_FILE,
    FLAG_THUMBPRINT,
    FLAG_INSECURE,
    FLAG_JSON,
    FLAG_YES,
    FLAG_VERSION,
    FLAG_HELP,
    FLAG_COUNT
};

enum flag_type { FLAG_BOOL, FLAG_TEXT, FLAG_NUMBER, FLAG_CHOICE };

/* Flags that several commands take together. */
#define FLAGS_OF_EXPORT  1U
#define FLAGS_OF_CLEANUP 2U
#define FLAGS_OF_GATEWAY 4U /* how it is reached */
#define FLAGS_OF_OUTPUT  8U
#define FLAGS_OF_ALL     16U

/* Properties. */
#define FLAG_IS_SECRET       1U /* its value is overwritten in argv */
#define FLAG_IS_ALIAS        2U /* another spelling: help does not list it */
#define FLAG_LATER_IN_EXPORT 4U /* with exports: not available yet */
#define FLAG_IS_LIST         8U /* typed again: the values are joined by commas */

struct flag {
    const char *name;
    enum flag_id id;
    enum flag_type type;
    unsigned int groups; /* FLAGS_OF_; 0: only of commands that name it */
    unsigned int properties;
    const char *argument;     /* "NAME" in help; NULL for booleans */
    const char *env;          /* NULL: none */
    const char *default_text; /* NULL: none */
    const char *choices;      /* FLAG_CHOICE: "ovf,raw,!ova"; ! = not available yet */
    uint32_t min, max;        /* FLAG_NUMBER */
    const char *help;         /* NULL: not listed (FLAG_LATER) */
};

extern const struct flag flags_table[];
extern const size_t flags_table_count;

enum command_id {
    COMMAND_EXPORT, /* no sub-command */
    COMMAND_JOBS,
    COMMAND_WORKFLOW,
    COMMAND_EXPORTS,
    COMMAND_VERIFY,
    COMMAND_DECRYPT,
    COMMAND_SCHEDULE,
    COMMAND_POLICY,
    COMMAND_TEMPLATE,
    COMMAND_VMS,
    COMMAND_PROVIDERS,
    COMMAND_STATUS,
    COMMAND_QUEUE,
    COMMAND_WORKERS,
    COMMAND_LOGIN,
};

/* What one call does, and the flags that have an effect there: every other flag is refused. Of the
 * rows with the same word the first holds when no action is typed. */
struct command {
    enum command_id id;
    const char *word;      /* "jobs"; NULL: an export, or what a flag asks for in its place */
    const char *action;    /* "list"; NULL: the word alone */
    const char *arguments; /* "ID" in help; NULL: none */
    enum flag_id mode;     /* without word: the flag that asks for this; FLAG_LATER: none */
    unsigned int groups;   /* FLAGS_OF_ */
    enum flag_id flags[FLAGS_OWN_MAX]; /* and these, up to FLAG_LATER */
};

extern const struct command commands_table[];
extern const size_t commands_table_count;

struct flag_value {
    char *text; /* NULL: neither given nor default */
    bool given; /* typed or from the environment */
};

struct command_line {
    struct flag_value values[FLAG_COUNT];
    const char *words[FLAGS_WORDS_MAX]; /* sub-command and its arguments, borrowed from argv */
    size_t word_count;
    const struct command *command;
    bool typed[FLAGS_TABLE_MAX]; /* by row of flags_table */
    bool secret_on_argv;         /* a warning is due */
};

/* Parses argv; values of secrets are overwritten there. Release *out in any case.
 * ERR_INVALID: usage. ERR_NOT_AVAILABLE: a known flag that this version cannot honour. */
MUST_CHECK int flags_parse(int argc, char **argv, struct command_line *out, struct error *err);
void flags_release(struct command_line *line);

/* The row that the words and flags typed mean. ERR_INVALID: no such word, or no such action; then
 * line->command is the word's first row. */
MUST_CHECK int command_find(struct command_line *line, struct error *err);
bool command_takes(const struct command *command, const struct flag *flag);
char *command_name(const struct command *command); /* "jobs list", "--daemon-list"; caller frees */
bool cleanup_wanted(const struct command_line *line); /* once, or again and again */

bool flag_given(const struct command_line *line, enum flag_id id);
/* NULL when neither given nor default. */
const char *flag_text(const struct command_line *line, enum flag_id id);
bool flag_on(const struct command_line *line, enum flag_id id);
uint32_t flag_number(const struct command_line *line, enum flag_id id);

/* "ovf, raw": what can be chosen now. */
void flags_add_choices(struct strbuf *out, const char *choices);
/* Of the sub-command that was typed, or of exports. */
void flags_help(struct strbuf *out, const struct command_line *line);

#endif
