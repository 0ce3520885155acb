#include "common/placeholders.h"

#include <stdlib.h>

#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/json.h"

static char site[] = "HYPERSDK_TEST_SITE";
static char unset[] = "HYPERSDK_TEST_UNSET";
static char *env_items[] = {site, unset};
static const struct config_list env = {env_items, 2};

static json_t *vars_of(const char *vm_name)
{
    return placeholders_vars(&(struct placeholder_facts){.vm_name = vm_name,
                                                         .vm_path = "/DC1/vm/prod/web",
                                                         .job_id = "job-1",
                                                         .provider = "vc",
                                                         .now_ms = INT64_C(1772323449000),
                                                         .env = &env});
}

static json_t *expanded(const char *document, const char *vm_name)
{
    auto_json *in = json_loads(document, 0, NULL);
    auto_json *vars = vars_of(vm_name);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    json_t *out = NULL;

    assert_non_null(in);
    assert_ok(placeholders_expand(in, vars, &out, &problem, &err), err);
    return out;
}

static void every_name_has_its_value(void **state)
{
    auto_json *out =
        expanded("{\"a\": [\"{{ .VMName }} {{.VMPath}} {{  .Date  }}T{{ .Time }}\", 1],"
                 " \"b\": {\"c\": \"{{ .JobID }}@{{ .Provider }}\"}, \"d\": null,"
                 " \"e\": \"{{ .Env.HYPERSDK_TEST_SITE }}\", \"f\": \"}} { plain\"}",
                 "web {{ .JobID }}");
    const json_t *list = json_object_get(out, "a");

    (void)state;
    assert_string_equal(json_string_value(json_array_get(list, 0)),
                        "web {{ .JobID }} /DC1/vm/prod/web 2026-03-01T000409");
    assert_int_equal(json_integer_value(json_array_get(list, 1)), 1);
    assert_string_equal(json_str(json_object_get(out, "b"), "c"), "job-1@vc");
    assert_true(json_is_null(json_object_get(out, "d")));
    assert_string_equal(json_str(out, "e"), "a/b");
    assert_string_equal(json_str(out, "f"), "}} { plain");
}

