/* The HTTP client against a local server: methods, limits, certificates, pins, cancelling. */
#include "tests/unit/common/http_fixture.h"

#include "common/autos.h"
#include "common/http_client.h"

static struct http_server *plain;
static struct http_server *tls;
static char *dir;
static char *ca_file;
static char sha1[60];
static char sha256[96];

static void thumbprint(const EVP_MD *digest, char *out)
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned int size = 0;

    assert_int_equal(X509_digest(SSL_CTX_get0_certificate(tls->tls), digest, raw, &size), 1);
    for (unsigned int i = 0; i < size; i++)
        (void)snprintf(out + (size_t)3 * i, 4, "%02X%s", raw[i], i + 1 < size ? ":" : "");
}

static int set_up_servers(void **state)
{
    (void)state;
    dir = scratch_make();
    ca_file = xasprintf("%s/ca.pem", dir);
    plain = server_start(NULL);
    tls = server_start(server_tls("DNS:localhost,IP:127.0.0.1", ca_file));
    thumbprint(EVP_sha1(), sha1);
    thumbprint(EVP_sha256(), sha256);
    return 0;
}

static int tear_down_servers(void **state)
{
    (void)state;
    server_stop(plain);
    server_stop(tls);
    free(ca_file);
    scratch_remove(dir);
    return 0;
}

static CURL *handle_of(const struct http_options *options)
{
    struct error err = ERROR_NONE;
    CURL *curl = NULL;

    assert_ok(http_handle_new(options, &curl, &err), err);
    return curl;
}

/* One GET with a new handle. */
static int get(const struct http_server *server, const char *path,
               const struct http_options *options, struct http_response *out, struct error *err)
{
    auto_curl *curl = handle_of(options);
    autofree char *url = server_url(server, "127.0.0.1", path);

    return http_request(curl, &(struct http_call){.method = "GET", .url = url}, out, err);
}

static const struct http_options http_ok = {.allow_http = true, .timeout_ms = 20000};

static void an_answer_has_status_body_and_type(void **state)
{
    struct error err = ERROR_NONE;
    auto_http_response response = {0};
    auto_http_response busy = {0};
    auto_http_response empty = {0};

    (void)state;
    assert_ok(get(plain, "/hello", &http_ok, &response, &err), err);
    assert_int_equal(response.status, 200);
    assert_string_equal(response.body, "hello");
    assert_int_equal(response.body_size, 5);
    assert_string_equal(response.content_type, "text/plain");
    assert_ok(get(plain, "/status", &http_ok, &busy, &err), err);
    assert_int_equal(busy.status, 503);
    assert_string_equal(busy.body, "busy");
    assert_ok(get(plain, "/empty", &http_ok, &empty, &err), err);
    assert_int_equal(empty.status, 204);
    assert_string_equal(empty.body, "");
    assert_string_equal(empty.content_type, "");
}

static void redirects_are_not_followed(void **state)
{
    struct error err = ERROR_NONE;
    auto_http_response response = {0};

    (void)state;
    assert_ok(get(plain, "/redirect", &http_ok, &response, &err), err);
    assert_int_equal(response.status, 302);
}

/* Method, headers and body of one request must not leak into the next one of the same handle. */
static void one_handle_serves_many_methods(void **state)
{
    static const struct {
        const char *method;
        const char *body;
        const char *starts;
        const char *ends;
    } calls[] = {
        {"POST", "one", "POST /echo ", "\r\n\r\none"},
        {"GET", NULL, "GET /echo ", "\r\n\r\n"},
        {"PUT", "two", "PUT /echo ", "\r\n\r\ntwo"},
        {"DELETE", NULL, "DELETE /echo ", "\r\n\r\n"},
        {"POST", NULL, "POST /echo ", "\r\n\r\n"},
        {"GET", NULL, "GET /echo ", "\r\n\r\n"},
        {"PATCH", "x", "PATCH /echo ", "\r\n\r\nx"},
    };
    struct error err = ERROR_NONE;
    auto_curl *curl = handle_of(&http_ok);
    autofree char *url = server_url(plain, "127.0.0.1", "/echo");
    autofree char *hello = server_url(plain, "127.0.0.1", "/hello");
    auto_http_response head = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
        auto_http_response r = {0};
        auto_curl_slist *headers = curl_slist_append(NULL, "X-Unit: yes");
        size_t n = strlen(calls[i].ends);
        const char *body = calls[i].body;
        assert_ok(http_request(curl,
                               &(struct http_call){calls[i].method, url, i == 0 ? headers : NULL,
                                                   body, body == NULL ? 0 : strlen(body)},
                               &r, &err),
                  err);
        assert_memory_equal(r.body, calls[i].starts, strlen(calls[i].starts));
        assert_string_equal(r.body + r.body_size - n, calls[i].ends);
        assert_int_equal(strstr(r.body, "X-Unit: yes") != NULL, i == 0);
        assert_int_equal(strstr(r.body, "ontent-Length") != NULL,
                         body != NULL || strcmp(calls[i].method, "POST") == 0);
    }
    assert_ok(http_request(curl, &(struct http_call){.method = "HEAD", .url = hello}, &head, &err),
              err);
    assert_int_equal(head.status, 200);
    assert_int_equal(head.body_size, 0);
}

