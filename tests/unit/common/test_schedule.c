/* What is done about due times that have come: the plan, without a database. */
#include "tests/unit/common/unit.h"

#include "common/civil.h"
#include "common/json.h"
#include "common/schedule.h"

static struct schedule *make(const char *cron, const char *misfire, int limit, int jitter_s)
{
    struct schedule *schedule = xcalloc(1, sizeof *schedule);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    schedule->fields = json_pack("{s:s, s:s, s:s, s:s, s:i}", "name", "x", "schedule", cron,
                                 "timezone", "UTC", "misfire", misfire, "jitter", jitter_s * 1000);
    if (limit > 0)
        json_set_i64(schedule->fields, "misfire_limit", limit);
    assert_ok(schedule_check(schedule, &problem, &err), err);
    return schedule;
}

/* Daily at midnight, first due on 1 March, asked `seconds` after the midnight of `day` March. */
static struct schedule_plan plan_at(const char *misfire, int limit, int jitter_s, int day,
                                    int seconds)
{
    auto_schedule *schedule = make("@daily", misfire, limit, jitter_s);
    struct schedule_plan plan;
    struct error err = ERROR_NONE;

    schedule->next_s = civil_days(2026, 3, 1) * DAY_SECONDS;
    schedule->now_s = civil_days(2026, 3, day) * DAY_SECONDS + seconds;
    assert_ok(schedule_plan(schedule, &plan, &err), err);
    return plan;
}

static int day_of(int64_t at)
{
    struct civil date;

    civil_date(floor_div(at, DAY_SECONDS), &date);
    return date.day;
}

static void one_that_is_in_time_just_runs(void **state)
{
    static const char *const all[] = {"run_once", "skip", "run_all"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        struct schedule_plan plan = plan_at(all[i], 0, 0, 1, SCHEDULE_GRACE_S);
        assert_true(plan.fires && plan.late_s == 0 && plan.missed_total == 0);
        assert_int_equal(day_of(plan.due_s), 1);
        assert_int_equal(day_of(plan.next_s), 2);
    }
}

static void missed_ones_get_one_run_all_or_none(void **state)
{
    struct schedule_plan plan = plan_at("run_once", 0, 0, 5, 3600);

    (void)state;
    assert_true(plan.fires && plan.late_s == 3600);
    assert_int_equal(day_of(plan.due_s), 5);
    assert_int_equal(plan.missed_count, 4);
    assert_int_equal(day_of(plan.missed[0]), 1);
    assert_int_equal(day_of(plan.next_s), 6);
    plan = plan_at("skip", 0, 0, 5, 3600);
    assert_false(plan.fires);
    assert_int_equal(plan.missed_total, 5);
    assert_int_equal(day_of(plan.next_s), 6);
    plan = plan_at("run_all", 2, 0, 5, 3600);
    assert_true(plan.fires && plan.late_s == 25 * 3600);
    assert_int_equal(day_of(plan.due_s), 4);
    assert_int_equal(plan.missed_total, 3);
    assert_int_equal(day_of(plan.next_s), 5);
}

static void one_in_time_stands_for_those_missed_before(void **state)
{
    struct schedule_plan plan = plan_at("run_once", 0, 0, 5, 10);

    (void)state;
    assert_true(plan.fires && plan.late_s == 0);
    assert_int_equal(day_of(plan.due_s), 5);
    assert_int_equal(plan.missed_total, 4);
    plan = plan_at("skip", 0, 0, 5, 10);
    assert_true(plan.fires);
    assert_int_equal(plan.missed_total, 4);
}

static void jitter_makes_nothing_late(void **state)
{
    struct schedule_plan plan = plan_at("skip", 0, 3600, 1, 3600);

    (void)state;
    assert_true(plan.fires && plan.late_s == 0);
}

static void many_missed_minutes_are_counted_and_the_newest_listed(void **state)
{
    auto_schedule *schedule = make("* * * * *", "skip", 0, 0);
    struct schedule_plan plan;
    struct error err = ERROR_NONE;

    (void)state;
    schedule->next_s = civil_days(2025, 1, 1) * DAY_SECONDS;
    schedule->now_s = civil_days(2025, 3, 1) * DAY_SECONDS + 30;
    assert_ok(schedule_plan(schedule, &plan, &err), err);
    assert_true(plan.fires && plan.due_s == schedule->now_s - 30);
    assert_int_equal(plan.missed_count, SCHEDULE_MISSED_ROWS);
    assert_int_equal(plan.missed_total, 59 * 1440);
    /* Ten years: counting is cut short, the end is the same. */
    schedule->next_s = civil_days(2015, 1, 1) * DAY_SECONDS;
    assert_ok(schedule_plan(schedule, &plan, &err), err);
    assert_true(plan.fires && plan.due_s == schedule->now_s - 30);
    assert_int_equal(plan.next_s, schedule->now_s + 30);
    assert_true(plan.missed_total >= 600000);
}

static void the_delay_stays_within_the_jitter(void **state)
{
    auto_schedule *schedule = make("@daily", "skip", 0, 2);

    (void)state;
    for (int i = 0; i < 1000; i++)
        assert_in_range(schedule_draw_delay_ms(schedule), 0, 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_that_is_in_time_just_runs),
        cmocka_unit_test(missed_ones_get_one_run_all_or_none),
        cmocka_unit_test(one_in_time_stands_for_those_missed_before),
        cmocka_unit_test(jitter_makes_nothing_late),
        cmocka_unit_test(many_missed_minutes_are_counted_and_the_newest_listed),
        cmocka_unit_test(the_delay_stays_within_the_jitter),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
