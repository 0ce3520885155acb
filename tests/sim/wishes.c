/* What users ask about when a job may run: a deadline, other jobs that come first, time windows. */
#include "common/clock.h"
#include "common/time_window.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

#define PER_CENT   10000U
#define DAY_MINUTE 1440
#define EARLY_MAX  2 /* windows of a minute or two, soon */
#define OPEN_MIN   4 /* and one that stays open, so that every job can end */
#define OPEN_MAX   6
#define HOURS_10   600

static json_t *window(int64_t from_minute, int64_t until_minute)
{
    return json_pack(
        "{s:o, s:o, s:s}", "start_time",
        json_sprintf("%02d:%02d", (int)(from_minute % DAY_MINUTE) / 60, (int)(from_minute % 60)),
        "end_time",
        json_sprintf("%02d:%02d", (int)(until_minute % DAY_MINUTE) / 60, (int)(until_minute % 60)),
        "timezone", "UTC");
}

static json_t *draw_windows(void)
{
    int64_t minute = store_clock_ms() / 60000;
    int64_t open = minute + sim_between(OPEN_MIN, OPEN_MAX);
    auto_json *given = json_array();
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    json_t *windows = NULL;

    for (int64_t i = sim_between(0, EARLY_MAX + 1); i > 0; i--) {
        int64_t from = minute + sim_between(-1, EARLY_MAX + 1);
        (void)json_array_append_new(given, window(from, from + sim_between(1, 2)));
    }
    (void)json_array_append_new(given, window(open, open + HOURS_10));
    if (time_windows_read(given, NULL, &windows, &problem, &err) < 0)
        sim_fail("windows: %s", err.message);
    return windows;
}

static json_t *draw_dependency(const struct world_job *on)
{
    static const char *const states[] = {"completed", "completed", "failed", "final"};
    json_t *item = json_pack("{s:s, s:s}", "job_id", on->id, "required_state",
                             states[sim_below(ARRAY_LEN(states))]);

    if (sim_chance(30 * PER_CENT))
        (void)json_object_set_new(item, "timeout_ms", json_integer(sim_between(5000, 120000)));
    return item;
}

/* Of one or two that are there already; NULL: there are none. */
static json_t *draw_dependencies(void)
{
    const struct world_job *first = &world.jobs[sim_below(world.job_count)];
    const struct world_job *second = &world.jobs[sim_below(world.job_count)];
    json_t *list = json_array();

    if (first->acknowledged)
        (void)json_array_append_new(list, draw_dependency(first));
    if (second->acknowledged && second != first)
        (void)json_array_append_new(list, draw_dependency(second));
    return json_array_size(list) == 0 ? NULL : list;
}

void wishes_draw(struct world_wishes *out)
{
    static const char *const ends[] = {"continue", "pause", "cancel", "cancel"};

    if (sim_chance(35 * PER_CENT))
        clock_rfc3339(store_clock_ms() + sim_between(5000, 150000), out->deadline);
    if (sim_chance(50 * PER_CENT))
        out->depends_on = draw_dependencies();
    if (sim_chance(50 * PER_CENT)) {
        out->windows = draw_windows();
        out->on_window_end = ends[sim_below(ARRAY_LEN(ends))];
    }
}
