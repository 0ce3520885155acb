/* See world.h: the processes, the users, what goes wrong. */
#include "tests/sim/world.h"

#include <string.h>

#include "common/job_store.h"
#include "common/json.h"
#include "common/policy.h"
#include "common/schedule_store.h"
#include "services/scheduler/scheduler.h"
#include "tests/sim/store.h"

#define FAULTS_S_MIN   40
#define FAULTS_S_MAX   180
#define STUCK_S        2400 /* after the healing everything is over, or never will be */
#define WATCH_US       (500 * SIM_MS)
#define STOPS_S        70 /* after the healing: a lease, its margins, the longest step of a task */
#define BACK_MS_MAX    60000
#define BACK_MS_LITTLE 1000 /* time windows mean little by a clock that jumps */
#define AHEAD_MS_MAX   4000 /* a jump of the database's clock: lease margins allow less than 10 s */
#define AHEAD_EVERY_US (45 * SIM_S)
#define PER_CENT       10000U

struct world world;

static int64_t ahead_us = -AHEAD_EVERY_US; /* time of the last jump forward */

struct world_task *world_task(const char *id)
{
    for (size_t i = 0; i < world.task_count; i++) {
        if (strcmp(world.tasks[i].id, id) == 0)
            return &world.tasks[i];
    }
    assert(world.task_count < WORLD_TASKS_MAX);
    struct world_task *task = &world.tasks[world.task_count++];
    (void)snprintf(task->id, sizeof task->id, "%s", id);
    return task;
}

/* ---- the scheduler ---- */

static void scheduler_main(struct sim_proc *proc)
{
    struct scheduler *scheduler = xcalloc(1, sizeof *scheduler);
    static char base[] = "/exports";
    static char empty[] = "";
    struct error err = ERROR_NONE;

    scheduler->config.lease_ms = world.lease_ms;
    scheduler->config.poll_interval_ms = 1500;
    scheduler->config.losses_max = world.losses_max;
    scheduler->export.base_path = base;
    scheduler->bases = (struct config_list){.items = &scheduler->export.base_path, .count = 1};
    scheduler->database.url = scheduler->database.owner_url = empty;
    scheduler->export.provider_limit = world.provider_limit;
    scheduler->retry.max_attempts = 3;
    scheduler->retry.initial_delay_ms = 2000;
    scheduler->retry.max_delay_ms = 20000;
    if (scheduler_work(scheduler, sim_service_new(proc), &err) < 0)
        sim_trace("scheduler ends: %s", err.message);
}

/* ---- users, by way of a gateway ---- */

/* Every minute, or every second one: what is missed, what overlaps, what is late. */
static json_t *draw_schedule(int number)
{
    static const char *const misfires[] = {"run_once", "skip", "run_all"};
    static const char *const overlaps[] = {"skip", "queue", "allow"};

    return json_pack("{s:o, s:s, s:s, s:s, s:s, s:s}", "name", json_sprintf("schedule-%d", number),
                     "schedule", sim_chance(50 * PER_CENT) ? "* * * * *" : "*/2 * * * *",
                     "timezone", "UTC", "misfire", misfires[sim_below(ARRAY_LEN(misfires))],
                     "overlap", overlaps[sim_below(ARRAY_LEN(overlaps))], "jitter",
                     sim_chance(50 * PER_CENT) ? "0s" : "20s");
}

/* One job, or one of each VM. */
static void add_work(struct schedule *schedule, int number)
{
    if (world.theme == THEME_POLICIES) {
        (void)snprintf(schedule->policy_id, sizeof schedule->policy_id, "pol-%d", number);
        json_put(schedule->fields, "vm_filter",
                 json_pack("{s:s, s:s}", "provider", "sim-0", "name", "*"));
        json_put(schedule->fields, "export_options",
                 json_pack("{s:s}", "output_path", "/exports/policy"));
        json_put(schedule->fields, "max_parallel", json_integer(sim_between(1, WORLD_VMS_MAX)));
        return;
    }
    json_put(schedule->fields, "job_template",
             json_pack("{s:s, s:s, s:s}", "vm_path", "/dc/vm", "provider", "sim-0", "output_path",
                       "/exports/scheduled"));
}

