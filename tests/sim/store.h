/* PostgreSQL as a model, between store.c, statements_*.c and check.c: rows with one committed and
 * at most one uncommitted version, row locks that are held to the end of the transaction, READ
 * COMMITTED, and connections that break. The statements of the product are recognised by a piece of
 * their text; one that is not known ends the simulation and says what to do. */
#ifndef SIM_STORE_H
#define SIM_STORE_H

#include <string.h>

#include "common/db.h"
#include "tests/sim/sim.h"

#define STORE_ID 80

enum store_table {
    TABLE_JOBS,
    TABLE_TASKS,
    TABLE_RECORDS,
    TABLE_EVENTS,
    TABLE_LINES,
    TABLE_OUTBOX,
    TABLE_EXPORTS,
    TABLE_TOTALS,
    TABLE_WORKERS,
    TABLE_LEADER,
    TABLE_SETTINGS,
    TABLE_SCHEDULES,
    TABLE_RUNS,
    TABLE_DEPENDENCIES,
    TABLE_WORKFLOWS,
    TABLE_STEPS,
    TABLE_ITEMS,
    TABLE_COUNT
};

/* Texts of any length are never freed and never changed: rows share them. */
struct job_row {
    char id[STORE_ID];
    int64_t seq;
    char kind[32];
    char provider[64];
    const char *vm_path, *vm_name, *output_path, *submitted_by, *trace_id;
    const char *schedule_id;     /* "": none */
    const char *workflow_run_id; /* "": none */
    const char *key;             /* idempotency; NULL: none */
    const char *hash;
    char status[16];
    char phase[40];
    int64_t priority, max_attempts, retry_initial_ms, retry_max_ms;
    const char *error, *error_code, *result; /* result may be NULL */
    bool cancel_discard;
    int64_t deadline_ms; /* 0: none */
    bool doomed;
    const char *windows; /* NULL: none */
    char on_window_end[16];
    bool window_open;
    int64_t window_at_ms;             /* 0: NULL */
    int64_t started_us, completed_us; /* 0: NULL */
};

struct task_row {
    char id[STORE_ID];
    int64_t seq;
    char job_id[STORE_ID]; /* "": a control task */
    int64_t ordinal;
    char kind[32];
    char task_class[16];
    char role[16];
    char provider_kind[32];
    char provider[64];
    char volume[64];
    const char *spec;
    int64_t priority;
    char state[16];
    int64_t epoch;
    const char *token; /* "\x<hex>"; NULL */
    int64_t attempt, losses, progress_mark, bytes_done;
    char worker[64];
    int64_t lease_until_ms; /* 0: NULL */
    int64_t not_before_ms;
    bool cancel;
    int64_t lines_stored;
    const char *result, *error, *error_code;
    int64_t updated_ms;
    char hook[16];
    bool may_fail; /* the job goes on without it */
    char hold[16];
    char queue_group[STORE_ID];
    int64_t queue_limit;
    int64_t created_ms;
    const char *wait;
    const char *max_attempts, *retry_initial_ms, *retry_max_ms; /* its own; NULL: the job's */
};

struct record_row {
    char task_id[STORE_ID];
    const char *key, *value;
    uint64_t stamp; /* rises with every writing */
};
struct event_row {
    char job_id[STORE_ID];
    const char *event, *status;
    int64_t at_ms;
};
struct line_row {
    char task_id[STORE_ID];
    int64_t epoch, number;
};
struct outbox_row {
    char job_id[STORE_ID];
    const char *event;
};
struct export_row {
    const char *id;
    char job_id[STORE_ID];
};
struct total_row {
    const char *batch; /* JSON array, as it was added */
};
struct worker_row {
    char instance[64];
    char role[16];
    char state[16];
    int64_t seen_ms;
    bool drained; /* by a user */
};
struct setting_row {
    const char *key;
};
struct leader_row {
    char holder[64];
    int64_t epoch, until_ms;
};
struct schedule_row {
    char id[STORE_ID];
    char policy_id[STORE_ID]; /* "": none */
    const char *fields;
    bool enabled;
    int64_t first_s, next_s, delay_ms, run_count;
};
struct run_row {
    char id[STORE_ID];
    char schedule_id[STORE_ID];
    int64_t due_ms;
    char status[16];
    const char *reason, *job_ids, *errors; /* the last two: JSON arrays */
};

struct dependency_row {
    char job_id[STORE_ID], on_job[STORE_ID];
    char required[16];
    int64_t timeout_ms; /* 0: none */
};

struct workflow_row { /* a run of one */
    char id[STORE_ID];
    char status[16];
    const char *definition, *submitted_by, *trace_id;
};
struct step_row {
    char run_id[STORE_ID];
    int64_t ordinal, depends;
    char kind[16], when[16], status[16];
    int64_t attempt, wait_ms, parallel_max, item_count;
    int64_t started_ms, ended_ms; /* 0: NULL */
};
struct item_row {
    char run_id[STORE_ID];
    int64_t step, item, attempt;
    char job_id[STORE_ID];
    char state[16];
    const char *error;
};

