/* Addresses of webhooks: which are taken, and what is told of them. */
#include "tests/unit/common/unit.h"

#include "common/webhook_post.h"

static void addresses_have_a_host_and_no_account(void **state)
{
    static const char *const good[] = {"http://h", "HTTPS://h:8443/x?y=@z", "https://[::1]/"};
    static const char *const bad[] = {"", "h", "ftp://h", "http://", "https:///x", "http://?x"};
    struct error err = ERROR_NONE;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_ok(webhook_url_check(good[i], &err), err);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(webhook_url_check(bad[i], &err), err, ERR_INVALID, "must begin with http");
    assert_fails(webhook_url_check("https://u:p@h/x", &err), err, ERR_INVALID, "use 'headers'");
}

static void what_is_told_holds_no_token(void **state)
{
    static const struct {
        const char *url, *shown;
    } cases[] = {
        {"https://hooks.test/services/T0/B0/s3cret", "https://hooks.test"},
        {"http://h:8080?token=s3cret", "http://h:8080"},
        {"http://h#s3cret", "http://h"},
        {"https://user:s3cret@h:1/x@y", "https://h:1"},
        {"https://a@s3cret@h", "https://h"},
        {"https://[::1]:9/x", "https://[::1]:9"},
        {"https://h\\s3cret", "https://h"},
        {"https://", "https://"},
        {"s3cret", "(no url)"},
        {"", "(no url)"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *shown = webhook_url_shown(cases[i].url);
        assert_string_equal(shown, cases[i].shown);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_have_a_host_and_no_account),
        cmocka_unit_test(what_is_told_holds_no_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