static void a_body_over_the_limit_is_refused(void **state)
{
    struct http_options options = http_ok;
    struct error err = ERROR_NONE;
    struct http_response none = {0};
    auto_http_response big = {0};
    auto_http_response exact = {0};

    (void)state;
    assert_fails(get(plain, "/big", &options, &none, &err), err, ERR_LIMIT, "over 1048576 bytes");
    options.body_bytes_max = 2 * MIB;
    assert_ok(get(plain, "/big", &options, &big, &err), err);
    assert_int_equal(big.body_size, 2 * MIB);
    options.body_bytes_max = 4;
    assert_fails(get(plain, "/hello", &options, &none, &err), err, ERR_LIMIT, "over 4 bytes");
    options.body_bytes_max = 5;
    assert_ok(get(plain, "/hello", &options, &exact, &err), err);
    assert_null(none.body);
}

static void broken_peers_are_told_apart(void **state)
{
    struct error err = ERROR_NONE;
    struct http_options options = http_ok;
    struct http_response none = {0};
    auto_curl *curl = handle_of(&http_ok);

    (void)state;
    assert_fails(get(plain, "/cut", &options, &none, &err), err, ERR_UNAVAILABLE, "90 bytes");
    assert_fails(get(plain, "/garbage", &options, &none, &err), err, ERR_PROTOCOL, "HTTP/0.9");
    options.timeout_ms = 200;
    assert_fails(get(plain, "/silent", &options, &none, &err), err, ERR_TIMEOUT, "no answer");
    assert_fails(get(plain, "/drip", &options, &none, &err), err, ERR_TIMEOUT, "no answer");
    assert_fails(http_request(curl,
                              &(struct http_call){.method = "GET", .url = "http://127.0.0.1:1/"},
                              &none, &err),
                 err, ERR_UNAVAILABLE, "Connection refused");
    assert_fails(
        http_request(curl,
                     &(struct http_call){.method = "GET", .url = "http://no-such-host.invalid/"},
                     &none, &err),
        err, ERR_UNAVAILABLE, "no-such-host.invalid");
    assert_fails(
        http_request(curl, &(struct http_call){.method = "GET", .url = "::nonsense"}, &none, &err),
        err, ERR_INVALID, "");
    assert_null(none.body);
}

static void only_wanted_protocols_are_spoken(void **state)
{
    struct http_options options = {.timeout_ms = 20000};
    struct error err = ERROR_NONE;
    struct http_response none = {0};
    auto_curl *secure = handle_of(&options);
    auto_curl *both = handle_of(&http_ok);
    autofree char *url = server_url(plain, "127.0.0.1", "/hello");

    (void)state;
    assert_fails(
        http_request(secure, &(struct http_call){.method = "GET", .url = url}, &none, &err), err,
        ERR_INVALID, "http");
    assert_fails(http_request(both,
                              &(struct http_call){.method = "GET", .url = "file:///etc/passwd"},
                              &none, &err),
                 err, ERR_INVALID, "file");
    assert_fails(http_request(both, &(struct http_call){.method = "GET", .url = "ftp://127.0.0.1/"},
                              &none, &err),
                 err, ERR_INVALID, "ftp");
}

static void cancelling_stops_a_transfer(void **state)
{
    static atomic_bool cancelled;
    struct http_options options = {.allow_http = true, .cancelled = &cancelled};
    struct error err = ERROR_NONE;
    struct http_response none = {0};

    (void)state;
    atomic_store(&cancelled, true);
    assert_fails(get(plain, "/drip", &options, &none, &err), err, ERR_CANCELLED, "cancelled");
}

static void an_unknown_certificate_is_refused_with_its_thumbprint(void **state)
{
    struct http_options options = {.timeout_ms = 20000};
    struct error err = ERROR_NONE;
    struct http_response none = {0};

    (void)state;
    assert_fails(get(tls, "/hello", &options, &none, &err), err, ERR_DENIED, sha256);
}

static void the_right_ca_is_believed_for_its_names_only(void **state)
{
    autofree char *other_ca = xasprintf("%s/other.pem", dir);
    struct http_server *misnamed = server_start(server_tls("DNS:elsewhere.example", other_ca));
    struct http_options options = {.timeout_ms = 20000, .ca_file = ca_file};
    struct error err = ERROR_NONE;
    auto_http_response response = {0};
    struct http_response none = {0};

    (void)state;
    assert_ok(get(tls, "/hello", &options, &response, &err), err);
    assert_string_equal(response.body, "hello");
    assert_fails(get(misnamed, "/hello", &options, &none, &err), err, ERR_DENIED, "not trusted");
    options.ca_file = other_ca; /* its chain is fine, its name is not ours */
    assert_fails(get(misnamed, "/hello", &options, &none, &err), err, ERR_DENIED, "not trusted");
    options.ca_file = "/nonexistent.pem";
    assert_fails(get(tls, "/hello", &options, &none, &err), err, ERR_INVALID, "");
    server_stop(misnamed);
}

