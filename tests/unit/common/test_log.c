/* One valid JSON object per line, whatever goes in. */
#include "tests/unit/common/unit.h"

#include <math.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/log.h"

#define CAPTURE_BYTES 65536

/* stderr goes into a pipe between begin and end; end returns what was written. */
static int saved_stderr;
static int pipe_read;

static void capture_begin(void)
{
    int fds[2];

    assert_int_equal(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    saved_stderr = dup(STDERR_FILENO);
    assert_true(dup2(fds[1], STDERR_FILENO) >= 0);
    (void)close(fds[1]);
    pipe_read = fds[0];
}

static char *capture_end(void)
{
    char *text = xcalloc(1, CAPTURE_BYTES);
    ssize_t n = read(pipe_read, text, CAPTURE_BYTES - 1);

    assert_true(dup2(saved_stderr, STDERR_FILENO) >= 0);
    (void)close(saved_stderr);
    (void)close(pipe_read);
    if (n < 0)
        text[0] = '\0';
    return text;
}

/* The line as JSON; fails when it is not exactly one valid line. */
static json_t *line_json(const char *text)
{
    struct error err = ERROR_NONE;
    json_t *json = NULL;
    size_t size = strlen(text);

    assert_true(size > 0 && text[size - 1] == '\n');
    assert_null(memchr(text, '\n', size - 1));
    assert_ok(json_parse(text, size, CAPTURE_BYTES, &json, &err), err);
    return json;
}

static void a_line_is_one_json_object_with_all_fields(void **state)
{
    struct error err = ERROR_NONE;
    autofree char *text = NULL;
    auto_json *json = NULL;

    (void)state;
    log_init("unit", LOG_LEVEL_INFO);
    (void)error_set(&err, ERR_LIMIT, "too \"big\"\n");
    capture_begin();
    LOG(WARN, "thing_happened", F_STR("s", "a\"b\xff"), F_STR("null", NULL), F_U64("u", INT64_MAX),
        F_I64("i", -5), F_F64("f", 1.25), F_F64("nan", NAN), F_BOOL("b", true), F_ERR(&err));
    text = capture_end();
    json = line_json(text);
    assert_string_equal(json_str(json, "level"), "warn");
    assert_string_equal(json_str(json, "service"), "unit");
    assert_string_equal(json_str(json, "event"), "thing_happened");
    assert_string_equal(json_str(json, "s"), "a\"b\xef\xbf\xbd");
    assert_string_equal(json_str(json, "null"), "");
    assert_string_equal(json_str(json, "error"), "too \"big\"\n");
    assert_string_equal(json_str(json, "error_code"), "limit");
    assert_int_equal(json_integer_value(json_object_get(json, "i")), -5);
    assert_true(json_is_null(json_object_get(json, "nan")));
    assert_true(json_is_true(json_object_get(json, "b")));
    assert_int_equal(strlen(json_str(json, "ts")), 24);
}

static void lines_below_the_level_are_not_written(void **state)
{
    autofree char *text = NULL;

    (void)state;
    log_init("unit", LOG_LEVEL_WARN);
    capture_begin();
    LOG(INFO, "quiet");
    LOG(DEBUG, "quieter");
    LOG(ERROR, "loud");
    text = capture_end();
    assert_null(strstr(text, "quiet"));
    assert_non_null(strstr(text, "loud"));
    log_init("unit", LOG_LEVEL_INFO);
}

static void an_over_long_line_stays_valid_json(void **state)
{
    (void)state;
    for (size_t length = LOG_LINE_BYTES_MAX - 400; length < LOG_LINE_BYTES_MAX + 50; length += 7) {
        autofree char *big = xcalloc(1, length + 1);
        autofree char *text = NULL;
        auto_json *json = NULL;
        memset(big, 'x', length);
        capture_begin();
        LOG(INFO, "big", F_STR("first", "1"), F_STR("big", big), F_STR("last", "2"));
        text = capture_end();
        assert_true(strlen(text) <= LOG_LINE_BYTES_MAX);
        json = line_json(text);
        assert_string_equal(json_str(json, "first"), "1");
        if (json_object_get(json, "last") == NULL)
            assert_true(json_is_true(json_object_get(json, "truncated")));
    }
}

static void a_scope_names_job_and_trace_until_its_end(void **state)
{
    autofree char *inside = NULL;
    autofree char *outside = NULL;
    auto_json *json = NULL;
    auto_json *json2 = NULL;

    (void)state;
    capture_begin();
    {
        LOG_SCOPE("job-1", "trace");
        LOG(INFO, "inside");
        inside = capture_end();
        capture_begin();
    }
    LOG(INFO, "outside");
    outside = capture_end();
    json = line_json(inside);
    json2 = line_json(outside);
    assert_string_equal(json_str(json, "job_id"), "job-1");
    assert_string_equal(json_str(json, "trace_id"), "trace");
    assert_null(json_object_get(json2, "job_id"));
}

static void the_throttle_passes_changes_and_counts_repeats(void **state)
{
    struct log_throttle throttle = {0};
    uint64_t suppressed = 99;

    (void)state;
    assert_true(log_throttle_pass(&throttle, "a", &suppressed));
    assert_int_equal(suppressed, 0);
    assert_false(log_throttle_pass(&throttle, "a", &suppressed));
    assert_false(log_throttle_pass(&throttle, "a", &suppressed));
    assert_true(log_throttle_pass(&throttle, "b", &suppressed));
    assert_int_equal(suppressed, 2);
    throttle.last_ms -= 60001;
    assert_true(log_throttle_pass(&throttle, "b", &suppressed));
    assert_int_equal(suppressed, 0);
}

static void levels_have_four_names(void **state)
{
    struct error err = ERROR_NONE;
    enum log_level level = LOG_LEVEL_INFO;

    (void)state;
    assert_ok(log_level_parse("debug", &level, &err), err);
    assert_int_equal(level, LOG_LEVEL_DEBUG);
    assert_ok(log_level_parse("error", &level, &err), err);
    assert_int_equal(level, LOG_LEVEL_ERROR);
    assert_fails(log_level_parse("loud", &level, &err), err, ERR_INVALID, "'loud'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_is_one_json_object_with_all_fields),
        cmocka_unit_test(lines_below_the_level_are_not_written),
        cmocka_unit_test(an_over_long_line_stays_valid_json),
        cmocka_unit_test(a_scope_names_job_and_trace_until_its_end),
        cmocka_unit_test(the_throttle_passes_changes_and_counts_repeats),
        cmocka_unit_test(levels_have_four_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
