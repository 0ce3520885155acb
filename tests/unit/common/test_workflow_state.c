/* Runs of workflows as a pure function: graphs, conditions, limits, pause, cancel, retry, and
 * random walks over random graphs. */
#include <string.h>

#include "common/workflow_state.h"
#include "tests/unit/common/unit.h"

#define BIT(i) (UINT64_C(1) << (i))

static struct workflow_run_state run_of(uint32_t steps)
{
    struct workflow_run_state run = {.status = WORKFLOW_RUNNING, .step_count = steps};

    for (uint32_t i = 0; i < steps; i++) {
        run.steps[i].attempt = 1;
        run.steps[i].waiting = 1;
    }
    return run;
}

/* As the store does it: what the decision started is under way. */
static void look(struct workflow_run_state *run, int64_t now_ms)
{
    workflow_decide(run, WORKFLOW_EVENT_LOOK, now_ms);
    for (uint32_t i = 0; run->allowed && i < run->step_count; i++) {
        run->steps[i].waiting -= run->steps[i].start;
        run->steps[i].active += run->steps[i].start;
    }
}

static void end_item(struct workflow_step_state *step, bool well)
{
    assert_true(step->active > 0);
    step->active--;
    if (well) {
        step->done++;
    } else {
        step->failed++;
    }
}

static void steps_follow_what_they_depend_on(void **state)
{
    struct workflow_run_state run = run_of(3);

    (void)state;
    run.steps[0].depends = BIT(1) | BIT(2);
    run.steps[1].depends = BIT(2);
    look(&run, 10);
    assert_int_equal(run.steps[2].status, WORKFLOW_STEP_RUNNING);
    assert_int_equal(run.steps[2].start, 1);
    assert_int_equal(run.steps[2].started_ms, 10);
    assert_int_equal(run.steps[1].status, WORKFLOW_STEP_WAITING);
    end_item(&run.steps[2], true);
    look(&run, 20);
    assert_int_equal(run.steps[2].status, WORKFLOW_STEP_COMPLETED);
    assert_int_equal(run.steps[2].ended_ms, 20);
    assert_int_equal(run.steps[1].status, WORKFLOW_STEP_RUNNING);
    assert_int_equal(run.steps[0].status, WORKFLOW_STEP_WAITING);
    end_item(&run.steps[1], true);
    look(&run, 30);
    end_item(&run.steps[0], true);
    look(&run, 40);
    assert_int_equal(run.status, WORKFLOW_COMPLETED);
    look(&run, 50);
    assert_false(run.allowed);
}

static void a_failure_goes_the_way_that_was_made_for_it(void **state)
{
    struct workflow_run_state run = run_of(6);

    (void)state;
    run.steps[1].depends = BIT(0);
    run.steps[2].depends = BIT(1); /* two behind the failure */
    run.steps[2].when = WORKFLOW_WHEN_FAILURE;
    run.steps[3].depends = BIT(1);
    run.steps[3].when = WORKFLOW_WHEN_ALWAYS;
    run.steps[5].depends = BIT(4); /* what did not fail */
    run.steps[5].when = WORKFLOW_WHEN_FAILURE;
    look(&run, 1);
    end_item(&run.steps[0], false);
    end_item(&run.steps[4], true);
    look(&run, 2);
    assert_int_equal(run.steps[0].status, WORKFLOW_STEP_FAILED);
    assert_int_equal(run.steps[1].status, WORKFLOW_STEP_SKIPPED);
    assert_int_equal(run.steps[2].status, WORKFLOW_STEP_RUNNING);
    assert_int_equal(run.steps[3].status, WORKFLOW_STEP_RUNNING);
    assert_int_equal(run.steps[5].status, WORKFLOW_STEP_SKIPPED);
    assert_int_equal(run.status, WORKFLOW_RUNNING);
    end_item(&run.steps[2], true);
    end_item(&run.steps[3], true);
    look(&run, 3);
    assert_int_equal(run.status, WORKFLOW_FAILED);
}

