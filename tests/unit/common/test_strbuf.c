/* Bounded text: growth, limit, escaping. */
#include "tests/unit/common/unit.h"

#include "common/strbuf.h"

static void overflow_is_reported_once_at_the_end(void **state)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb;
    char *out = NULL;

    (void)state;
    strbuf_init(&sb, 8);
    strbuf_add(&sb, "12345");
    strbuf_addf(&sb, "%d", 6789);
    assert_string_equal(sb.data, "12345678");
    strbuf_addc(&sb, 'x');
    assert_fails(strbuf_finish(&sb, &out, &err), err, ERR_LIMIT, "longer than 8 bytes");
    strbuf_reset(&sb);
    strbuf_add(&sb, "ok");
    assert_ok(strbuf_finish(&sb, &out, &err), err);
    assert_string_equal(out, "ok");
    assert_int_equal(sb.length, 0);
    free(out);
}

static void text_grows_to_its_maximum_exactly(void **state)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb;
    autofree char *out = NULL;

    (void)state;
    strbuf_init(&sb, 100000);
    for (int i = 0; i < 100000; i++)
        strbuf_addc(&sb, (char)('a' + i % 26));
    assert_false(sb.overflowed);
    assert_ok(strbuf_finish(&sb, &out, &err), err);
    assert_int_equal(strlen(out), 100000);
}

static void nothing_fits_into_nothing(void **state)
{
    auto_strbuf sb;

    (void)state;
    strbuf_init(&sb, 0);
    strbuf_add(&sb, "");
    assert_false(sb.overflowed);
    strbuf_addc(&sb, 'x');
    assert_true(sb.overflowed);
    assert_string_equal(sb.data, "");
}

static void xml_text_is_escaped_and_control_bytes_dropped(void **state)
{
    auto_strbuf sb;

    (void)state;
    strbuf_init(&sb, 1000);
    strbuf_add_xml(&sb, "<a b=\"c\">'&\x01\t\n");
    assert_string_equal(sb.data, "&lt;a b=&quot;c&quot;&gt;&apos;&amp;\t\n");
}

static void url_text_keeps_only_unreserved_bytes(void **state)
{
    auto_strbuf sb;

    (void)state;
    strbuf_init(&sb, 1000);
    strbuf_add_url(&sb, "aZ09-_.~ /?&=%\xc3\xa4");
    assert_string_equal(sb.data, "aZ09-_.~%20%2F%3F%26%3D%25%C3%A4");
}

static void json_text_is_escaped_and_bad_bytes_replaced(void **state)
{
    auto_strbuf sb;

    (void)state;
    strbuf_init(&sb, 1000);
    strbuf_add_json(&sb, "q\"b\\n\n\x01\x7f\xc3\xa4");
    assert_string_equal(sb.data, "q\\\"b\\\\n\\n\\u0001\\u007f\xc3\xa4");
    strbuf_reset(&sb);
    strbuf_add_json(&sb, "a\xff\xc3(");
    assert_string_equal(sb.data, "a\xef\xbf\xbd\xef\xbf\xbd(");
}

static void utf8_is_checked_strictly(void **state)
{
    (void)state;
    assert_true(utf8_is_valid("plain \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"));
    assert_false(utf8_is_valid("\xc0\xaf"));         /* overlong */
    assert_false(utf8_is_valid("\xe0\x80\xaf"));     /* overlong */
    assert_false(utf8_is_valid("\xed\xa0\x80"));     /* surrogate */
    assert_false(utf8_is_valid("\xf4\x90\x80\x80")); /* over U+10FFFF */
    assert_false(utf8_is_valid("\xe2\x82"));         /* cut */
    assert_false(utf8_is_valid("\x80"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overflow_is_reported_once_at_the_end),
        cmocka_unit_test(text_grows_to_its_maximum_exactly),
        cmocka_unit_test(nothing_fits_into_nothing),
        cmocka_unit_test(xml_text_is_escaped_and_control_bytes_dropped),
        cmocka_unit_test(url_text_keeps_only_unreserved_bytes),
        cmocka_unit_test(json_text_is_escaped_and_bad_bytes_replaced),
        cmocka_unit_test(utf8_is_checked_strictly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
