/* Readiness: the AND of named conditions. */
#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/json.h"
#include "common/service_admin.h"

static void expect(struct readiness *readiness, bool stopping, bool wanted, const char *reason)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb;
    auto_json *json = NULL;
    bool ready = !wanted;

    strbuf_init(&sb, 8192);
    readiness_render(readiness, stopping, &sb, &ready);
    assert_int_equal(ready, wanted);
    assert_ok(json_parse(sb.data, sb.length, 8192, &json, &err), err);
    assert_int_equal(json_is_true(json_object_get(json, "ready")), wanted);
    assert_string_equal(json_str(json, "reason"), reason);
}

static void a_process_is_ready_when_all_its_conditions_are(void **state)
{
    autofree struct readiness *readiness = readiness_new();

    (void)state;
    expect(readiness, false, false, "starting");
    readiness_set(readiness, "database", false, "down \"for now\"\n");
    expect(readiness, false, false, "down \"for now\"\n");
    readiness_set(readiness, "database", true, "ignored");
    expect(readiness, false, true, "");
    readiness_set(readiness, "scheduler", false, NULL);
    expect(readiness, false, false, "");
    readiness_set(readiness, "scheduler", true, NULL);
    expect(readiness, false, true, "");
    expect(readiness, true, false, "stopping");
}

static void long_reasons_are_cut(void **state)
{
    autofree struct readiness *readiness = readiness_new();
    char reason[1000];
    auto_strbuf sb;
    bool ready = true;

    (void)state;
    memset(reason, 'x', sizeof reason);
    reason[sizeof reason - 1] = '\0';
    readiness_set(readiness, "database", false, reason);
    strbuf_init(&sb, 2000);
    readiness_render(readiness, false, &sb, &ready);
    assert_false(sb.overflowed);
    assert_true(sb.length < 700);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_is_ready_when_all_its_conditions_are),
        cmocka_unit_test(long_reasons_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