static void add_schedule(struct db *db, int number)
{
    auto_schedule *schedule = xcalloc(1, sizeof *schedule);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    schedule->fields = draw_schedule(number);
    add_work(schedule, number);
    if (schedule_check(schedule, &problem, &err) < 0 ||
        (schedule->policy_id[0] != '\0' && policy_check(schedule->fields, &problem, &err) < 0))
        sim_fail("schedule: %s", err.message);
    while (schedule_store_insert(db, schedule, &err) < 0) {
        if (err.code != ERR_UNAVAILABLE)
            sim_fail("schedule: %s", err.message);
        schedule->id[0] = '\0'; /* it may be there: then there are two */
        error_clear(&err);
    }
    sim_trace("%s fires by '%s', misfire %s, overlap %s", schedule->id,
              field_text(schedule->fields, "schedule", ""),
              field_text(schedule->fields, "misfire", ""),
              field_text(schedule->fields, "overlap", ""));
}

static void poke(struct bus_pusher *pusher, const char *instance)
{
    Hypersdk__V1__JobsChanged body;
    struct bus_envelope_store store;
    bus_envelope envelope;

    hypersdk__v1__jobs_changed__init(&body);
    bus_envelope_init(&envelope, &store, instance, NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_JOBS_CHANGED;
    envelope.jobs_changed = &body;
    bus_push(pusher, &envelope);
}

static json_t *export_spec(bool poison)
{
    return json_pack("{s:s, s:i, s:i, s:i, s:b}", "vm", "/dc/vm", "chunks", (int)sim_between(1, 9),
                     "chunk_ms", (int)sim_between(200, 4000), "errors",
                     sim_chance(40 * PER_CENT) ? (int)sim_between(1, 8) : 0, "poison", poison);
}

/* What a user wants is drawn once; a repetition asks for the same. */
struct request {
    json_t *export, *convert, *import;
    json_t *before, *after; /* hooks; NULL: none */
    json_t *wait;           /* in front of the export, behind a hook */
    uint32_t priority, attempts;
    uint8_t hash[32];
    struct world_wishes wishes;
};
static struct request requests[WORLD_JOBS_MAX];

static json_t *hook_spec(void)
{
    return json_pack("{s:i, s:i}", "chunks", (int)sim_between(1, 3), "errors",
                     sim_chance(50 * PER_CENT) ? (int)sim_between(1, 60) : 0);
}

static void draw_request(struct world_job *job, struct request *request)
{
    char name[16];

    job->poison = sim_chance(8 * PER_CENT);
    request->export = export_spec(job->poison);
    request->priority = (uint32_t)sim_below(101);
    request->attempts = (uint32_t)sim_between(1, 4);
    (void)snprintf(job->key, sizeof job->key, "key-%zu", (size_t)(job - world.jobs));
    if (sim_chance(20 * PER_CENT))
        request->before = hook_spec();
    if (request->before != NULL)
        request->wait = json_pack("[{s:i}]", "ms", (int)sim_between(0, 20000));
    if (sim_chance(20 * PER_CENT))
        request->after = hook_spec();
    if (world.theme == THEME_RULES)
        wishes_draw(&request->wishes);
    if (request->wishes.windows != NULL && sim_chance(60 * PER_CENT)) { /* longer than they are */
        json_put(request->export, "chunks", json_integer(sim_between(15, 50)));
        json_put(request->export, "chunk_ms", json_integer(6000));
    }
    memset(request->hash, (int)(job - world.jobs), sizeof request->hash);
    if (sim_chance(40 * PER_CENT))
        request->convert = json_pack("{s:i}", "chunks", (int)sim_between(1, 4));
    (void)snprintf(name, sizeof name, "vm-%d", (int)sim_below(2));
    if (request->convert != NULL && sim_chance(60 * PER_CENT))
        request->import =
            json_pack("{s:i, s:s}", "chunks",
                      (int)sim_between(1, sim_chance(10 * PER_CENT) ? 80 : 5), "name", name);
}

/* A hook in front may make the job fail, one behind may not. */
static size_t tasks_of(const struct request *request, struct job_task out[JOB_TASKS_MAX])
{
    const struct job_task all[] = {
        {.kind = "script", .spec = request->before, .bridge = true, .hook = "pre"},
        {.kind = "export", .spec = request->export, .wait = request->wait},
        {.kind = "convert", .spec = request->convert, .bridge = true},
        {.kind = "import", .spec = request->import, .bridge = true},
        {.kind = "script",
         .spec = request->after,
         .bridge = true,
         .hook = "post",
         .may_fail = true,
         .max_attempts = 2,
         .retry_initial_ms = 1000,
         .retry_max_ms = 5000},
    };
    size_t count = 0;

    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        if (all[i].spec != NULL)
            out[count++] = all[i];
    }
    return count;
}

