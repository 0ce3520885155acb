#include "services/exporter/targets/s3/answer.h"

#include <string.h>

#include "tests/unit/common/unit.h"

static void parts_are_read_with_their_page(void **state)
{
    static const char text[] =
        "  \n<?xml version=\"1.0\"?><ListPartsResult xmlns=\"http://s3.amazonaws.com/doc/\">"
        "<UploadId>u</UploadId><IsTruncated>true</IsTruncated>"
        "<NextPartNumberMarker>7</NextPartNumberMarker>"
        "<Part><PartNumber>7</PartNumber><Size>16777216</Size><ETag>&quot;ab&quot;</ETag></Part>"
        "</ListPartsResult>";
    auto_s3_answer answer = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(s3_answer_read(text, strlen(text), &answer, &err), 0);
    assert_true(answer.truncated && !answer.completed);
    assert_int_equal(answer.next_part, 7);
    assert_int_equal(answer.part_count, 1);
    assert_true(answer.parts[0].number == 7 && answer.parts[0].size == 16777216);
    assert_string_equal(answer.parts[0].etag, "\"ab\"");
}

static void unfinished_uploads_are_read_with_their_age(void **state)
{
    static const char text[] = "<ListMultipartUploadsResult><Upload><Key>a/b</Key>"
                               "<UploadId>u</UploadId>"
                               "<Initiated>2026-03-01T02:03:04.000Z</Initiated></Upload>"
                               "<Upload><Key>c</Key><UploadId>v</UploadId><Initiated>yesterday"
                               "</Initiated></Upload></ListMultipartUploadsResult>";
    auto_s3_answer answer = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(s3_answer_read(text, strlen(text), &answer, &err), 0);
    assert_int_equal(answer.upload_count, 2);
    assert_true(answer.uploads[0].initiated_ms == INT64_C(1772330584000));
    assert_true(answer.uploads[1].initiated_ms == 0);
}

static void an_error_is_told_from_a_result(void **state)
{
    static const char bad[] = "<Error><Code>SlowDown</Code><Message>m</Message>"
                              "<Region>eu-south-2</Region></Error>";
    static const char good[] = "<CompleteMultipartUploadResult/>";
    auto_s3_answer answer = {0};
    struct error err = ERROR_NONE;
    struct s3_error refusal;

    (void)state;
    assert_true(s3_error_read(bad, strlen(bad), &refusal));
    assert_string_equal(refusal.code, "SlowDown");
    assert_string_equal(refusal.region, "eu-south-2");
    assert_false(s3_error_read(good, strlen(good), &refusal));
    assert_false(s3_error_read("", 0, &refusal));
    assert_int_equal(s3_answer_read(good, strlen(good), &answer, &err), 0);
    assert_true(answer.completed);
}

static void other_answers_are_refused(void **state)
{
    autofree char *deep = xcalloc(1, 2000);
    const char *const wrong[] = {
        "",
        "   ",
        "no xml",
        "<a><b></a>",
        "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
        "<R><Part><PartNumber>10001</PartNumber><Size>1</Size></Part></R>",
        "<R><Part><PartNumber>1</PartNumber><Size>-1</Size></Part></R>",
        "<R><Part><PartNumber>x</PartNumber><Size>1</Size></Part></R>",
        "<R><NextPartNumberMarker>99999</NextPartNumberMarker></R>",
        deep,
    };

    (void)state;
    for (size_t i = 0; i < 100; i++)
        memcpy(deep + 3 * i, "<a>", 3);
    for (size_t i = 0; i < 100; i++)
        memcpy(deep + 300 + 4 * i, "</a>", 4);
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct s3_answer answer;
        struct error err = ERROR_NONE;
        if (s3_answer_read(wrong[i], strlen(wrong[i]), &answer, &err) == 0)
            fail_msg("accepted: %.60s", wrong[i]);
        assert_int_equal(err.code, ERR_PROTOCOL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_read_with_their_page),
        cmocka_unit_test(unfinished_uploads_are_read_with_their_age),
        cmocka_unit_test(an_error_is_told_from_a_result),
        cmocka_unit_test(other_answers_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
