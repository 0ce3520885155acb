/* YAML under limits. */
#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/json.h"
#include "common/yaml.h"

static int parse(const char *text, struct yaml_node **out, struct error *err)
{
    return yaml_parse(text, strlen(text), 100000, out, err);
}

static void core_types_become_json(void **state)
{
    static const char text[] = "a: 1\nb: -2.5\nc: true\nd: null\ne: '1'\nf: text\ng: ~\n"
                               "h:\ni: [x, 2]\nj: 99999999999999999999\nk: 1.2.3\nl: \"true\"\n";
    struct error err = ERROR_NONE;
    auto_yaml_node *node = NULL;
    auto_json *json = NULL;
    autofree char *out = NULL;

    (void)state;
    assert_ok(parse(text, &node, &err), err);
    json = yaml_to_json(node);
    out = json_text(json);
    assert_string_equal(out, "{\"a\":1,\"b\":-2.5,\"c\":true,\"d\":null,\"e\":\"1\","
                             "\"f\":\"text\",\"g\":null,\"h\":null,\"i\":[\"x\",2],"
                             "\"j\":1e20,\"k\":\"1.2.3\",\"l\":\"true\"}");
}

static void lines_are_counted_from_one(void **state)
{
    struct error err = ERROR_NONE;
    auto_yaml_node *node = NULL;
    const struct yaml_node *b;

    (void)state;
    assert_ok(parse("# comment\na: 1\nb:\n  c: 2\n", &node, &err), err);
    b = yaml_member(node, "b");
    assert_non_null(b);
    assert_int_equal(yaml_member(node, "a")->line, 2);
    assert_int_equal(yaml_member(b, "c")->line, 4);
    assert_null(yaml_member(node, "z"));
    assert_null(yaml_member(NULL, "z"));
    assert_null(yaml_member(yaml_member(node, "a"), "z"));
}

static void tricks_are_refused_with_their_line(void **state)
{
    static const struct {
        const char *text;
        const char *message;
    } bad[] = {
        {"a: 1\nb: &x 2\n", "line 2: anchors"},
        {"a: *x\n", "anchors"},
        {"a: !!int 3\n", "tags"},
        {"a: 1\na: 2\n", "line 2: key 'a' is given twice"},
        {"a: [1\n", "line"},
        {"a: 1\n---\nb: 2\n", "second document"},
        {"[a, b]: 1\n", "not a plain word"},
        {"a: \"x\\0y\"\n", "NUL byte"},
        {"a: \xff\n", "line"},
        {"\tb: 1\n", "line 1"},
    };
    struct error err = ERROR_NONE;
    struct yaml_node *node = NULL;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(parse(bad[i].text, &node, &err), err, ERR_INVALID, bad[i].message);
    assert_null(node);
}

static void depth_size_and_count_have_limits(void **state)
{
    struct error err = ERROR_NONE;
    struct yaml_node *node = NULL;
    autofree char *many = xmalloc(2 * YAML_NODES_MAX + 10);
    size_t n = 0;

    (void)state;
    assert_fails(parse("[[[[[[[[[1]]]]]]]]]", &node, &err), err, ERR_INVALID, "too deeply");
    assert_fails(yaml_parse("a: 1", 4, 3, &node, &err), err, ERR_LIMIT, "over 3");
    many[n++] = '[';
    for (int i = 0; i < YAML_NODES_MAX; i++) {
        many[n++] = '1';
        many[n++] = ',';
    }
    many[n++] = ']';
    assert_fails(yaml_parse(many, n, 100000, &node, &err), err, ERR_INVALID, "too many values");
}

static void an_empty_document_is_an_empty_map(void **state)
{
    struct error err = ERROR_NONE;
    auto_yaml_node *node = NULL;

    (void)state;
    assert_ok(parse("# nothing\n", &node, &err), err);
    assert_int_equal(node->kind, YAML_MAP);
    assert_int_equal(node->count, 0);
    yaml_node_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(core_types_become_json),
        cmocka_unit_test(lines_are_counted_from_one),
        cmocka_unit_test(tricks_are_refused_with_their_line),
        cmocka_unit_test(depth_size_and_count_have_limits),
        cmocka_unit_test(an_empty_document_is_an_empty_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
