/* Finding routes, decoding URLs, reading headers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "services/api-gateway/headers.h"
#include "services/api-gateway/match.h"

#define ROUTE(method, path)                  \
    {                                        \
        method, path, "p", "a", "o", 0, NULL \
    }

static const struct route table[] = {
    ROUTE("GET", "/jobs/{id}"),           ROUTE("POST", "/jobs/query"),
    ROUTE("GET", "/jobs/query"),          ROUTE("GET", "/api/v1/jobs/{id}"),
    ROUTE("DELETE", "/api/v1/jobs/{id}"), ROUTE("GET", "/api/v1/jobs/stats"),
    ROUTE("PUT", "/a/{x}/b/{y}"),         ROUTE("GET", "/"),
};

static enum match_result find(const char *method, const char *path, struct match *out)
{
    return match_route(table, ARRAY_LEN(table), method, path, out);
}

static void a_literal_wins_over_a_parameter(void **state)
{
    struct match match;

    (void)state;
    assert_int_equal(find("GET", "/jobs/query", &match), MATCH_FOUND);
    assert_string_equal(match.route->path, "/jobs/query");
    assert_int_equal(find("GET", "/api/v1/jobs/stats", &match), MATCH_FOUND);
    assert_string_equal(match.route->path, "/api/v1/jobs/stats");
    /* whatever stands first in the table */
    assert_int_equal(find("DELETE", "/api/v1/jobs/stats", &match), MATCH_OTHER_METHOD);
    assert_string_equal(match.allow, "GET, HEAD, OPTIONS");
}

static void parameters_are_cut_out_of_the_path(void **state)
{
    struct match match;

    (void)state;
    assert_int_equal(find("PUT", "/a/one/b/t%2Fwo/", &match), MATCH_FOUND);
    assert_int_equal(match.param_count, 2);
    assert_int_equal(match.params[0].name_length, 1);
    assert_memory_equal(match.params[0].name, "x", 1);
    assert_int_equal(match.params[0].value_length, 3);
    assert_int_equal(match.params[1].value_length, 6);
    assert_memory_equal(match.params[1].value, "t%2Fwo", 6);
}

static void head_is_get_and_other_methods_are_told(void **state)
{
    struct match match;

    (void)state;
    assert_int_equal(find("HEAD", "/jobs/x", &match), MATCH_FOUND);
    assert_int_equal(find("POST", "/jobs/x", &match), MATCH_OTHER_METHOD);
    assert_int_equal(find("PATCH", "/jobs/query", &match), MATCH_OTHER_METHOD);
    assert_string_equal(match.allow, "POST, GET, HEAD, OPTIONS");
    assert_int_equal(find("OPTIONS", "/jobs/query", &match), MATCH_OTHER_METHOD);
    assert_int_equal(find("GET", "/", &match), MATCH_FOUND);
}

static void paths_that_only_look_alike_do_not_match(void **state)
{
    static const char *const paths[] = {"",
                                        "jobs/x",
                                        "//",
                                        "/jobs",
                                        "/jobs/",
                                        "/jobs//",
                                        "/jobs/a/b",
                                        "/jobs/query//",
                                        "/JOBS/query",
                                        "/a//b/c",
                                        "/a/x/b",
                                        "/jobsquery",
                                        "/api/v1/jobs",
                                        "*"};
    struct match match;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(paths); i++)
        assert_int_equal(find("GET", paths[i], &match), MATCH_NONE);
}

static void the_real_table_is_consistent(void **state)
{
    (void)state;
    for (size_t i = 0; i < routes_count; i++) {
        struct match match;
        const struct route *route = &routes[i];
        assert_int_equal(match_route(routes, routes_count, route->method, route->path, &match),
                         MATCH_FOUND);
        assert_ptr_equal(match.route, route); /* else another one hides it */
        assert_true(strlen(match.allow) + 1 < ALLOW_BYTES_MAX);
        assert_true(route->handler != NULL && route->operation != NULL);
        assert_true(route->permission != NULL || (route->flags & (ROUTE_OPEN | ROUTE_SELF)) != 0);
        assert_true(route->action != NULL || (route->flags & ROUTE_NO_DB) != 0);
    }
}

static void decode(const char *text, const char *wanted)
{
    struct error err = ERROR_NONE;
    autofree char *value = NULL;

    assert_int_equal(match_decode("p", text, strlen(text), &value, &err), wanted == NULL ? -1 : 0);
    if (wanted != NULL)
        assert_string_equal(value, wanted);
    else
        assert_int_equal(err.code, ERR_INVALID);
}

static void escapes_are_decoded_or_refused(void **state)
{
    (void)state;
    decode("plain", "plain");
    decode("%2FDC1%2fvm%20x", "/DC1/vm x");
    decode("%c3%a4", "\xc3\xa4");
    decode("", "");
    decode("%", NULL);
    decode("%2", NULL);
    decode("%2x", NULL);
    decode("a%00b", NULL);
    decode("%ff", NULL);
    decode("\xc3", NULL);
}