static int submit(struct db *db, struct world_job *job, struct error *err)
{
    struct job_task tasks[JOB_TASKS_MAX];
    struct request *request = &requests[job - world.jobs];
    auto_json *definition = json_object();
    char provider[16];
    bool existing = false;

    if (!job->sent)
        draw_request(job, request);
    job->sent = true;
    (void)snprintf(provider, sizeof provider, "sim-%d", (int)(job - world.jobs) % 2);
    struct job_submission submission = {
        .name = "",
        .kind = "export",
        .provider = provider,
        .provider_kind = "sim",
        .vm_path = "/dc/vm",
        .output_path = "/exports/vm",
        .format = "qcow2",
        .definition = definition,
        .tasks = tasks,
        .priority = request->priority,
        .max_attempts = request->attempts,
        .retry_initial_ms = 2000,
        .retry_max_ms = 20000,
        .submitted_by = "user",
        .trace_id = "",
        .idempotency_key = job->key,
        .idempotency_hash = request->hash,
        .deadline = request->wishes.deadline[0] == '\0' ? NULL : request->wishes.deadline,
        .depends_on = request->wishes.depends_on,
        .time_windows = request->wishes.windows,
        .on_window_end = request->wishes.on_window_end,
    };
    submission.task_count = tasks_of(request, tasks);
    if (job_store_submit(db, &submission, job->id, &existing, err) < 0)
        return -1;
    job->acknowledged = true;
    sim_trace("%s is submitted%s%s", job->id, existing ? " (it was there)" : "",
              job->poison ? "; it kills its workers" : "");
    return 0;
}

static void stop_or_go(struct db *db, struct world_job *job, const char *instance)
{
    struct error err = ERROR_NONE;

    if (sim_chance(60 * PER_CENT)) {
        if (job_store_resume(db, job->id, instance, &err) == 0)
            sim_trace("%s goes on", job->id);
    } else if (job_store_pause(db, job->id, instance, "", &err) == 0) {
        sim_trace("%s is paused", job->id);
    }
}

/* An operator, about the whole: mostly to let it go on. */
static void operate(struct db *db)
{
    const char *instance = world.procs[sim_below(world.proc_count)].instance;
    struct error err = ERROR_NONE;
    int rc;

    switch (sim_below(4)) {
    case 0:
        rc = db_exec(db, STORE_PAUSE_QUEUE, DB_NO_PARAMS, NULL, &err);
        break;
    case 1:
        rc = db_exec(db, STORE_DRAIN, DB_PARAMS(instance), NULL, &err);
        break;
    default:
        rc = db_exec(db, STORE_RESUME_QUEUE, DB_NO_PARAMS, NULL, &err);
        if (rc == 0)
            rc = db_exec(db, STORE_UNDRAIN, DB_NO_PARAMS, NULL, &err);
        break;
    }
    sim_trace("queue and workers: %s", rc == 0 ? "paused, drained or let go" : err.message);
}

