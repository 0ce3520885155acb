/* Prometheus text of counters, gauges and histograms. The registry is the process's, so each test
 * has names of its own. */
#include "tests/unit/common/unit.h"

#include "common/metrics.h"

#define RENDER_BYTES ((size_t)4 * MIB)

static char *render(void)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb;
    char *out = NULL;

    strbuf_init(&sb, RENDER_BYTES);
    metrics_render(&sb);
    assert_ok(strbuf_finish(&sb, &out, &err), err);
    return out;
}

static void expect_line(const char *text, const char *line)
{
    autofree char *wanted = xasprintf("\n%s\n", line);
    autofree char *whole = xasprintf("\n%s", text);

    if (strstr(whole, wanted) == NULL)
        fail_msg("'%s' is not in:\n%s", line, text);
}

static void counters_add_and_gauges_replace(void **state)
{
    autofree char *text = NULL;

    (void)state;
    metric_describe("unit_requests_total", "All \\ requests\nof it");
    metric_add("unit_requests_total", "code=\"200\"", 1);
    metric_add("unit_requests_total", "code=\"200\"", 2);
    metric_add("unit_requests_total", "code=\"500\"", 1);
    metric_set("unit_depth", "", 5);
    metric_set("unit_depth", "", 2.5);
    text = render();
    expect_line(text, "# HELP unit_requests_total All \\\\ requests\\nof it");
    expect_line(text, "# TYPE unit_requests_total counter");
    expect_line(text, "unit_requests_total{code=\"200\"} 3");
    expect_line(text, "unit_requests_total{code=\"500\"} 1");
    expect_line(text, "# TYPE unit_depth gauge");
    expect_line(text, "unit_depth 2.5");
}

static void histograms_are_cumulative(void **state)
{
    autofree char *text = NULL;

    (void)state;
    metric_observe("unit_seconds", "op=\"a\"", 0.003);
    metric_observe("unit_seconds", "op=\"a\"", 2);
    metric_observe("unit_seconds", "op=\"a\"", 99999);
    metric_observe("unit_plain_seconds", "", 1);
    text = render();
    expect_line(text, "# TYPE unit_seconds histogram");
    expect_line(text, "unit_seconds_bucket{op=\"a\",le=\"0.001\"} 0");
    expect_line(text, "unit_seconds_bucket{op=\"a\",le=\"0.005\"} 1");
    expect_line(text, "unit_seconds_bucket{op=\"a\",le=\"2.5\"} 2");
    expect_line(text, "unit_seconds_bucket{op=\"a\",le=\"3600\"} 2");
    expect_line(text, "unit_seconds_bucket{op=\"a\",le=\"+Inf\"} 3");
    expect_line(text, "unit_seconds_sum{op=\"a\"} 100001.003");
    expect_line(text, "unit_seconds_count{op=\"a\"} 3");
    expect_line(text, "unit_plain_seconds_bucket{le=\"1\"} 1");
    expect_line(text, "unit_plain_seconds_sum 1");
    expect_line(text, "unit_plain_seconds_count 1");
}

static void labels_are_escaped(void **state)
{
    auto_strbuf labels;

    (void)state;
    strbuf_init(&labels, 100);
    metric_label(&labels, "a", "q\"b\\c\nd");
    metric_label(&labels, "e", "f");
    assert_string_equal(labels.data, "a=\"q\\\"b\\\\c\\nd\",e=\"f\"");
}

static void values_keep_their_precision(void **state)
{
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0, "0"},
                 {-3, "-3"},
                 {9007199254740991.0, "9007199254740991"},
                 {0.5, "0.5"},
                 {1e300 * 1e300, "+Inf"},
                 {-1e300 * 1e300, "-Inf"}};
    char text[METRIC_VALUE_SIZE];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        metric_value_text(cases[i].value, text);
        assert_string_equal(text, cases[i].text);
    }
    metric_value_text(0.0 / 0.0, text);
    assert_string_equal(text, "NaN");
}

static void the_process_tells_about_itself(void **state)
{
    static const char *const names[] = {"process_resident_memory_bytes ",
                                        "process_cpu_seconds_total ",
                                        "process_open_fds ",
                                        "process_threads ",
                                        "process_start_time_seconds ",
                                        "process_max_fds ",
                                        "hypersdk_build_info{version="};
    autofree char *text = render();

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        assert_non_null(strstr(text, names[i]));
    assert_null(strstr(text, "process_resident_memory_bytes 0\n"));
    assert_null(strstr(text, "process_threads 0\n"));
}

static void a_name_keeps_its_type(void **state)
{
    autofree char *text = NULL;

    (void)state;
    metric_add("unit_typed", "", 1);
    metric_set("unit_typed", "", 50);
    metric_observe("unit_typed", "", 50);
    text = render();
    expect_line(text, "unit_typed 1");
    assert_non_null(strstr(text, "hypersdk_metrics_dropped_total"));
}

/* Runs last: it fills the registry. */
static void too_many_series_are_dropped_and_counted(void **state)
{
    autofree char *text = NULL;

    (void)state;
    for (int i = 0; i < METRIC_SERIES_MAX + 100; i++) {
        autofree char *labels = xasprintf("n=\"%d\"", i);
        metric_add("unit_many_total", labels, 1);
    }
    metric_add("unit_requests_total", "code=\"200\"", 1); /* known ones go on */
    text = render();
    assert_non_null(strstr(text, "hypersdk_metrics_dropped_total 1"));
    expect_line(text, "unit_requests_total{code=\"200\"} 4");
    expect_line(text, "unit_many_total{n=\"0\"} 1");
    assert_null(strstr(text, "unit_many_total{n=\"2050\"}"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_add_and_gauges_replace),
        cmocka_unit_test(histograms_are_cumulative),
        cmocka_unit_test(labels_are_escaped),
        cmocka_unit_test(values_keep_their_precision),
        cmocka_unit_test(the_process_tells_about_itself),
        cmocka_unit_test(a_name_keeps_its_type),
        cmocka_unit_test(too_many_series_are_dropped_and_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
