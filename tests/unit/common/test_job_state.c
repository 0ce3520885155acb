/* The life cycle as one pure function: every state with every event, and random walks. */
#include <string.h>

#include "common/job_state.h"
#include "tests/unit/common/unit.h"

#define LEASE_MS INT64_C(30000)

static struct job_machine queued(void)
{
    return (struct job_machine){
        .job = JOB_PENDING,
        .task = TASK_QUEUED,
        .last_task = true,
        .max_attempts = 3,
        .losses_max = 5,
        .retry_initial_ms = 1000,
        .retry_max_ms = 8000,
    };
}

static struct job_decision decide(const struct job_machine *row, enum job_event event,
                                  int64_t now_ms)
{
    struct job_event_input input = {
        .event = event, .now_ms = now_ms, .random = 7, .lease_ms = LEASE_MS};

    return job_decide(row, &input);
}

static struct job_machine leased(void)
{
    struct job_machine row = queued();

    return decide(&row, JOB_EVENT_LEASED, 1000).row;
}

static void a_lease_raises_the_epoch_and_starts_the_job(void **state)
{
    struct job_machine row = queued();
    struct job_decision d = decide(&row, JOB_EVENT_LEASED, 1000);

    (void)state;
    assert_true(d.allowed);
    assert_int_equal(d.row.job, JOB_RUNNING);
    assert_int_equal(d.row.task, TASK_LEASED);
    assert_int_equal(d.row.epoch, 1);
    assert_int_equal(d.row.lease_until_ms, 1000 + LEASE_MS);
    assert_string_equal(d.event, "job.started");
    assert_true(d.effects & JOB_EFFECT_STARTED);
    assert_true(d.effects & JOB_EFFECT_NEW_TOKEN);
}

static void a_task_in_back_off_is_not_leased(void **state)
{
    struct job_machine row = queued();

    (void)state;
    row.not_before_ms = 5000;
    assert_false(decide(&row, JOB_EVENT_LEASED, 4999).allowed);
    assert_true(decide(&row, JOB_EVENT_LEASED, 5000).allowed);
}

static void only_errors_count_as_attempts(void **state)
{
    struct job_machine row = leased();
    struct job_decision lost = decide(&row, JOB_EVENT_LEASE_LOST, 1000 + LEASE_MS);
    struct job_decision yielded = decide(&row, JOB_EVENT_YIELDED, 2000);

    (void)state;
    assert_int_equal(lost.row.attempt, 0);
    assert_int_equal(lost.row.job, JOB_PENDING);
    assert_string_equal(lost.event, "job.lease_lost");
    assert_int_equal(yielded.row.attempt, 0);
    assert_int_equal(yielded.row.losses, 0);
}

static void a_lease_that_still_runs_is_not_lost(void **state)
{
    struct job_machine row = leased();

    (void)state;
    assert_false(decide(&row, JOB_EVENT_LEASE_LOST, 1000 + LEASE_MS - 1).allowed);
}

static void retryable_errors_back_off_and_give_up_at_the_limit(void **state)
{
    struct job_machine row = leased();
    struct job_event_input input = {
        .event = JOB_EVENT_TASK_FAILED, .now_ms = 10000, .lease_ms = LEASE_MS, .retryable = true};
    int64_t longest = 1000;

    (void)state;
    for (uint32_t attempt = 1; attempt < 3; attempt++) {
        for (uint64_t random = 0; random < 5000; random += 499) {
            input.random = random;
            struct job_decision d = job_decide(&row, &input);
            int64_t delay = d.row.not_before_ms - input.now_ms;
            assert_string_equal(d.event, "job.retry_scheduled");
            assert_int_equal(d.row.attempt, attempt);
            assert_true(delay >= longest / 2 && delay <= longest);
        }
        row = job_decide(&row, &input).row;
        row.not_before_ms = 0;
        row = decide(&row, JOB_EVENT_LEASED, 10000).row;
        longest *= 2;
    }
    assert_int_equal(job_decide(&row, &input).row.job, JOB_FAILED);
}

static void other_errors_end_the_job_at_once(void **state)
{
    struct job_machine row = leased();
    struct job_decision d = decide(&row, JOB_EVENT_TASK_FAILED, 2000);

    (void)state;
    assert_int_equal(d.row.job, JOB_FAILED);
    assert_int_equal(d.row.task, TASK_FAILED);
    assert_true(d.effects & JOB_EFFECT_OUTBOX);
    assert_true(d.effects & JOB_EFFECT_CLEAN);
}