static void user_acts(struct db *db, const char *instance)
{
    struct world_job *job = &world.jobs[sim_below(world.job_count)];
    struct error err = ERROR_NONE;

    if (world.theme == THEME_WORKFLOWS)
        workflows_act(db, instance);
    if (!job->acknowledged) {
        if (submit(db, job, &err) < 0)
            sim_trace("%s is not submitted: %s", job->key, err.message);
        return;
    }
    if (sim_chance(8 * PER_CENT)) {
        operate(db);
    } else if (sim_chance(25 * PER_CENT)) {
        stop_or_go(db, job, instance);
    } else if (sim_chance(25 * PER_CENT)) {
        job->cancel_acknowledged = false; /* it may be tried again whatever the answer is */
        if (job_store_retry(db, job->id, instance, &err) == 0)
            sim_trace("%s is tried again", job->id);
    } else if (sim_chance(15 * PER_CENT) &&
               job_store_cancel(db, job->id, instance, "", false, &err) == 0) {
        job->cancel_acknowledged = true;
        sim_trace("%s is cancelled", job->id);
    }
}

static bool all_submitted(void)
{
    for (size_t i = 0; i < world.job_count; i++) {
        if (!world.jobs[i].acknowledged)
            return false;
    }
    return true;
}

/* What is still wished when everything is healed: jobs without an answer, and no pause. */
static bool settle(struct db *db, const char *instance)
{
    struct error why = ERROR_NONE;
    bool settled = world.held;

    for (size_t i = 0; i < world.job_count; i++) {
        struct error err = ERROR_NONE;
        if (!world.jobs[i].acknowledged && submit(db, &world.jobs[i], &err) < 0)
            sim_trace("%s is not submitted: %s", world.jobs[i].key, err.message);
        err = (struct error)ERROR_NONE;
        if (world.held && job_store_resume(db, world.jobs[i].id, instance, &err) == 0)
            sim_trace("%s goes on", world.jobs[i].id);
        settled = settled && world.jobs[i].acknowledged && err.code != ERR_UNAVAILABLE;
    }
    if (world.held)
        settled = workflows_settle(db, instance) && settled;
    return settled && db_exec(db, STORE_SCHEDULES_OFF, DB_NO_PARAMS, NULL, &why) == 0 &&
           db_exec(db, STORE_RESUME_QUEUE, DB_NO_PARAMS, NULL, &why) == 0 &&
           db_exec(db, STORE_UNDRAIN, DB_NO_PARAMS, NULL, &why) == 0;
}

static void gateway_main(struct sim_proc *proc)
{
    static const struct bus_config bus;
    static const struct database_config database;
    struct bus_pusher *pusher = NULL;
    struct error err = ERROR_NONE;
    struct db *db = db_new(&database, NULL, "gateway");

    if (bus_pusher_open(&bus, &pusher, &err) < 0)
        sim_fail("pusher: %s", err.message);
    while (world.schedules_wanted > 0)
        add_schedule(db, --world.schedules_wanted);
    for (bool settled = false; !settled;) {
        if (sim_now_us < world.heal_us) {
            user_acts(db, proc->instance);
        } else {
            settled = settle(db, proc->instance);
        }
        poke(pusher, proc->instance);
        sim_sleep(sim_between(10, 6000) * SIM_MS);
    }
    sim_sleep(INT64_C(1000000) * SIM_S); /* it lives, and nobody comes */
}

/* ---- what goes wrong ---- */

static void revive(void *arg)
{
    struct sim_proc *proc = arg;

    if (!proc->alive)
        sim_proc_start(proc);
}

/* A supervisor starts whatever is not alive, sooner or later. */
static void *supervise(void *arg)
{
    (void)arg;
    for (;;) {
        sim_sleep(sim_between(100, 3000) * SIM_MS);
        for (size_t i = 0; i < world.proc_count; i++) {
            if (!world.procs[i].alive && (sim_now_us >= world.heal_us || sim_chance(30 * PER_CENT)))
                revive(&world.procs[i]);
        }
    }
    return NULL;
}

