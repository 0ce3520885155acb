/* The commands of hyperexport, one file each. A command returns an exit status (api.h), or -1 with
 * err set: main prints it and exits with exit_status_of(err). One thread. */
#ifndef HYPEREXPORT_COMMAND_H
#define HYPEREXPORT_COMMAND_H

#include <stdio.h>

#include "api.h"
#include "text.h"

struct program {
    const struct command_line *line;
    struct api *api;
    struct text_style style; /* of standard output */
    bool quiet;              /* key=value lines, nothing else */
    bool json;
    bool terminal; /* standard output and error both are: progress bar, prompts */
};

/* Signals: the first SIGINT or SIGTERM turns the flag true, the second ends the process at once. */
void interrupt_start(void);
const atomic_bool *interrupt_flag(void);
/* 130 or 143 after a signal, else 0. */
int interrupt_exit_status(void);

#define LIMIT_MB_MAX 1000000 /* MB/s that can be asked for */

/* body.c: members of a request's body, each only when its flag was given: the defaults are the
 * server's. */
void body_add_text(json_t *body, const char *key, const struct command_line *line, enum flag_id id);
void body_add_bool(json_t *body, const char *key, const struct command_line *line, enum flag_id id);
void body_add_number(json_t *body, const char *key, const struct command_line *line,
                     enum flag_id id);
/* A text like "a,b" as a list of texts; spaces before an item and empty items are left out. */
void body_add_list(json_t *body, const char *key, const struct command_line *line, enum flag_id id,
                   char separator);
void body_add_bandwidth(json_t *body, const struct command_line *line); /* all but the limit */

/* export.c: --vm NAME */
int export_command(struct program *program, struct error *err);
/* incremental.c: --vm NAME --incremental-info */
int incremental_info_command(struct program *program, struct error *err);
/* How an incremental export's disks were read, from its result's "incremental" (NULL: nothing). */
void incremental_summary(const json_t *incremental, struct strbuf *out);
void incremental_pairs(const json_t *incremental, struct strbuf *out); /* of --quiet */
/* vms.c */
int vm_info_command(struct program *program, struct error *err); /* --vm NAME --vm-info */
int vms_command(struct program *program, struct error *err);
/* jobs.c */
int jobs_command(struct program *program, struct error *err);
int jobs_list(struct program *program, const char *status, struct error *err);
int jobs_cancel(struct program *program, const char *job_id, struct error *err);
int workflow_command(struct program *program, struct error *err); /* workflows.c */
/* exports.c */
int exports_command(struct program *program, struct error *err);
int verify_command(struct program *program, struct error *err); /* verify DIR */
int verify_path(struct program *program, const char *path, struct error *err);
/* Posts a request that is answered with a job; follows it unless --detach. */
int submit_and_follow(struct program *program, const char *path, const json_t *body,
                      struct error *err);
/* decrypt.c: decrypt FILE|DIR [TO], or --decrypt PATH; asks no gateway */
int decrypt_command(struct program *program, struct error *err);
/* cleanup.c: --cleanup once, or --cleanup-schedule */
bool cleanup_is_repeated(const struct command_line *line);
/* The rules as request body; caller's reference. */
MUST_CHECK int cleanup_body(const struct command_line *line, json_t **out, struct error *err);
int cleanup_command(struct program *program, struct error *err);
void cleanup_show(const json_t *result); /* of the finished job */
/* depends.c: depends_on of a schedule or policy from --depends-on; asks the gateway for names. It
 * takes the place of what the body has. */
MUST_CHECK int body_add_dependencies(struct program *program, json_t *body, struct error *err);
/* schedules.c */
/* The id of the schedule with this name; NULL: there is none. Caller frees. */
MUST_CHECK int schedule_find(struct program *program, const char *name, char **out,
                             struct error *err);