static void a_value_is_one_part_of_a_place(void **state)
{
    static const struct {
        const char *name, *path, *url;
    } cases[] = {
        {"web", "/exports/web/2026-03-01", "https://h/x?vm=web"},
        {"../../etc/passwd", "/exports/_.._etc_passwd/2026-03-01",
         "https://h/x?vm=..%2F..%2Fetc%2Fpasswd"},
        {"..", "/exports/vm/2026-03-01", "https://h/x?vm=.."},
        {"a#b?c%2e@", "/exports/a_b_c_2e_/2026-03-01", "https://h/x?vm=a%23b%3Fc%252e%40"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_json *out = expanded("{\"output_path\": \"/exports/{{ .VMName }}/{{ .Date }}\","
                                  " \"post_hooks\": [{\"url\": \"https://h/x?vm={{ .VMName }}\","
                                  " \"destination\": \"s3://b/{{ .VMPath }}\"}],"
                                  " \"dir\": \"{{ .Env.HYPERSDK_TEST_SITE }}\"}",
                                  cases[i].name);
        const json_t *hook = json_array_get(json_object_get(out, "post_hooks"), 0);
        assert_string_equal(json_str(out, "output_path"), cases[i].path);
        assert_string_equal(json_str(hook, "url"), cases[i].url);
        assert_string_equal(json_str(hook, "destination"), "s3://b/_DC1_vm_prod_web");
        assert_string_equal(json_str(out, "dir"), "a/b");
    }
}

static void what_is_wrong_names_field_and_placeholder(void **state)
{
    static const struct {
        const char *document, *field, *text;
    } wrong[] = {
        {"{\"name\": \"{{ .VmName }}\"}", "name", "unknown placeholder 'VmName', did you mean"},
        {"{\"name\": \"{{ .Nothing }}\"}", "name", "unknown placeholder 'Nothing'"},
        {"{\"h\": [{}, {\"body\": [\"{{ .VMName\"]}]}", "h[1].body[0]", "not closed"},
        {"{\"name\": \"{{ VMName }}\"}", "name", "'{{VMName}}' is no placeholder"},
        {"{\"name\": \"{{}}\"}", "name", "is no placeholder"},
        {"{\"name\": \"{{ .VM Name }}\"}", "name", "is no placeholder"},
        {"{\"name\": \"{{ .VMName | upper }}\"}", "name", "is no placeholder"},
        {"{\"name\": \"{{ .VMName }}\"}", "name", "'VMName' has no value here"},
        {"{\"name\": \"{{ .Env.HYPERSDK_TEST_UNSET }}\"}", "name", "has no value: it must be in"},
        {"{\"name\": \"{{ .Env.HOME }}\"}", "name", "templates.env"},
        {"{\"name\": \"{{ .Env }}\"}", "name", "unknown placeholder 'Env'"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        auto_json *in = json_loads(wrong[i].document, 0, NULL);
        auto_json *vars = vars_of(NULL);
        auto_json *out = NULL;
        struct field_problem problem = {0};
        struct error err = ERROR_NONE;
        assert_non_null(in);
        assert_fails(placeholders_expand(in, vars, &out, &problem, &err), err, ERR_INVALID,
                     wrong[i].text);
        assert_string_equal(problem.field, wrong[i].field);
        assert_int_equal(problem.status, 422);
    }
}

static void a_stored_document_is_checked_without_values(void **state)
{
    auto_json *good = json_pack("{s:s,s:s}", "a", "{{ .VMName }}{{ .JobID }}", "b",
                                "{{ .Env.HYPERSDK_TEST_UNSET }}");
    auto_json *bad = json_pack("{s:s}", "a", "{{ .Env.HOME }}");
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_ok(placeholders_check(good, &env, &problem, &err), err);
    assert_true(placeholders_uses(good, "JobID"));
    assert_false(placeholders_uses(good, "VMPath"));
    assert_fails(placeholders_check(bad, &env, &problem, &err), err, ERR_INVALID,
                 "does not allow this variable");
}

static void values_of_users_are_checked(void **state)
{
    static const struct {
        const char *vars;
        unsigned int status;
        const char *field;
    } wrong[] = {{"{\"VMNme\": \"x\"}", 422, "vars.VMNme"},
                 {"{\"Env\": {\"HOME\": \"x\"}}", 422, "vars.Env"},
                 {"{\"VMName\": 7}", 400, "vars.VMName"},
                 {"{\"VMName\": \"\"}", 400, "vars.VMName"},
                 {"{\"VMName\": \"a\\nb\"}", 400, "vars.VMName"}};
    auto_json *vars = vars_of("web");
    auto_json *mine = json_pack("{s:s}", "VMName", "db");
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        auto_json *given = json_loads(wrong[i].vars, 0, NULL);
        assert_int_equal(placeholders_merge(vars, given, &problem, &err), -1);
        assert_string_equal(problem.field, wrong[i].field);
        assert_int_equal(problem.status, wrong[i].status);
        error_clear(&err);
    }
    assert_ok(placeholders_merge(vars, NULL, &problem, &err), err);
    assert_ok(placeholders_merge(vars, mine, &problem, &err), err);
    assert_string_equal(json_str(vars, "VMName"), "db");
}

static void a_text_does_not_grow_without_end(void **state)
{
    autofree char *name = xmalloc(1001);
    auto_json *in = NULL;
    auto_json *out = NULL;
    auto_json *vars = NULL;
    autofree char *text = xcalloc(1, 100 * 12 + 1);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    memset(name, 'x', 1000);
    name[1000] = '\0';
    for (size_t i = 0; i < 100; i++)
        memcpy(text + i * 12, "{{ .VMName}}", 12);
    in = json_pack("{s:s}", "name", text);
    vars = vars_of(name);
    assert_fails(placeholders_expand(in, vars, &out, &problem, &err), err, ERR_LIMIT,
                 "longer than 65536");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_name_has_its_value),
        cmocka_unit_test(a_value_is_one_part_of_a_place),
        cmocka_unit_test(what_is_wrong_names_field_and_placeholder),
        cmocka_unit_test(a_stored_document_is_checked_without_values),
        cmocka_unit_test(values_of_users_are_checked),
        cmocka_unit_test(a_text_does_not_grow_without_end),
    };

    if (setenv(site, "a/b", 1) < 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