static void move_database_clock(void)
{
    if (sim_chance(50 * PER_CENT)) {
        int64_t back_ms = sim_between(0, world.back_ms_max);
        store_offset_us -= back_ms * SIM_MS;
        sim_trace("the database's clock goes back by %lld ms", (long long)back_ms);
    } else if (sim_now_us - ahead_us > AHEAD_EVERY_US) {
        int64_t ahead_ms = sim_between(0, AHEAD_MS_MAX);
        store_offset_us += ahead_ms * SIM_MS;
        ahead_us = sim_now_us;
        sim_trace("the database's clock goes ahead by %lld ms", (long long)ahead_ms);
    }
}

/* Half of the time long enough for another worker to have the task meanwhile. */
static int64_t frozen_ms(void)
{
    return sim_chance(50 * PER_CENT) ? sim_between(500, 20000)
                                     : world.lease_ms + sim_between(5000, 40000);
}

static void disturb(struct sim_proc *proc)
{
    switch (sim_below(8)) {
    case 0:
        sim_proc_kill(proc);
        return;
    case 1:
    case 6:
        proc->frozen_until_us = sim_now_us + frozen_ms() * SIM_MS;
        sim_trace("%s is frozen for %.1f s", proc->instance,
                  (double)(proc->frozen_until_us - sim_now_us) / 1e6);
        return;
    case 2:
        proc->cut_until_us = sim_now_us + sim_between(500, 60000) * SIM_MS;
        sim_trace("the network of %s is cut for %.1f s", proc->instance,
                  (double)(proc->cut_until_us - sim_now_us) / 1e6);
        return;
    case 3:
        sim_terminate(proc);
        return;
    case 4:
        proc->wall_offset_us += sim_between(-3600, 3600) * SIM_S;
        sim_trace("the wall clock of %s jumps", proc->instance);
        return;
    default:
        move_database_clock();
        return;
    }
}

static uint32_t sometimes(uint32_t per_million)
{
    return sim_chance(50 * PER_CENT) ? 0 : (uint32_t)sim_below(per_million);
}

static void draw_faults(void)
{
    sim_faults = (struct sim_faults){
        .message_lost = sometimes(15 * PER_CENT),
        .message_doubled = sometimes(15 * PER_CENT),
        .message_late = sometimes(8 * PER_CENT),
        .statement_lost = sometimes(PER_CENT / 2),
        .commit_unknown_done = sometimes(3 * PER_CENT),
        .commit_unknown_lost = sometimes(3 * PER_CENT),
        .database_slow = sometimes(PER_CENT),
    };
    sim_trace("lost %u, doubled %u, late %u, statements %u, commits %u %u, slow %u per million",
              sim_faults.message_lost, sim_faults.message_doubled, sim_faults.message_late,
              sim_faults.statement_lost, sim_faults.commit_unknown_done,
              sim_faults.commit_unknown_lost, sim_faults.database_slow);
}

static void heal(void)
{
    sim_faults = (struct sim_faults){0};
    world.calm_us = sim_now_us;
    for (size_t i = 0; i < world.proc_count; i++) {
        world.procs[i].cut_until_us = 0;
        if (world.procs[i].frozen_until_us > world.calm_us)
            world.calm_us = world.procs[i].frozen_until_us;
    }
    world.calm_ms = store_clock_ms() + (world.calm_us - sim_now_us) / SIM_MS;
    sim_trace("everything is healed");
}

static void *make_trouble(void *arg)
{
    int64_t pause_ms = sim_between(1000, 15000);

    (void)arg;
    draw_faults();
    while (sim_now_us < world.heal_us) {
        sim_sleep(sim_between(0, 2 * pause_ms) * SIM_MS);
        if (sim_now_us >= world.heal_us)
            break;
        if (sim_chance(8 * PER_CENT)) {
            store_outage(sim_between(100, 20000) * SIM_MS);
        } else {
            struct sim_proc *proc = &world.procs[sim_below(world.proc_count)];
            if (proc->alive)
                disturb(proc);
        }
    }
    heal();
    return NULL;
}