/* The runs of a schedule or policy as a table. */
int schedule_output_runs(const struct program *program, const json_t *runs);
int schedule_command(struct program *program, struct error *err);
/* --daemon-schedule: the job of the other flags again and again. */
int schedule_create(struct program *program, json_t *job_taken, struct error *err);
/* policies.c */
int policy_command(struct program *program, struct error *err);
/* The id of the policy with this name or id; NULL: there is none. Caller frees. */
MUST_CHECK int policy_find(struct program *program, const char *word, char **out,
                           struct error *err);
int template_command(struct program *program, struct error *err); /* templates.c */
/* queue.c */
int queue_command(struct program *program, struct error *err);
int workers_command(struct program *program, struct error *err);
/* Whether the queue is paused; nothing for people when it is not. */
void queue_line(struct strbuf *out, const struct program *program, const json_t *queue);
int providers_command(struct program *program, struct error *err);
int status_command(struct program *program, struct error *err);
int login_command(struct program *program, struct error *err);

/* follow.c: shows a job until it is final; the exit status is the job's result. owned: the first
 * signal cancels the job, else it only ends the watching. */
int follow_job(struct program *program, const char *job_id, bool owned, struct error *err);

/* output.c. Text goes out in one write; a closed pipe ends the program quietly. */
void output_text(const struct strbuf *text);
void output_json(const json_t *json);
/* EXIT_DONE, after the answer as JSON with --json, else a line of text. */
int output_done(const struct program *program, const json_t *answer, const char *format, ...)
    PRINTF_LIKE(3, 4);
struct output_column {
    const char *heading;
    const char *key;
};
/* EXIT_DONE, after a list of objects as JSON with --json, as first=second key per row with --quiet,
 * else as a table. */
int output_rows(const struct program *program, const json_t *rows,
                const struct output_column *columns, size_t count);
/* key=value with line breaks in the value as \n. */
void output_pair(struct strbuf *out, const char *key, const char *value);
/* "error: <text>" on standard error, made harmless for the terminal. */
void output_error(const char *message);
/* Asks on the terminal; without one, or with --quiet, the answer is no; with --yes it is yes. */
bool output_confirm(const struct program *program, const char *question);
/* "/api/v1/jobs/" + escaped id + suffix; caller frees. */
char *output_path(const char *prefix, const char *id, const char *suffix);
/* The word after the sub-command ("jobs get ID"), or NULL with ERR_INVALID. */
const char *command_argument(const struct program *program, const char *what, struct error *err);
/* --password-file, --password, or asked for on the terminal. Caller frees. */
MUST_CHECK int command_password(const struct program *program, const char *prompt, char **out,
                                struct error *err);
/* --passphrase-file, --passphrase, or HYPEREXPORT_PASSPHRASE; NULL: none of them. ask_twice: it is
 * for a new file, and "--passphrase-file -" asks for it again on a terminal. Wipe with secret_free.
 */
MUST_CHECK int command_passphrase(const struct program *program, bool ask_twice, char **out,
                                  struct error *err);
/* The same as member of a request's body, if there is one. ERR_DENIED: it would cross plain http.
 */
MUST_CHECK int body_add_passphrase(struct program *program, json_t *body, bool ask_twice,
                                   struct error *err);
/* A file of at most 1 MiB of YAML or JSON. New reference. */
MUST_CHECK int command_file(const char *path, json_t **out, struct error *err);
struct deletion { /* what is asked before it */
    const char *kind;
    const char *consequence; /* a sentence */
    const char *name;
};
/* DELETE of prefix + id, once it was confirmed; ERR_CANCELLED: it was not. Returns EXIT_DONE. */
int command_delete(struct program *program, const char *prefix, const char *id,
                   const struct deletion *deletion, struct error *err);
/* Of a list: --limit, or what holds without it. */
size_t command_limit(const struct program *program);
/* The end of a command's actions: the table has one that the code has not. */
int command_without_code(const struct program *program, struct error *err);
/* ERR_INVALID when more than count words were typed. */
MUST_CHECK int command_words_max(const struct program *program, size_t count, struct error *err);

#endif
