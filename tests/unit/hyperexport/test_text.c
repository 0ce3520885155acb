/* Terminal text: harmless, aligned, truncated as the seeds show it. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <string.h>

#include "common/autos.h"
#include "services/hyperexport/progress.h"
#include "services/hyperexport/text.h"

static void cleans_to(const char *text, bool utf8, const char *expected)
{
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    text_add_clean(&out, text, utf8);
    assert_string_equal(out.data, expected);
}

static void foreign_text_cannot_steer_the_terminal(void **state)
{
    (void)state;
    cleans_to("a\nb\rc", true, "a\\nb\\rc");
    cleans_to("\033[31mred\a\x7f", true, "\\x1b[31mred\\x07\\x7f");
    cleans_to("\xe2\x80\xae"
              "evil",
              true,
              "\xef\xbf\xbd"
              "evil"); /* right-to-left override */
    cleans_to("\xff"
              "x\xc0\xaf",
              true,
              "\xef\xbf\xbd"
              "x\xef\xbf\xbd\xef\xbf\xbd");
    cleans_to("\xc2\x9b"
              "31m",
              true, "\\x9b31m"); /* C1 control sequence introducer */
}

static void without_utf8_only_ascii_remains(void **state)
{
    (void)state;
    cleans_to("M\xc3\xbcller", false, "M?ller");
    cleans_to("M\xc3\xbcller", true, "M\xc3\xbcller");
}

static void width_counts_columns(void **state)
{
    (void)state;
    assert_int_equal(text_width("web-03"), 6);
    assert_int_equal(text_width("M\xc3\xbcller"), 6);
    assert_int_equal(text_width("\xe6\x97\xa5\xe6\x9c\xac"), 4); /* two wide characters */
    assert_int_equal(text_width("e\xcc\x81"), 1);                /* combining accent */
}

static void gigabytes_are_binary_and_truncated(void **state)
{
    (void)state;
    char out[TEXT_NUMBER_SIZE];

    text_gb(UINT64_C(138047488000), out); /* rounding would give 128.6 */
    assert_string_equal(out, "128.5");
    text_gb(UINT64_C(4096) * MIB, out);
    assert_string_equal(out, "4.0");
    text_gb(0, out);
    assert_string_equal(out, "0.0");
}

static void sizes_and_durations_are_short(void **state)
{
    (void)state;
    char out[TEXT_NUMBER_SIZE];

    text_size(512, out);
    assert_string_equal(out, "512 B");
    text_size(5 * MIB + MIB / 2, out);
    assert_string_equal(out, "5.5 MB");
    text_size(UINT64_MAX, out);
    assert_string_equal(out, "16383.9 PB");
    text_duration(59, out);
    assert_string_equal(out, "59s");
    text_duration(61, out);
    assert_string_equal(out, "1m01s");
    text_duration(3 * 3600 + 120, out);
    assert_string_equal(out, "3h02m");
}

static const struct text_row rows[] = {
    {.label = "VM Name", .value = "web-03"},
    {.label = "Power State", .value = "poweredOff", .prefix = "\xe2\x97\x8f ", .color = "31"},
    {.label = "Guest OS", .value = "Debian GNU/Linux 12 (64-bit)"},
    {.label = "Memory", .value = "4096 MB (4.0 GB)"},
    {.label = "vCPUs", .value = "2"},
    {.label = "Storage", .value = "40.0 GB"},
    {.label = "Path", .value = "/DC1/vm/prod/web-03"},
};