static void long_values_are_a_limit(void **state)
{
    char text[4 * PARAM_BYTES_MAX];
    struct error err = ERROR_NONE;
    char *value = NULL;

    (void)state;
    memset(text, 'a', sizeof text);
    assert_int_equal(match_decode("p", text, PARAM_BYTES_MAX + 1, &value, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    error_clear(&err);
    assert_int_equal(match_decode("p", text, sizeof text, &value, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    error_clear(&err);
    assert_int_equal(match_decode("p", text, PARAM_BYTES_MAX, &value, &err), 0);
    free(value);
}

static void bearer_tokens_are_found(void **state)
{
    (void)state;
    assert_string_equal(header_bearer("Bearer abc"), "abc");
    assert_string_equal(header_bearer("bearer  abc"), "abc");
    assert_null(header_bearer("Bearer "));
    assert_null(header_bearer("Bearerabc"));
    assert_null(header_bearer("Basic YTpi"));
    assert_null(header_bearer(NULL));
}

static void cookies_are_found_by_their_whole_name(void **state)
{
    char value[TOKEN_BYTES_MAX];
    char big[400] = "s=";

    (void)state;
    assert_true(header_cookie("a=1; s=tok; b=2", "s", value));
    assert_string_equal(value, "tok");
    assert_true(header_cookie("s=a=b", "s", value));
    assert_string_equal(value, "a=b");
    assert_false(header_cookie("xs=1; sx=2; s", "s", value));
    assert_false(header_cookie("s=", "s", value));
    assert_false(header_cookie("", "s", value));
    assert_false(header_cookie(NULL, "s", value));
    memset(big + 2, 'a', sizeof big - 3);
    assert_false(header_cookie(big, "s", value));
}

static void accept_names_types_exactly(void **state)
{
    (void)state;
    assert_true(header_accepts("text/html, text/event-stream;q=0.5", "text/event-stream"));
    assert_true(header_accepts("TEXT/PLAIN", "text/plain"));
    assert_false(header_accepts("*/*", "text/plain"));
    assert_false(header_accepts("text/plainx", "text/plain"));
    assert_false(header_accepts(NULL, "text/plain"));
}

static void origins_are_the_own_host_or_listed(void **state)
{
    char item[] = "https://ui.example.net";
    char *items[] = {item};
    const struct config_list list = {items, 1};

    (void)state;
    assert_true(header_origin_allowed("https://ui.example.net", "x", &list));
    assert_true(header_origin_allowed("http://gw:8080", "gw:8080", &list));
    assert_true(header_origin_allowed("https://GW:8080", "gw:8080", &list));
    assert_false(header_origin_allowed("http://gw", "gw:8080", &list));
    assert_false(header_origin_allowed("http://gw:8080.evil", "gw:8080", &list));
    assert_false(header_origin_allowed("https://ui.example.net.evil", "x", &list));
    assert_false(header_origin_allowed("file://gw:8080", "gw:8080", &list));
    assert_false(header_origin_allowed("null", NULL, &list));
    assert_false(header_origin_allowed("", "", &list));
}

static void loopback_names_are_known(void **state)
{
    static const char *const good[] = {"localhost", "localhost:1", "LOCALHOST", "127.0.0.1:80",
                                       "127.9.8.7", "[::1]",       "[::1]:80"};
    static const char *const bad[] = {"localhost.evil", "127.0.0.1.evil", "127.0.0", "127.evil.0.1",
                                      "[::1]evil",      "10.0.0.1",       "",        "[::2]"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(header_host_is_loopback(good[i]));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(header_host_is_loopback(bad[i]));
    assert_false(header_host_is_loopback(NULL));
}

static void json_types_and_lengths_are_read(void **state)
{
    uint64_t length;

    (void)state;
    assert_true(header_is_json("application/json; charset=utf-8"));
    assert_true(header_is_json("application/vnd.x+json"));
    assert_false(header_is_json("application/jsonp"));
    assert_false(header_is_json("+json"));
    assert_false(header_is_json(NULL));
    assert_true(header_length("0", &length) && length == 0);
    assert_false(header_length("+5", &length));
    assert_false(header_length("5, 5", &length));
    assert_false(header_length("", &length));
    assert_false(header_length("18446744073709551616", &length));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_literal_wins_over_a_parameter),
        cmocka_unit_test(parameters_are_cut_out_of_the_path),
        cmocka_unit_test(head_is_get_and_other_methods_are_told),
        cmocka_unit_test(paths_that_only_look_alike_do_not_match),
        cmocka_unit_test(the_real_table_is_consistent),
        cmocka_unit_test(escapes_are_decoded_or_refused),
        cmocka_unit_test(long_values_are_a_limit),
        cmocka_unit_test(bearer_tokens_are_found),
        cmocka_unit_test(cookies_are_found_by_their_whole_name),
        cmocka_unit_test(accept_names_types_exactly),
        cmocka_unit_test(origins_are_the_own_host_or_listed),
        cmocka_unit_test(loopback_names_are_known),
        cmocka_unit_test(json_types_and_lengths_are_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