static void a_batch_keeps_its_limit_and_the_rest_goes_on_after_a_failure(void **state)
{
    struct workflow_run_state run = run_of(1);
    struct workflow_step_state *step = &run.steps[0];

    (void)state;
    step->waiting = 5;
    step->parallel_max = 2;
    look(&run, 1);
    assert_int_equal(step->active, 2);
    look(&run, 2);
    assert_int_equal(step->active, 2);
    end_item(step, false);
    look(&run, 3);
    assert_int_equal(step->active, 2);
    assert_int_equal(step->waiting, 2);
    for (int i = 0; i < 4; i++) {
        end_item(step, true);
        look(&run, 4 + i);
    }
    assert_int_equal(step->status, WORKFLOW_STEP_FAILED);
    assert_int_equal(step->done, 4);
    assert_int_equal(run.status, WORKFLOW_FAILED);
}

static void many_items_start_in_several_decisions(void **state)
{
    struct workflow_run_state run = run_of(2);

    (void)state;
    run.steps[0].waiting = 70;
    run.steps[1].waiting = 70;
    look(&run, 1);
    assert_int_equal(run.steps[0].start + run.steps[1].start, WORKFLOW_STARTS_MAX);
    look(&run, 2);
    assert_int_equal(run.steps[0].active + run.steps[1].active, 140);
}

static void a_wait_ends_by_time(void **state)
{
    struct workflow_run_state run = run_of(1);

    (void)state;
    run.steps[0].timed = true;
    run.steps[0].waiting = 0;
    run.steps[0].wait_ms = 500;
    look(&run, 1000);
    look(&run, 1499);
    assert_int_equal(run.steps[0].status, WORKFLOW_STEP_RUNNING);
    look(&run, 1500);
    assert_int_equal(run.steps[0].status, WORKFLOW_STEP_COMPLETED);
    assert_int_equal(run.status, WORKFLOW_COMPLETED);
}

static void a_paused_run_starts_nothing_and_resumes(void **state)
{
    struct workflow_run_state run = run_of(2);

    (void)state;
    run.steps[1].depends = BIT(0);
    look(&run, 1);
    workflow_decide(&run, WORKFLOW_EVENT_PAUSE, 2);
    assert_true(run.allowed);
    assert_int_equal(run.steps[0].jobs, WORKFLOW_JOBS_PAUSE);
    assert_int_equal(run.steps[1].jobs, 0);
    end_item(&run.steps[0], true); /* it was done before its worker heard of it */
    look(&run, 3);
    assert_int_equal(run.steps[0].status, WORKFLOW_STEP_COMPLETED);
    assert_int_equal(run.steps[1].status, WORKFLOW_STEP_WAITING);
    assert_int_equal(run.status, WORKFLOW_PAUSED);
    workflow_decide(&run, WORKFLOW_EVENT_PAUSE, 4);
    assert_false(run.allowed);
    workflow_decide(&run, WORKFLOW_EVENT_RESUME, 5);
    assert_true(run.allowed);
    look(&run, 6);
    assert_int_equal(run.steps[1].active, 1);
}

static void a_cancelled_run_ends_when_its_jobs_have(void **state)
{
    struct workflow_run_state run = run_of(3);

    (void)state;
    run.steps[0].waiting = 3;
    run.steps[0].parallel_max = 1;
    run.steps[1].depends = BIT(0);
    run.steps[1].when = WORKFLOW_WHEN_ALWAYS;
    run.steps[2].timed = true;
    run.steps[2].waiting = 0;
    run.steps[2].wait_ms = 1000000;
    look(&run, 1);
    workflow_decide(&run, WORKFLOW_EVENT_CANCEL, 2);
    assert_int_equal(run.steps[0].jobs, WORKFLOW_JOBS_CANCEL);
    assert_int_equal(run.status, WORKFLOW_CANCELLING);
    assert_int_equal(run.steps[1].status, WORKFLOW_STEP_CANCELLED);
    assert_int_equal(run.steps[2].status, WORKFLOW_STEP_CANCELLED);
    workflow_decide(&run, WORKFLOW_EVENT_CANCEL, 3);
    assert_false(run.allowed);
    look(&run, 4);
    assert_int_equal(run.status, WORKFLOW_CANCELLING);
    end_item(&run.steps[0], false);
    look(&run, 5);
    assert_int_equal(run.status, WORKFLOW_CANCELLED);
    assert_int_equal(run.steps[0].status, WORKFLOW_STEP_CANCELLED);
    assert_int_equal(run.steps[0].waiting, 2);
}

