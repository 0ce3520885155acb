/* JSON and bodies under limits. */
#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/json.h"

static int parse(const char *text, json_t **out, struct error *err)
{
    return json_parse(text, strlen(text), 10000, out, err);
}

static void malformed_json_names_line_and_column(void **state)
{
    static const char *const bad[] = {"",    "{",           "[1,]",    "{\"a\":1}x",
                                      "nul", "\"\\ud800\"", "{'a':1}", "[01]"};
    struct error err = ERROR_NONE;
    json_t *out = NULL;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(parse(bad[i], &out, &err), err, ERR_INVALID, "line 1 column");
    assert_fails(parse("{\n\"a\":1,\n\"a\":2}", &out, &err), err, ERR_INVALID, "line 3");
    assert_null(out);
}

static void size_and_depth_have_limits(void **state)
{
    struct error err = ERROR_NONE;
    json_t *out = NULL;
    char deep[2 * JSON_DEPTH_MAX + 3];

    (void)state;
    assert_fails(json_parse("[1,2,3]", 7, 6, &out, &err), err, ERR_LIMIT, "over 6");
    memset(deep, '[', JSON_DEPTH_MAX + 1);
    memset(deep + JSON_DEPTH_MAX + 1, ']', JSON_DEPTH_MAX + 1);
    deep[2 * JSON_DEPTH_MAX + 2] = '\0';
    assert_fails(parse(deep, &out, &err), err, ERR_LIMIT, "deeper than 32");
    deep[2 * JSON_DEPTH_MAX + 1] = '\0';
    assert_ok(json_parse(deep + 1, 2 * JSON_DEPTH_MAX, 1000, &out, &err), err);
    json_decref(out);
    /* brackets inside strings do not count, escaped quotes do not end a string */
    out = NULL;
    assert_ok(parse("\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"", &out, &err), err);
    json_decref(out);
}

static void bodies_may_be_yaml_unless_strict(void **state)
{
    static const char yaml[] = "vm_path: /dc/vm/web\nmemory: 512\non: true\nlist:\n- a\n";
    struct error err = ERROR_NONE;
    json_t *out = NULL;
    autofree char *text = NULL;

    (void)state;
    assert_ok(body_parse(yaml, strlen(yaml), 1000, false, &out, &err), err);
    text = json_text(out);
    assert_string_equal(text,
                        "{\"vm_path\":\"/dc/vm/web\",\"memory\":512,\"on\":true,\"list\":[\"a\"]}");
    json_decref(out);
    out = NULL;
    assert_fails(body_parse(yaml, strlen(yaml), 1000, true, &out, &err), err, ERR_INVALID,
                 "malformed JSON");
    assert_fails(body_parse("just words", 10, 1000, false, &out, &err), err, ERR_INVALID,
                 "malformed JSON");
    assert_fails(body_parse("a: [1", 5, 1000, false, &out, &err), err, ERR_INVALID,
                 "neither JSON nor YAML");
    assert_fails(body_parse(yaml, strlen(yaml), 10, false, &out, &err), err, ERR_LIMIT, "over 10");
}

static void typed_members_name_the_wrong_key(void **state)
{
    struct error err = ERROR_NONE;
    auto_json *o = json_pack("{s:s, s:b, s:i, s:{}, s:n, s:s%, s:f}", "text", "v", "flag", 1, "n",
                             7, "obj", "nothing", "nul", "a\0b", (size_t)3, "real", 1.5);
    const char *text = NULL;
    bool flag = false;
    uint64_t n = 0;
    json_t *object = NULL;

    (void)state;
    assert_ok(json_get_string(o, "text", "d", &text, &err), err);
    assert_string_equal(text, "v");
    assert_ok(json_get_string(o, "absent", "d", &text, &err), err);
    assert_string_equal(text, "d");
    assert_ok(json_get_string(o, "nothing", "d", &text, &err), err);
    assert_fails(json_get_string(o, "n", "d", &text, &err), err, ERR_INVALID, "'n' must be a text");
    assert_fails(json_get_string(o, "nul", "d", &text, &err), err, ERR_INVALID, "NUL");
    assert_ok(json_get_bool(o, "flag", false, &flag, &err), err);
    assert_true(flag);
    assert_ok(json_get_bool(o, "absent", true, &flag, &err), err);
    assert_fails(json_get_bool(o, "text", true, &flag, &err), err, ERR_INVALID, "'text' must");
    assert_ok(json_get_u64(o, "n", 1, 7, 3, &n, &err), err);
    assert_int_equal(n, 7);
    assert_ok(json_get_u64(o, "absent", 1, 7, 3, &n, &err), err);
    assert_int_equal(n, 3);
    assert_fails(json_get_u64(o, "n", 8, 9, 8, &n, &err), err, ERR_INVALID, "from 8 to 9");
    assert_fails(json_get_u64(o, "real", 0, 9, 0, &n, &err), err, ERR_INVALID, "'real'");
    assert_ok(json_get_object(o, "obj", &object, &err), err);
    assert_non_null(object);
    assert_ok(json_get_object(o, "absent", &object, &err), err);
    assert_null(object);
    assert_fails(json_get_object(o, "n", &object, &err), err, ERR_INVALID, "'n' must be an object");
}

static void unknown_keys_are_named(void **state)
{
    static const char *const keys[] = {"a", "b", NULL};
    struct error err = ERROR_NONE;
    auto_json *o = json_pack("{s:i,s:i}", "a", 1, "colour", 2);
    auto_json *list = json_array();

    (void)state;
    assert_fails(json_check_keys(o, keys, &err), err, ERR_INVALID, "unknown field 'colour'");
    (void)json_object_del(o, "colour");
    assert_ok(json_check_keys(o, keys, &err), err);
    assert_fails(json_check_keys(list, keys, &err), err, ERR_INVALID, "expected an object");
}

static void invalid_utf8_is_replaced_when_set(void **state)
{
    auto_json *o = json_object();

    (void)state;
    json_set_text(o, "a", "fine \xc3\xa4");
    json_set_text(o, "b", "bad \xff");
    assert_string_equal(json_str(o, "a"), "fine \xc3\xa4");
    assert_string_equal(json_str(o, "b"), "bad \xef\xbf\xbd");
    assert_string_equal(json_str(o, "absent"), "");
    (void)json_object_set_new(o, "n", json_integer(-1));
    assert_int_equal(json_u64(o, "n"), 0);
}

static void secrets_are_masked_by_name_at_any_depth(void **state)
{
    auto_json *o = json_pack("{s:s, s:[{s:s, s:s}], s:s}", "Password", "p1", "list", "api_token",
                             "p2", "name", "n", "client_secret", "p3");
    auto_json *masked = json_mask_secrets(o);
    autofree char *text = json_text(masked);

    (void)state;
    assert_null(strstr(text, "p1"));
    assert_null(strstr(text, "p2"));
    assert_null(strstr(text, "p3"));
    assert_non_null(strstr(text, "\"name\":\"n\""));
    assert_string_equal(json_str(o, "Password"), "p1"); /* the original is untouched */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_json_names_line_and_column),
        cmocka_unit_test(size_and_depth_have_limits),
        cmocka_unit_test(bodies_may_be_yaml_unless_strict),
        cmocka_unit_test(typed_members_name_the_wrong_key),
        cmocka_unit_test(unknown_keys_are_named),
        cmocka_unit_test(invalid_utf8_is_replaced_when_set),
        cmocka_unit_test(secrets_are_masked_by_name_at_any_depth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