static void losses_without_progress_end_the_job_and_progress_forgives(void **state)
{
    struct job_machine row = queued();

    (void)state;
    for (int i = 0; i < 4; i++) {
        row = decide(&row, JOB_EVENT_LEASED, 0).row;
        row = decide(&row, JOB_EVENT_LEASE_LOST, LEASE_MS).row;
        assert_int_equal(row.job, JOB_PENDING);
    }
    row = decide(&row, JOB_EVENT_LEASED, 0).row;
    struct job_machine moved = row;
    moved.bytes_done = 1;
    assert_int_equal(decide(&moved, JOB_EVENT_LEASE_LOST, LEASE_MS).row.losses, 0);
    assert_int_equal(decide(&row, JOB_EVENT_LEASE_LOST, LEASE_MS).row.job, JOB_FAILED);
}

static void a_cancel_is_final_at_once_only_without_a_worker(void **state)
{
    struct job_machine waits = queued();
    struct job_machine runs = leased();
    struct job_decision d = decide(&waits, JOB_EVENT_CANCEL_REQUESTED, 0);

    (void)state;
    assert_int_equal(d.row.job, JOB_CANCELLED);
    assert_int_equal(d.row.task, TASK_CANCELLED);
    d = decide(&runs, JOB_EVENT_CANCEL_REQUESTED, 0);
    assert_int_equal(d.row.job, JOB_CANCELLING);
    assert_true(d.row.task_cancel);
    assert_int_equal(decide(&d.row, JOB_EVENT_LEASE_LOST, 1000 + LEASE_MS).row.job, JOB_CANCELLED);
    assert_int_equal(decide(&d.row, JOB_EVENT_TASK_FAILED, 0).row.job, JOB_CANCELLED);
    assert_int_equal(decide(&d.row, JOB_EVENT_YIELDED, 0).row.job, JOB_CANCELLED);
    assert_false(decide(&d.row, JOB_EVENT_PERMITTED, 0).allowed);
    assert_int_equal(decide(&d.row, JOB_EVENT_TASK_DONE, 0).row.job, JOB_COMPLETED);
}

static void a_permitted_task_has_a_lease_like_any_other(void **state)
{
    struct job_machine row = leased();
    struct job_decision d = decide(&row, JOB_EVENT_PERMITTED, 5000);

    (void)state;
    assert_int_equal(d.row.task, TASK_FINISHING);
    assert_int_equal(d.row.lease_until_ms, 5000 + LEASE_MS);
    assert_int_equal(decide(&d.row, JOB_EVENT_RENEWED, 6000).row.lease_until_ms, 6000 + LEASE_MS);
    assert_false(decide(&d.row, JOB_EVENT_LEASE_LOST, 5000 + LEASE_MS - 1).allowed);
    assert_int_equal(decide(&d.row, JOB_EVENT_LEASE_LOST, 5000 + LEASE_MS).row.task, TASK_QUEUED);
    assert_true(decide(&d.row, JOB_EVENT_PERMITTED, 6000).allowed);
    assert_int_equal(decide(&d.row, JOB_EVENT_TASK_DONE, 6000).row.job, JOB_COMPLETED);
}

static void a_job_with_a_further_task_goes_on(void **state)
{
    struct job_machine row = leased();
    struct job_decision d;

    (void)state;
    row.last_task = false;
    d = decide(&row, JOB_EVENT_TASK_DONE, 0);
    assert_int_equal(d.row.job, JOB_RUNNING);
    assert_int_equal(d.row.task, TASK_DONE);
    assert_true(d.effects & JOB_EFFECT_RELEASE_NEXT);
    row.job = JOB_CANCELLING;
    assert_int_equal(decide(&row, JOB_EVENT_TASK_DONE, 0).row.job, JOB_CANCELLED);
}

static void a_retry_starts_counting_anew(void **state)
{
    struct job_machine row = leased();
    struct job_decision d = decide(&row, JOB_EVENT_TASK_FAILED, 0);

    (void)state;
    d.row.attempt = 3;
    d = decide(&d.row, JOB_EVENT_RETRY_REQUESTED, 77);
    assert_int_equal(d.row.job, JOB_PENDING);
    assert_int_equal(d.row.task, TASK_QUEUED);
    assert_int_equal(d.row.attempt, 0);
    assert_int_equal(d.row.not_before_ms, 77);
    assert_int_equal(d.row.epoch, row.epoch);
}