static void *watch(void *arg)
{
    (void)arg;
    for (;;) {
        sim_sleep(WATCH_US);
        if (sim_now_us < world.heal_us)
            continue;
        check_windows();
        if (!world.held && sim_now_us > world.heal_us + world.stops_us) {
            if (world.stops_us > 0)
                check_stops();
            world.held = true;
        }
        if (world.held && all_submitted() && check_is_quiet()) {
            world.finished = true;
        } else if (sim_now_us > world.heal_us + STUCK_S * SIM_S) {
            check_stuck();
        }
    }
    return NULL;
}

bool world_is_finished(void)
{
    return world.finished;
}

static void add_proc(const char *name, void (*fn)(struct sim_proc *))
{
    struct sim_proc *proc = &world.procs[world.proc_count];

    assert(world.proc_count < WORLD_PROCS_MAX);
    (void)snprintf(proc->name, sizeof proc->name, "%s", name);
    proc->main = fn;
    proc->number = (int)world.proc_count++;
    sim_after(NULL, sim_between(0, 3000) * SIM_MS, revive, proc);
}

static void draw_vms(void)
{
    world.schedules_wanted = 1;
    world.vm_count = (size_t)sim_between(1, WORLD_VMS_MAX);
    for (size_t i = 0; i < world.vm_count; i++)
        (void)snprintf(world.vms[i], sizeof world.vms[i], "/dc/%s-%zu",
                       sim_chance(10 * PER_CENT) ? "bad" : "vm", i);
}

void world_start(void)
{
    static const int64_t leases_ms[] = {15000, 20000, 30000};
    static const enum world_theme themes[] = {THEME_JOBS,    THEME_JOBS,      THEME_RULES,
                                              THEME_RULES,   THEME_WORKFLOWS, THEME_WORKFLOWS,
                                              THEME_POLICIES};
    static const int64_t jobs_max[] = {
        [THEME_JOBS] = 16, [THEME_RULES] = 8, [THEME_WORKFLOWS] = 4, [THEME_POLICIES] = 3};
    int64_t exporters = sim_between(2, 4);

    json_object_seed(1); /* else the order inside objects would be chance of another kind */
    world.theme = themes[sim_below(ARRAY_LEN(themes))];
    world.back_ms_max =
        world.theme == THEME_RULES && sim_chance(70 * PER_CENT) ? BACK_MS_LITTLE : BACK_MS_MAX;
    world.lease_ms = leases_ms[sim_below(ARRAY_LEN(leases_ms))];
    world.losses_max = (uint32_t)sim_between(3, 5);
    world.provider_limit = (uint32_t)sim_between(1, 4);
    world.job_count = (size_t)sim_between(2, jobs_max[world.theme]);
    world.heal_us = sim_between(FAULTS_S_MIN, FAULTS_S_MAX) * SIM_S;
    if (world.theme == THEME_JOBS && sim_chance(60 * PER_CENT))
        world.schedules_wanted = (int)sim_between(1, 2);
    world.stops_us = sim_chance(40 * PER_CENT) ? STOPS_S * SIM_S : 0; /* takes a while */
    if (world.theme == THEME_WORKFLOWS)
        workflows_draw();
    if (world.theme == THEME_POLICIES)
        draw_vms();
    store_init();
    store_two_leaders = sim_chance(20 * PER_CENT);
    if (store_two_leaders)
        sim_trace("both schedulers lead");
    add_proc("scheduler-a", scheduler_main);
    add_proc("scheduler-b", scheduler_main);
    add_proc("gateway", gateway_main);
    add_proc("bridge", bridge_main);
    for (int64_t i = 0; i < exporters; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "exporter-%d", (int)i);
        add_proc(name, exporter_main);
    }
    (void)sim_spawn(NULL, supervise, NULL);
    (void)sim_spawn(NULL, make_trouble, NULL);
    (void)sim_spawn(NULL, watch, NULL);
}