/* As the store counts after a retry: what failed waits again, what is done stays. */
static void count_again(struct workflow_run_state *run)
{
    for (uint32_t i = 0; i < run->step_count; i++) {
        struct workflow_step_state *step = &run->steps[i];
        if (step->status == WORKFLOW_STEP_WAITING) {
            step->waiting += step->failed;
            step->failed = 0;
        }
    }
}

static void a_retry_runs_what_failed_and_all_behind_it(void **state)
{
    struct workflow_run_state run = run_of(4);

    (void)state;
    run.steps[0].waiting = 2;
    run.steps[1].depends = BIT(0);
    run.steps[2].depends = BIT(1);
    run.steps[2].when = WORKFLOW_WHEN_ALWAYS;
    look(&run, 1);
    end_item(&run.steps[0], true);
    end_item(&run.steps[0], false);
    end_item(&run.steps[3], true);
    look(&run, 2);
    end_item(&run.steps[2], true);
    look(&run, 3);
    assert_int_equal(run.status, WORKFLOW_FAILED);
    workflow_decide(&run, WORKFLOW_EVENT_RETRY, 4);
    assert_true(run.allowed);
    assert_int_equal(run.status, WORKFLOW_RUNNING);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(run.steps[i].status, WORKFLOW_STEP_WAITING);
        assert_int_equal(run.steps[i].attempt, 2);
        assert_int_equal(run.steps[i].started_ms, 0);
    }
    assert_int_equal(run.steps[3].status, WORKFLOW_STEP_COMPLETED);
    assert_int_equal(run.steps[3].attempt, 1);
    count_again(&run);
    look(&run, 5);
    assert_int_equal(run.steps[0].start, 1);
    end_item(&run.steps[0], true);
    look(&run, 6);
    assert_int_equal(run.steps[1].start, 1);
}

static void what_does_not_apply_is_refused_with_the_reason(void **state)
{
    static const struct {
        enum workflow_run_status status;
        enum workflow_event event;
        const char *reason;
    } cases[] = {
        {WORKFLOW_COMPLETED, WORKFLOW_EVENT_LOOK, "it has ended"},
        {WORKFLOW_COMPLETED, WORKFLOW_EVENT_CANCEL, "it has ended"},
        {WORKFLOW_FAILED, WORKFLOW_EVENT_PAUSE, "it has ended or is being cancelled"},
        {WORKFLOW_CANCELLING, WORKFLOW_EVENT_PAUSE, "it has ended or is being cancelled"},
        {WORKFLOW_RUNNING, WORKFLOW_EVENT_RESUME, "it is not paused"},
        {WORKFLOW_RUNNING, WORKFLOW_EVENT_RETRY, "it has not ended yet"},
        {WORKFLOW_COMPLETED, WORKFLOW_EVENT_RETRY, "nothing in it failed"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct workflow_run_state run = run_of(1);
        run.status = cases[i].status;
        workflow_decide(&run, cases[i].event, 1);
        assert_false(run.allowed);
        assert_string_equal(run.reason, cases[i].reason);
        assert_int_equal(run.status, cases[i].status);
    }
}

static void circles_are_found(void **state)
{
    const uint64_t none[] = {0, BIT(0), BIT(0) | BIT(1)};
    const uint64_t self[] = {0, BIT(1)};
    const uint64_t circle[] = {BIT(3), BIT(2), BIT(1), 0, BIT(1)}; /* 4 only hangs on it */
    int found;

    (void)state;
    assert_int_equal(workflow_find_cycle(none, 3), -1);
    assert_int_equal(workflow_find_cycle(self, 2), 1);
    found = workflow_find_cycle(circle, 5);
    assert_true(found == 1 || found == 2);
}

static void names_go_both_ways(void **state)
{
    enum workflow_run_status run = WORKFLOW_RUNNING;
    enum workflow_step_status step = WORKFLOW_STEP_WAITING;

    (void)state;
    assert_true(workflow_run_status_parse("cancelling", &run) && run == WORKFLOW_CANCELLING);
    assert_string_equal(workflow_run_status_name(WORKFLOW_FAILED), "failed");
    assert_false(workflow_run_status_parse("waiting", &run));
    assert_true(workflow_step_status_parse("skipped", &step) && step == WORKFLOW_STEP_SKIPPED);
    assert_string_equal(workflow_step_status_name(WORKFLOW_STEP_WAITING), "waiting");
    assert_false(workflow_step_status_parse("", &step));
}

/* ---- random walks ---- */

static uint32_t dice(uint64_t *seed, uint32_t sides)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33) % sides;
}