static void a_pending_job_is_held_until_it_is_resumed(void **state)
{
    struct job_machine row = queued();
    struct job_decision d = decide(&row, JOB_EVENT_PAUSE_REQUESTED, 0);

    (void)state;
    assert_true(d.allowed);
    assert_int_equal(d.row.job, JOB_PAUSED);
    assert_string_equal(d.event, "job.paused");
    assert_false(decide(&d.row, JOB_EVENT_LEASED, 1000).allowed);
    assert_false(decide(&d.row, JOB_EVENT_PAUSE_REQUESTED, 0).allowed);
    assert_int_equal(decide(&d.row, JOB_EVENT_CANCEL_REQUESTED, 0).row.job, JOB_CANCELLED);
    d = decide(&d.row, JOB_EVENT_RESUME_REQUESTED, 0);
    assert_int_equal(d.row.job, JOB_PENDING);
    assert_true(decide(&d.row, JOB_EVENT_LEASED, 1000).allowed);
    assert_false(decide(&d.row, JOB_EVENT_RESUME_REQUESTED, 0).allowed);
}

static void a_running_job_is_paused_by_its_worker_handing_it_back(void **state)
{
    struct job_machine row = leased();
    struct job_decision d = decide(&row, JOB_EVENT_PAUSE_REQUESTED, 2000);
    struct job_decision back;

    (void)state;
    assert_int_equal(d.row.job, JOB_PAUSED);
    assert_int_equal(d.row.task, TASK_LEASED);
    assert_string_equal(d.event, "job.pausing");
    assert_true(decide(&d.row, JOB_EVENT_RENEWED, 3000).allowed);
    back = decide(&d.row, JOB_EVENT_YIELDED, 3000);
    assert_int_equal(back.row.job, JOB_PAUSED);
    assert_int_equal(back.row.task, TASK_QUEUED);
    assert_string_equal(back.event, "job.paused");
    assert_int_equal(back.row.attempt, 0);
    assert_false(back.effects & JOB_EFFECT_CLEAN);
    assert_int_equal(decide(&d.row, JOB_EVENT_LEASE_LOST, 2000 + LEASE_MS).row.job, JOB_PAUSED);
    assert_int_equal(decide(&d.row, JOB_EVENT_TASK_FAILED, 0).row.job, JOB_FAILED);
    assert_int_equal(decide(&d.row, JOB_EVENT_CANCEL_REQUESTED, 0).row.job, JOB_CANCELLING);
    /* the worker was done, or has not heard of it */
    assert_int_equal(decide(&d.row, JOB_EVENT_TASK_DONE, 0).row.job, JOB_COMPLETED);
    assert_int_equal(decide(&d.row, JOB_EVENT_RESUME_REQUESTED, 0).row.job, JOB_RUNNING);
    d.row.last_task = false;
    d = decide(&d.row, JOB_EVENT_TASK_DONE, 0);
    assert_int_equal(d.row.job, JOB_PAUSED);
    assert_true(d.effects & JOB_EFFECT_RELEASE_NEXT);
}

static void a_rule_makes_a_job_fail_when_its_worker_has_stopped(void **state)
{
    struct job_machine row = queued();
    struct job_decision d = decide(&row, JOB_EVENT_DOOMED, 0);

    (void)state;
    assert_int_equal(d.row.job, JOB_FAILED);
    assert_int_equal(d.row.task, TASK_FAILED);
    assert_string_equal(d.event, "job.failed");
    row = leased();
    d = decide(&row, JOB_EVENT_DOOMED, 0);
    assert_int_equal(d.row.job, JOB_CANCELLING);
    assert_true(d.row.task_cancel);
    assert_false(decide(&d.row, JOB_EVENT_PERMITTED, 0).allowed);
    assert_false(decide(&d.row, JOB_EVENT_CANCEL_REQUESTED, 0).allowed);
    assert_int_equal(decide(&d.row, JOB_EVENT_YIELDED, 0).row.job, JOB_FAILED);
    assert_int_equal(decide(&d.row, JOB_EVENT_TASK_FAILED, 0).row.job, JOB_FAILED);
    assert_true(decide(&d.row, JOB_EVENT_TASK_FAILED, 0).effects & JOB_EFFECT_CLEAN);
    assert_int_equal(decide(&d.row, JOB_EVENT_LEASE_LOST, 1000 + LEASE_MS).row.job, JOB_FAILED);
    assert_int_equal(decide(&d.row, JOB_EVENT_TASK_DONE, 0).row.job, JOB_COMPLETED);
    d = decide(&d.row, JOB_EVENT_YIELDED, 0);
    assert_false(decide(&d.row, JOB_EVENT_DOOMED, 0).allowed);
    assert_false(decide(&d.row, JOB_EVENT_RETRY_REQUESTED, 0).row.doomed);
}