struct tx;
struct row {
    enum store_table table;
    struct tx *owner; /* who holds its lock */
    void *committed;  /* NULL: not there (yet, or any more) */
    void *uncommitted;
    bool deleted; /* by the owner */
};

/* One statement that runs. */
struct statement {
    struct tx *tx;
    const char *const *params;
    size_t count;
    PGresult *rows;
    bool failed;    /* deadlock, or the connection broke while it waited: return at once */
    int64_t now_ms; /* now(): the transaction's start; clock_timestamp() is store_clock_ms() */
};

extern int64_t store_offset_us; /* of the database's clock */
int64_t store_clock_ms(void);
extern int64_t store_newest_ms; /* the newest time that its clock has shown */

size_t store_count(enum store_table table);
struct row *store_row(enum store_table table, size_t i);
/* What this statement sees of the row; NULL: nothing. */
const void *see(const struct statement *s, const struct row *row);
/* Waits for the row's lock; its newest version, to be changed, or NULL: it is gone (or s->failed).
 * What a condition said before has to be looked at again. */
void *hold(struct statement *s, struct row *row);
/* FOR UPDATE SKIP LOCKED. */
bool is_free(const struct statement *s, struct row *row);
/* A new row, zeroed, the statement's own. */
void *insert(struct statement *s, enum store_table table);
void drop(struct statement *s, struct row *row);
/* An advisory lock until the end of the transaction. */
void hold_name(struct statement *s, const char *name);

/* Results: columns once, then rows of cells; NULL is SQL NULL. */
void result_columns(struct statement *s, int columns);
void result_row(struct statement *s, const char *const *cells);
#define RESULT_ROW(s, ...) result_row((s), (const char *const[]){__VA_ARGS__})
/* UPDATE and the like: so many rows were touched. */
void result_affected(struct statement *s, int count);
/* Text of a number, good until the statement's end. */
const char *number(int64_t value);
const char *keep(const char *text); /* a copy that is never freed; NULL stays NULL */
int64_t param_i64(const struct statement *s, size_t i);
bool param_bool(const struct statement *s, size_t i);
static inline bool is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}
static inline void put(char *out, size_t size, const char *text)
{
    (void)snprintf(out, size, "%s", text == NULL ? "" : text);
}
#define PUT(field, text) put((field), sizeof(field), (text))
/* Is text an element of the JSON array of strings? */
bool json_has(const char *array, const char *text);

/* Of several files' models (statements_jobs.c, statements_rules.c). */
struct row *find_job(const struct statement *s, const char *id);
struct row *find_task(const struct statement *s, const char *id);
/* Of a job the task that its state is about. */
const struct task_row *find_current_task(const struct statement *s, const char *job_id);
struct task_row *new_task(struct statement *s); /* queued */
bool has_dependencies(const struct statement *s, const char *job_id);
bool status_is_final(const char *status);
bool status_meets(const char *status, const char *required);
/* Its window is over; the same of jobs that then wait as if they were paused. */
bool is_closed(const struct job_row *job);
bool waits_for_window(const struct job_row *job);

typedef void (*statement_fn)(struct statement *s);
struct statement_model {
    const char *piece; /* of its text, found in no other statement */
    statement_fn fn;
};
extern const struct statement_model statements_jobs[], statements_scheduler[],
    statements_schedules[], statements_rules[], statements_workflows[]; /* end with {0} */

/* check.c: looks at every row that a commit changes; old NULL: it is new. */
void check_commit(enum store_table table, const void *old, const void *new_row);
/* check_rules.c, for check_commit() */
void check_dependency(const struct dependency_row *d);
void check_rules_job(const struct job_row *old, const struct job_row *job);
void check_rules_lease(const struct task_row *task);
/* check_workflows.c, the same */
void check_workflow(const struct workflow_row *old, const struct workflow_row *run);
void check_step(const struct step_row *old, const struct step_row *step);
void check_item(const struct item_row *old, const struct item_row *item);

/* What users do by SQL of the gateway that has no function in common/: statements of our own. */
#define STORE_PAUSE_QUEUE   "sim: the queue is paused"
#define STORE_RESUME_QUEUE  "sim: the queue goes on"
#define STORE_DRAIN         "sim: a worker is drained ($1)"
#define STORE_SCHEDULES_OFF "sim: all schedules are switched off"
#define STORE_UNDRAIN       "sim: all workers take tasks"
#define QUEUE_PAUSED_KEY    "queue.paused"

void store_init(void);         /* the leader's row is there, free */
extern bool store_two_leaders; /* the leader's row keeps nobody from leading */
/* The database's side of what goes wrong. */
void store_outage(int64_t us);

#endif
