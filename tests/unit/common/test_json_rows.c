/* common/json_rows.c: what is written reads back as the same rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/json_rows.h"

static void rows_read_back_as_they_were_written(void **state)
{
    auto_json_rows rows;
    auto_json *nested = json_pack("{s:[i,s], s:n}", "a", 1, "x\"y", "b");
    auto_json *read = NULL;
    const json_t *first;

    (void)state;
    json_rows_init(&rows);
    json_rows_next(&rows);
    json_rows_text(&rows, "text", "a\"b\\c\n\t\x01 \xc3\xa4 \xff.");
    json_rows_text(&rows, "none", NULL);
    json_rows_i64(&rows, "least", INT64_MIN);
    json_rows_i64(&rows, "most", INT64_MAX);
    json_rows_i64(&rows, "zero", 0);
    json_rows_bool(&rows, "yes", true);
    json_rows_json(&rows, "nested", nested);
    json_rows_json(&rows, "no", NULL);
    json_rows_next(&rows);
    json_rows_next(&rows);
    json_rows_bool(&rows, "last", false);
    read = json_loads(json_rows_end(&rows), JSON_REJECT_DUPLICATES, NULL);
    assert_int_equal(json_array_size(read), 3);
    first = json_array_get(read, 0);
    assert_int_equal(json_object_size(first), 6);
    assert_string_equal(json_str(first, "text"), "a\"b\\c\n\t\x01 \xc3\xa4 \xef\xbf\xbd.");
    assert_true(json_integer_value(json_object_get(first, "least")) == INT64_MIN);
    assert_true(json_integer_value(json_object_get(first, "most")) == INT64_MAX);
    assert_int_equal(json_integer_value(json_object_get(first, "zero")), 0);
    assert_true(json_is_true(json_object_get(first, "yes")));
    assert_true(json_equal(json_object_get(first, "nested"), nested));
    assert_int_equal(json_object_size(json_array_get(read, 1)), 0);
    assert_true(json_is_false(json_object_get(json_array_get(read, 2), "last")));
}

static void no_rows_are_an_empty_array(void **state)
{
    auto_json_rows rows;

    (void)state;
    json_rows_init(&rows);
    assert_string_equal(json_rows_end(&rows), "[]");
    assert_int_equal(rows.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_read_back_as_they_were_written),
        cmocka_unit_test(no_rows_are_an_empty_array),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