static void a_rule_does_not_end_a_job_by_a_task_that_was_just_done(void **state)
{
    static const enum task_state ended[] = {TASK_DONE, TASK_FAILED, TASK_CANCELLED};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(ended); i++) {
        struct job_machine row = leased(); /* its next task is queued */
        row.task = ended[i];
        assert_false(decide(&row, JOB_EVENT_DOOMED, 0).allowed);
    }
}

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *seed >> 33;
}

static void check_step(const struct job_machine *old, const struct job_event_input *input,
                       const struct job_decision *d)
{
    if (!d->allowed) {
        assert_memory_equal(&d->row, old, sizeof *old);
        assert_non_null(d->reason);
        assert_int_equal(d->effects, 0);
        return;
    }
    assert_true(d->row.epoch >= old->epoch && d->row.epoch <= old->epoch + 1);
    if (d->row.epoch > old->epoch)
        assert_int_equal(input->event, JOB_EVENT_LEASED);
    if (d->row.attempt > old->attempt)
        assert_int_equal(input->event, JOB_EVENT_TASK_FAILED);
    if (job_status_is_final(old->job))
        assert_int_equal(input->event, JOB_EVENT_RETRY_REQUESTED);
    if (job_status_is_final(d->row.job)) {
        assert_true(d->effects & JOB_EFFECT_FINAL);
        assert_true(d->effects & JOB_EFFECT_OUTBOX);
        assert_true(d->row.task == TASK_DONE || d->row.task == TASK_FAILED ||
                    d->row.task == TASK_CANCELLED);
    }
    if (d->row.task == TASK_LEASED || d->row.task == TASK_FINISHING)
        assert_true(d->row.job == JOB_RUNNING || d->row.job == JOB_CANCELLING ||
                    d->row.job == JOB_PAUSED);
    if (d->row.epoch > old->epoch)
        assert_int_equal(d->row.job, JOB_RUNNING); /* nobody is given what is held */
    if ((d->effects & JOB_EFFECT_HISTORY) != 0)
        assert_non_null(d->event);
}

static void random_walks_keep_the_rules(void **state)
{
    (void)state;
    for (uint64_t walk = 0; walk < 2000; walk++) {
        struct job_machine row = queued();
        uint64_t seed = walk;
        int64_t now = 0;
        row.last_task = walk % 3 != 0;
        for (int step = 0; step < 60; step++) {
            struct job_event_input input = {
                .event = (enum job_event)(next_random(&seed) % (JOB_EVENT_RETRY_REQUESTED + 1)),
                .now_ms = now += (int64_t)(next_random(&seed) % 20000),
                .random = next_random(&seed),
                .lease_ms = LEASE_MS,
                .bytes_done = next_random(&seed) % 1000,
                .retryable = next_random(&seed) % 2 == 0,
            };
            struct job_decision d = job_decide(&row, &input);
            check_step(&row, &input, &d);
            row = d.row;
        }
    }
}

static void names_go_both_ways(void **state)
{
    (void)state;
    for (int i = JOB_PENDING; i <= JOB_CANCELLED; i++) {
        enum job_status back;
        assert_true(job_status_parse(job_status_name((enum job_status)i), &back));
        assert_int_equal(back, i);
    }
    for (int i = TASK_BLOCKED; i <= TASK_CANCELLED; i++) {
        enum task_state back;
        assert_true(task_state_parse(task_state_name((enum task_state)i), &back));
        assert_int_equal(back, i);
    }
    assert_false(job_status_parse("nonsense", &(enum job_status){0}));
}

static struct job_decision failed(const struct job_machine *row)
{
    struct job_event_input input = {.event = JOB_EVENT_TASK_FAILED, .now_ms = 2000, .random = 7};

    return job_decide(row, &input);
}