static void a_pin_replaces_chain_and_name(void **state)
{
    struct error err = ERROR_NONE;
    char bare[96] = "";
    char lower[96] = "";
    const char *const pins[] = {sha1, sha256, bare, lower};
    struct http_response none = {0};
    struct http_options wrong = {.timeout_ms = 20000, .thumbprint = "AA:BB:CC"};
    char nearly[60];
    size_t n = 0;

    (void)state;
    for (const char *p = sha256; *p != '\0'; p++) {
        if (*p != ':')
            bare[n++] = *p;
    }
    for (size_t i = 0; sha1[i] != '\0'; i++)
        lower[i] = (char)(sha1[i] >= 'A' && sha1[i] <= 'F' ? sha1[i] | 0x20 : sha1[i]);
    for (size_t i = 0; i < ARRAY_LEN(pins); i++) {
        struct http_options options = {.timeout_ms = 20000, .thumbprint = pins[i]};
        auto_http_response response = {0};
        assert_ok(get(tls, "/hello", &options, &response, &err), err);
        assert_int_equal(response.status, 200);
    }
    assert_fails(get(tls, "/hello", &wrong, &none, &err), err, ERR_DENIED, sha256);
    memcpy(nearly, sha1, sizeof nearly);
    nearly[0] = nearly[0] == '0' ? '1' : '0';
    wrong.thumbprint = nearly;
    assert_fails(get(tls, "/hello", &wrong, &none, &err), err, ERR_DENIED, "not trusted");
    wrong.thumbprint = sha1;
    wrong.ca_file = ca_file; /* both given: the pin decides */
    wrong.thumbprint = "00";
    assert_fails(get(tls, "/hello", &wrong, &none, &err), err, ERR_DENIED, "not trusted");
}

static void insecure_believes_everyone(void **state)
{
    struct http_options options = {.timeout_ms = 20000, .insecure = true};
    struct error err = ERROR_NONE;
    auto_http_response response = {0};

    (void)state;
    assert_ok(get(tls, "/hello", &options, &response, &err), err);
    assert_int_equal(response.status, 200);
}

static void private_targets_are_refused_by_address_not_by_name(void **state)
{
    struct http_options options = {.allow_http = true, .timeout_ms = 20000, .block_private = true};
    struct error err = ERROR_NONE;
    struct http_response none = {0};
    auto_curl *curl = handle_of(&options);
    autofree char *by_name = server_url(plain, "localhost", "/hello");
    autofree char *by_number = server_url(plain, "2130706433", "/hello"); /* 127.0.0.1 */

    (void)state;
    assert_fails(get(plain, "/hello", &options, &none, &err), err, ERR_DENIED, "private");
    assert_fails(
        http_request(curl, &(struct http_call){.method = "GET", .url = by_name}, &none, &err), err,
        ERR_DENIED, "private");
    assert_fails(
        http_request(curl, &(struct http_call){.method = "GET", .url = by_number}, &none, &err),
        err, ERR_DENIED, "private");
    assert_fails(http_request(curl, &(struct http_call){.method = "GET", .url = "http://[::1]:1/"},
                              &none, &err),
                 err, ERR_DENIED, "private");
    /* the refusal belongs to that request: another failure later is told as what it is */
    curl_easy_cleanup(curl);
    curl = handle_of(&http_ok);
    assert_fails(http_request(curl,
                              &(struct http_call){.method = "GET", .url = "http://127.0.0.1:1/"},
                              &none, &err),
                 err, ERR_UNAVAILABLE, "refused");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_has_status_body_and_type),
        cmocka_unit_test(redirects_are_not_followed),
        cmocka_unit_test(one_handle_serves_many_methods),
        cmocka_unit_test(a_body_over_the_limit_is_refused),
        cmocka_unit_test(broken_peers_are_told_apart),
        cmocka_unit_test(only_wanted_protocols_are_spoken),
        cmocka_unit_test(cancelling_stops_a_transfer),
        cmocka_unit_test(an_unknown_certificate_is_refused_with_its_thumbprint),
        cmocka_unit_test(the_right_ca_is_believed_for_its_names_only),
        cmocka_unit_test(a_pin_replaces_chain_and_name),
        cmocka_unit_test(insecure_believes_everyone),
        cmocka_unit_test(private_targets_are_refused_by_address_not_by_name),
    };

    http_global_init();
    (void)signal(SIGPIPE, SIG_IGN);
    for (const char *const *name = (const char *const[]){"http_proxy", "https_proxy", "all_proxy",
                                                         "HTTPS_PROXY", "ALL_PROXY", NULL};
         *name != NULL; name++)
        (void)unsetenv(*name); /* the tests speak to this machine */
    return cmocka_run_group_tests(tests, set_up_servers, tear_down_servers);
}