static void the_box_looks_like_the_reference(void **state)
{
    (void)state;
    static const char expected[] = "┌─ VM Information ─────────────────────────────────┐\n"
                                   "│ Property      │ Value                            │\n"
                                   "├───────────────┼──────────────────────────────────┤\n"
                                   "│ VM Name       │ web-03                           │\n"
                                   "│ Power State   │ ● poweredOff                     │\n"
                                   "│ Guest OS      │ Debian GNU/Linux 12 (64-bit)     │\n"
                                   "│ Memory        │ 4096 MB (4.0 GB)                 │\n"
                                   "│ vCPUs         │ 2                                │\n"
                                   "│ Storage       │ 40.0 GB                          │\n"
                                   "│ Path          │ /DC1/vm/prod/web-03              │\n"
                                   "└──────────────────────────────────────────────────┘\n";
    const struct text_style style = {.utf8 = true};
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    text_box(&out, "VM Information", true, rows, ARRAY_LEN(rows), &style);
    assert_string_equal(out.data, expected);
}

static void colour_goes_around_the_bullet_only(void **state)
{
    (void)state;
    const struct text_style style = {.utf8 = true, .color = true};
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    text_box(&out, "VM Information", true, rows, ARRAY_LEN(rows), &style);
    assert_non_null(strstr(out.data, "\033[31m● \033[0mpoweredOff"));
}

static void tables_align_wide_characters(void **state)
{
    (void)state;
    static const char *const cells[] = {"NAME", "POWER", "\xe6\x97\xa5", "on", "x\n", "off"};
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    text_table(&out, cells, 2, 3, true);
    assert_string_equal(out.data, "NAME  POWER\n\xe6\x97\xa5    on\nx\\n   off\n");
}

static const char progress_text[] =
    "{\"status\":\"running\",\"phase\":\"exporting\",\"percentage\":45.0,"
    "\"bytes_transferred\":25270026,\"total_bytes\":536870912,"
    "\"rate_bytes_per_second\":33030144,\"eta_seconds\":68,"
    "\"disks\":[{\"state\":\"done\"},{\"state\":\"copying\"}]}";

static void the_progress_bar_tells_percent_bytes_rate_and_end(void **state)
{
    (void)state;
    auto_json *progress = json_loads(progress_text, 0, NULL);
    auto_strbuf out;

    strbuf_init(&out, PROGRESS_LINE_BYTES_MAX);
    progress_bar(&out, progress, 200, false);
    assert_string_equal(out.data, "exporting    [#######.........]  45.0% 24.0 MB of "
                                  "512.0 MB  31.5 MB/s  ETA 1m08s  disk 2/2");
    strbuf_reset(&out);
    progress_bar(&out, progress, 60, true);
    assert_int_equal(text_width(out.data), 60);
    strbuf_reset(&out);
    progress_words(&out, progress);
    assert_string_equal(out.data, "progress: exporting, 45.0%, 24.0 MB of 512.0 MB, 31.5 "
                                  "MB/s, ETA 1m08s, disk 2/2");
}

static void progress_with_unknown_totals_stays_readable(void **state)
{
    (void)state;
    static const char text[] = "{\"status\":\"pending\",\"phase\":\"\",\"percentage\":null,"
                               "\"bytes_transferred\":0,\"total_bytes\":null,"
                               "\"eta_seconds\":null}";
    auto_json *progress = json_loads(text, 0, NULL);
    auto_strbuf out;

    strbuf_init(&out, PROGRESS_LINE_BYTES_MAX);
    progress_words(&out, progress);
    assert_string_equal(out.data, "progress: pending, 0.0%, 0 B, 0.0 MB/s");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(foreign_text_cannot_steer_the_terminal),
        cmocka_unit_test(without_utf8_only_ascii_remains),
        cmocka_unit_test(width_counts_columns),
        cmocka_unit_test(gigabytes_are_binary_and_truncated),
        cmocka_unit_test(sizes_and_durations_are_short),
        cmocka_unit_test(the_box_looks_like_the_reference),
        cmocka_unit_test(colour_goes_around_the_bullet_only),
        cmocka_unit_test(tables_align_wide_characters),
        cmocka_unit_test(the_progress_bar_tells_percent_bytes_rate_and_end),
        cmocka_unit_test(progress_with_unknown_totals_stays_readable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