static void the_job_goes_on_without_a_hook_that_may_fail(void **state)
{
    struct job_machine row = leased();
    struct job_decision d;

    (void)state;
    row.may_fail = true;
    row.last_task = false;
    d = failed(&row);
    assert_true(d.allowed);
    assert_int_equal(d.row.task, TASK_FAILED);
    assert_int_equal(d.row.job, JOB_RUNNING);
    assert_string_equal(d.event, "job.hook_failed");
    assert_int_equal(d.effects, JOB_EFFECT_HISTORY | JOB_EFFECT_RELEASE_NEXT);
    row.job = JOB_PAUSED; /* what is next waits */
    assert_int_equal(failed(&row).row.job, JOB_PAUSED);
}

static void a_last_hook_that_may_fail_completes_the_job(void **state)
{
    struct job_machine row = leased();
    struct job_decision d;

    (void)state;
    row.may_fail = true;
    d = failed(&row);
    assert_int_equal(d.row.task, TASK_FAILED);
    assert_int_equal(d.row.job, JOB_COMPLETED);
    assert_string_equal(d.event, "job.completed");
    assert_int_equal(d.effects, JOB_EFFECT_HISTORY | JOB_EFFECT_OUTBOX | JOB_EFFECT_FINAL);
}

static void a_hook_whose_workers_die_is_given_up_too(void **state)
{
    struct job_machine row = leased();
    struct job_decision d;

    (void)state;
    row.may_fail = true;
    row.last_task = false;
    row.losses = row.losses_max - 1;
    d = decide(&row, JOB_EVENT_LEASE_LOST, row.lease_until_ms);
    assert_string_equal(d.event, "job.hook_failed");
    assert_true(d.effects & JOB_EFFECT_RELEASE_NEXT);
    assert_true(d.effects & JOB_EFFECT_DROP_TOKEN);
}

static void a_cancel_beats_a_hook_that_may_fail(void **state)
{
    struct job_machine row = leased();

    (void)state;
    row.may_fail = true;
    row.job = JOB_CANCELLING;
    row.task_cancel = true;
    assert_int_equal(failed(&row).row.job, JOB_CANCELLED);
}

static void a_hook_with_tries_left_is_tried_again(void **state)
{
    struct job_machine row = leased();
    struct job_event_input input = {
        .event = JOB_EVENT_TASK_FAILED, .now_ms = 2000, .random = 7, .retryable = true};

    (void)state;
    row.may_fail = true;
    assert_string_equal(job_decide(&row, &input).event, "job.retry_scheduled");
    row.max_attempts = 1;
    row.last_task = false;
    assert_string_equal(job_decide(&row, &input).event, "job.hook_failed");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_job_goes_on_without_a_hook_that_may_fail),
        cmocka_unit_test(a_last_hook_that_may_fail_completes_the_job),
        cmocka_unit_test(a_hook_whose_workers_die_is_given_up_too),
        cmocka_unit_test(a_cancel_beats_a_hook_that_may_fail),
        cmocka_unit_test(a_hook_with_tries_left_is_tried_again),
        cmocka_unit_test(a_lease_raises_the_epoch_and_starts_the_job),
        cmocka_unit_test(a_task_in_back_off_is_not_leased),
        cmocka_unit_test(only_errors_count_as_attempts),
        cmocka_unit_test(a_lease_that_still_runs_is_not_lost),
        cmocka_unit_test(retryable_errors_back_off_and_give_up_at_the_limit),
        cmocka_unit_test(other_errors_end_the_job_at_once),
        cmocka_unit_test(losses_without_progress_end_the_job_and_progress_forgives),
        cmocka_unit_test(a_cancel_is_final_at_once_only_without_a_worker),
        cmocka_unit_test(a_permitted_task_has_a_lease_like_any_other),
        cmocka_unit_test(a_job_with_a_further_task_goes_on),
        cmocka_unit_test(a_retry_starts_counting_anew),
        cmocka_unit_test(a_pending_job_is_held_until_it_is_resumed),
        cmocka_unit_test(a_running_job_is_paused_by_its_worker_handing_it_back),
        cmocka_unit_test(a_rule_makes_a_job_fail_when_its_worker_has_stopped),
        cmocka_unit_test(a_rule_does_not_end_a_job_by_a_task_that_was_just_done),
        cmocka_unit_test(random_walks_keep_the_rules),
        cmocka_unit_test(names_go_both_ways),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
