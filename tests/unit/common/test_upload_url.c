#include "common/upload_url.h"

#include <string.h>

#include "tests/unit/common/unit.h"

static struct upload_url taken(const char *text)
{
    struct error err = ERROR_NONE;
    struct upload_url url;

    if (upload_url_parse(text, &url, &err) < 0)
        fail_msg("%s: %s", text, err.message);
    return url;
}

static void an_s3_url_has_bucket_and_prefix(void **state)
{
    struct upload_url url = taken("s3://my-bucket/a/b c/");
    autofree char *text = upload_url_text(&url, "web/x.json");

    (void)state;
    assert_string_equal(url.scheme, "s3");
    assert_string_equal(url.host, "my-bucket");
    assert_string_equal(url.path, "a/b c");
    assert_string_equal(text, "s3://my-bucket/a/b c/web/x.json");
    url = taken("s3://my-bucket");
    assert_string_equal(url.path, "");
}

static void an_sftp_url_has_user_host_and_port(void **state)
{
    struct upload_url url = taken("sftp://joe@nas.example.com:2222/volume1");
    autofree char *text = upload_url_text(&url, "");

    (void)state;
    assert_string_equal(url.user, "joe");
    assert_string_equal(url.host, "nas.example.com");
    assert_int_equal(url.port, 2222);
    assert_string_equal(text, "sftp://joe@nas.example.com:2222/volume1");
    url = taken("sftp://[fd00::1]:22/x");
    assert_string_equal(url.host, "fd00::1");
    assert_int_equal(url.port, 22);
    url = taken("sftp://h");
    assert_int_equal(url.port, 0);
    assert_string_equal(url.user, "");
}

static void other_urls_are_refused_and_no_password_is_repeated(void **state)
{
    static const struct {
        const char *text;
        enum error_code code;
        const char *part;
    } wrong[] = {
        {"", ERR_INVALID, "no URL"},
        {"/exports", ERR_INVALID, "no URL"},
        {"ftp://h/x", ERR_INVALID, "unknown kind"},
        {"azure://c/x", ERR_NOT_AVAILABLE, "azure"},
        {"oss://b/x", ERR_NOT_AVAILABLE, "oss"},
        {"s3://", ERR_INVALID, "bucket"},
        {"s3://ab/x", ERR_INVALID, "bucket"},
        {"s3://key:hunter2@bucket/x", ERR_INVALID, "configuration"},
        {"s3://bucket/a/../b", ERR_INVALID, "'..'"},
        {"s3://bucket/a//b", ERR_INVALID, "empty"},
        {"s3://bucket/a?versioning", ERR_INVALID, "'?'"},
        {"s3://bucket/a\nb", ERR_INVALID, "control"},
        {"s3://bucket/\xff", ERR_INVALID, "UTF-8"},
        {"sftp://joe:hunter2@host/x", ERR_INVALID, "password has no place"},
        {"sftp://@host/x", ERR_INVALID, "user"},
        {"sftp://host:/x", ERR_INVALID, "port"},
        {"sftp://host:70000/x", ERR_INVALID, "port"},
        {"sftp://[::1/x", ERR_INVALID, "not closed"},
        {"sftp://-oProxyCommand=x/y", ERR_INVALID, "host"},
        {"sftp:///x", ERR_INVALID, "host"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct error err = ERROR_NONE;
        struct upload_url url;
        if (upload_url_parse(wrong[i].text, &url, &err) == 0)
            fail_msg("accepted: %s", wrong[i].text);
        assert_int_equal(err.code, wrong[i].code);
        if (strstr(err.message, wrong[i].part) == NULL)
            fail_msg("'%s' does not tell '%s'", err.message, wrong[i].part);
        assert_null(strstr(err.message, "hunter2"));
    }
}

static void an_url_has_a_longest_length(void **state)
{
    char text[UPLOAD_URL_BYTES_MAX + 2];
    struct error err = ERROR_NONE;
    struct upload_url url;

    (void)state;
    memset(text, 'a', sizeof text);
    memcpy(text, "s3://bucket/", 12);
    text[UPLOAD_URL_BYTES_MAX + 1] = '\0';
    assert_fails(upload_url_parse(text, &url, &err), err, ERR_INVALID, "over");
    text[UPLOAD_URL_BYTES_MAX] = '\0';
    url = taken(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_s3_url_has_bucket_and_prefix),
        cmocka_unit_test(an_sftp_url_has_user_host_and_port),
        cmocka_unit_test(other_urls_are_refused_and_no_password_is_repeated),
        cmocka_unit_test(an_url_has_a_longest_length),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