static struct workflow_run_state random_run(uint64_t *seed)
{
    struct workflow_run_state run = run_of(1 + dice(seed, 12));

    for (uint32_t i = 0; i < run.step_count; i++) {
        struct workflow_step_state *step = &run.steps[i];
        for (uint32_t k = 0; k < i; k++) {
            if (dice(seed, 3) == 0)
                step->depends |= BIT(k);
        }
        step->when = (enum workflow_when)dice(seed, 3);
        step->timed = dice(seed, 5) == 0;
        step->wait_ms = (int64_t)dice(seed, 20);
        step->waiting = step->timed ? 0 : 1 + dice(seed, 6);
        step->parallel_max = dice(seed, 3);
    }
    return run;
}

/* Nothing starts before what it depends on has ended; limits hold; nothing starts in a run that is
 * paused or being cancelled. */
static void check_run(const struct workflow_run_state *run)
{
    for (uint32_t i = 0; i < run->step_count; i++) {
        const struct workflow_step_state *step = &run->steps[i];
        if (step->parallel_max > 0)
            assert_true(step->active <= step->parallel_max);
        if (run->status != WORKFLOW_RUNNING)
            assert_int_equal(step->start, 0);
        if (workflow_step_is_final(step->status))
            assert_int_equal(step->active, 0);
        if (step->status == WORKFLOW_STEP_WAITING || step->status == WORKFLOW_STEP_CANCELLED)
            continue;
        for (uint32_t k = 0; k < run->step_count; k++) {
            if ((step->depends & BIT(k)) != 0)
                assert_true(workflow_step_is_final(run->steps[k].status));
        }
    }
}

static void every_walk_ends_and_keeps_the_rules(void **state)
{
    (void)state;
    for (uint64_t s = 1; s <= 2000; s++) {
        uint64_t seed = s;
        struct workflow_run_state run = random_run(&seed);
        int tries = 0;
        for (int64_t now = 1; !workflow_run_is_final(run.status); now++) {
            uint32_t fate = dice(&seed, 60);
            assert_true(now < 5000);
            if (fate < 4)
                workflow_decide(&run, (enum workflow_event)(WORKFLOW_EVENT_PAUSE + fate % 2), now);
            if (fate == 5 && now > 20)
                workflow_decide(&run, WORKFLOW_EVENT_CANCEL, now);
            look(&run, now);
            check_run(&run);
            for (uint32_t i = 0; i < run.step_count; i++) {
                if (run.steps[i].active > 0 && dice(&seed, 2) == 0)
                    end_item(&run.steps[i], dice(&seed, 4) != 0);
            }
            if (workflow_run_is_final(run.status) && run.status != WORKFLOW_COMPLETED &&
                tries++ < 3) {
                workflow_decide(&run, WORKFLOW_EVENT_RETRY, now);
                assert_true(run.allowed);
                count_again(&run);
            }
        }
        for (uint32_t i = 0; i < run.step_count; i++)
            assert_true(workflow_step_is_final(run.steps[i].status));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_follow_what_they_depend_on),
        cmocka_unit_test(a_failure_goes_the_way_that_was_made_for_it),
        cmocka_unit_test(a_batch_keeps_its_limit_and_the_rest_goes_on_after_a_failure),
        cmocka_unit_test(many_items_start_in_several_decisions),
        cmocka_unit_test(a_wait_ends_by_time),
        cmocka_unit_test(a_paused_run_starts_nothing_and_resumes),
        cmocka_unit_test(a_cancelled_run_ends_when_its_jobs_have),
        cmocka_unit_test(a_retry_runs_what_failed_and_all_behind_it),
        cmocka_unit_test(what_does_not_apply_is_refused_with_the_reason),
        cmocka_unit_test(circles_are_found),
        cmocka_unit_test(names_go_both_ways),
        cmocka_unit_test(every_walk_ends_and_keeps_the_rules),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
