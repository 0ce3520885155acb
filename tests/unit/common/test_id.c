/* Random identifiers and trace context. */
#include "tests/unit/common/unit.h"

#include "common/id.h"

static void ids_carry_their_prefix_and_differ(void **state)
{
    char a[ID_SIZE];
    char b[ID_SIZE];

    (void)state;
    id_new("job", a);
    id_new("job", b);
    assert_memory_equal(a, "job-", 4);
    assert_int_equal(strlen(a), 20);
    assert_string_not_equal(a, b);
    id_new("a-prefix-that-is-too-long", a);
    assert_int_equal(strlen(a), ID_SIZE - 1);
}

static void uuids_are_version_4(void **state)
{
    char uuid[UUID_SIZE];

    (void)state;
    for (int i = 0; i < 100; i++) {
        uuid_new(uuid);
        assert_int_equal(strlen(uuid), 36);
        assert_int_equal(uuid[8] == '-' && uuid[13] == '-' && uuid[18] == '-' && uuid[23] == '-',
                         1);
        assert_int_equal(uuid[14], '4');
        assert_non_null(strchr("89ab", uuid[19]));
    }
}

static void trace_context_goes_there_and_back(void **state)
{
    static const char trace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
    char text[TRACEPARENT_SIZE];
    char out[33];

    (void)state;
    traceparent_new(trace, text);
    assert_true(traceparent_trace_id(text, out));
    assert_string_equal(out, trace);
    traceparent_new(NULL, text);
    assert_true(traceparent_trace_id(text, out));
    assert_string_not_equal(out, trace);
}

static void malformed_trace_context_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "00-4bf92f3577b34da6a3ce929d0e0e473--00f067aa0ba902b7-01",
    };
    char out[33];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(traceparent_trace_id(bad[i], out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_carry_their_prefix_and_differ),
        cmocka_unit_test(uuids_are_version_4),
        cmocka_unit_test(trace_context_goes_there_and_back),
        cmocka_unit_test(malformed_trace_context_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
