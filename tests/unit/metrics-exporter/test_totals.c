/* Rows of metric_totals as Prometheus text. */
#include "tests/unit/common/unit.h"

#include "services/metrics-exporter/totals.h"

#define PAGE_BYTES ((size_t)MIB)

static char *render(const struct totals *totals)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb;
    char *out = NULL;

    strbuf_init(&sb, PAGE_BYTES);
    totals_render(totals, &sb);
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

static void promised_families_are_zero_at_first(void **state)
{
    auto_totals *totals = totals_new();
    autofree char *text = NULL;

    (void)state;
    totals_add_promised(totals, NULL, 0);
    text = render(totals);
    expect_line(text, "# TYPE hypersdk_jobs_total counter");
    expect_line(text, "hypersdk_jobs_total{status=\"completed\",provider=\"\"} 0");
    expect_line(text, "# TYPE hypersdk_job_duration_seconds histogram");
    expect_line(text,
                "hypersdk_job_duration_seconds_bucket{vm_type=\"\",provider=\"\",le=\"1\"} 0");
    expect_line(text, "hypersdk_job_duration_seconds_sum{vm_type=\"\",provider=\"\"} 0");
    expect_line(text, "hypersdk_vms_exported_total 0");
    expect_line(text, "hypersdk_bytes_exported_total 0");
}

static void promises_do_not_double_what_is_there(void **state)
{
    struct error err = ERROR_NONE;
    auto_totals *totals = totals_new();
    autofree char *text = NULL;
    char name[] = "vsphere";
    char *providers[] = {name};

    (void)state;
    assert_ok(totals_add(totals, "hypersdk_jobs_total",
                         "{\"status\": \"failed\", \"provider\": \"vsphere\"}", 2, &err),
              err);
    assert_ok(totals_add(totals, "hypersdk_vms_exported_total", "{}", 5, &err), err);
    totals_add_promised(totals, providers, 1);
    text = render(totals);
    expect_line(text, "hypersdk_jobs_total{status=\"failed\",provider=\"vsphere\"} 2");
    expect_line(text, "hypersdk_jobs_total{status=\"completed\",provider=\"vsphere\"} 0");
    expect_line(text, "hypersdk_vms_exported_total 5");
    assert_null(strstr(text, "jobs_total{status=\"failed\",provider=\"\"}"));
    assert_null(strstr(text, "hypersdk_vms_exported_total 0"));
}

static void bounds_are_sorted_and_added_up(void **state)
{
    static const struct {
        const char *name;
        const char *labels;
        double value;
    } rows[] = {
        {"x_seconds_bucket", "{\"le\": \"+Inf\", \"a\": \"b\"}", 1},
        {"x_seconds_bucket", "{\"le\": \"5\", \"a\": \"b\"}", 2},
        {"x_seconds_bucket", "{\"le\": \"2.5\", \"a\": \"b\"}", 4},
        {"x_seconds_bucket", "{\"le\": \"5\", \"a\": \"b\"}", 8},
        {"x_seconds_sum", "{\"a\": \"b\"}", 12.5},
        {"x_seconds_count", "{\"a\": \"b\"}", 15},
    };
    struct error err = ERROR_NONE;
    auto_totals *totals = totals_new();
    autofree char *text = NULL;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(rows); i++)
        assert_ok(totals_add(totals, rows[i].name, rows[i].labels, rows[i].value, &err), err);
    text = render(totals);
    expect_line(text, "x_seconds_bucket{a=\"b\",le=\"1\"} 0");
    expect_line(text, "x_seconds_bucket{a=\"b\",le=\"2.5\"} 4");
    expect_line(text, "x_seconds_bucket{a=\"b\",le=\"5\"} 14");
    expect_line(text, "x_seconds_bucket{a=\"b\",le=\"86400\"} 14");
    expect_line(text, "x_seconds_bucket{a=\"b\",le=\"+Inf\"} 15");
    expect_line(text, "x_seconds_sum{a=\"b\"} 12.5");
    expect_line(text, "x_seconds_count{a=\"b\"} 15");
}

static void malformed_rows_are_refused_whole(void **state)
{
    static const struct {
        const char *name;
        const char *labels;
    } bad[] = {
        {"", "{}"},    {"9x", "{}"},        {"a-b", "{}"},
        {"x", "{"},    {"x", "{\"a\": 1}"}, {"x", "{\"a-b\": \"c\"}"},
        {"x y", "{}"},
    };
    struct error err = ERROR_NONE;
    auto_totals *totals = totals_new();
    autofree char *text = NULL;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(totals_add(totals, bad[i].name, bad[i].labels, 1, &err), err, ERR_INVALID, "");
    text = render(totals);
    assert_string_equal(text, "");
    totals_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(promised_families_are_zero_at_first),
        cmocka_unit_test(promises_do_not_double_what_is_there),
        cmocka_unit_test(bounds_are_sorted_and_added_up),
        cmocka_unit_test(malformed_rows_are_refused_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
