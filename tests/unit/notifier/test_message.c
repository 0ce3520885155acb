/* What a webhook receives: body, headers, signature; from payloads that lack something or hold too
 * much. */
#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/json.h"
#include "common/seal.h"
#include "services/notifier/message.h"

static const char master_hex[] = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

static struct delivery *delivery_of(const char *payload)
{
    struct error err = ERROR_NONE;
    struct delivery *delivery = xcalloc(1, sizeof *delivery);

    delivery->id = xstrdup("7");
    delivery->webhook_id = xstrdup("wh-1");
    delivery->event = xstrdup("job.failed");
    delivery->job_id = xstrdup("job-1");
    delivery->created_at = xstrdup("2026-03-01T03:10:09Z");
    assert_ok(json_parse(payload, strlen(payload), 10000, &delivery->payload, &err), err);
    return delivery;
}

static const char *header(const struct message *message, const char *name)
{
    size_t n = strlen(name);

    for (const struct curl_slist *h = message->headers; h != NULL; h = h->next) {
        if (strncmp(h->data, name, n) == 0 && strncmp(h->data + n, ": ", 2) == 0)
            return h->data + n + 2;
    }
    return NULL;
}

static void an_empty_payload_still_has_the_seven_keys(void **state)
{
    struct error err = ERROR_NONE;
    auto_delivery *delivery = delivery_of("{\"error\": null}");
    auto_message message = {0};

    (void)state;
    assert_ok(message_make(delivery, "/nonexistent", &message, &err), err);
    assert_string_equal(message.body,
                        "{\"event\":\"job.failed\",\"timestamp\":\"2026-03-01T03:10:09Z\","
                        "\"job_id\":\"job-1\",\"vm_name\":\"\",\"status\":\"\","
                        "\"duration_seconds\":0,\"exported_files\":[],\"delivery_id\":\"7\"}");
    assert_string_equal(header(&message, "Content-Type"), "application/json");
    assert_string_equal(header(&message, "X-HyperSDK-Event"), "job.failed");
    assert_string_equal(header(&message, "X-HyperSDK-Delivery"), "7");
    assert_null(header(&message, "X-HyperSDK-Signature"));
}

static void only_documented_keys_leave_the_house(void **state)
{
    struct error err = ERROR_NONE;
    auto_delivery *delivery =
        delivery_of("{\"event\":\"job.completed\",\"vm_name\":\"web\",\"status\":\"completed\","
                    "\"duration_seconds\":1.5,\"exported_files\":[\"/a\"],\"provider\":\"v\","
                    "\"vm_path\":\"/p\",\"total_size\":5,\"error\":\"e\",\"manifest_path\":\"/m\","
                    "\"schedule_id\":\"s\",\"internal\":1,\"delivery_id\":\"forged\"}");
    auto_message message = {0};
    auto_json *body = NULL;

    (void)state;
    assert_ok(message_make(delivery, "/nonexistent", &message, &err), err);
    assert_ok(json_parse(message.body, strlen(message.body), 10000, &body, &err), err);
    assert_int_equal(json_object_size(body), 14);
    assert_string_equal(json_str(body, "event"), "job.completed");
    assert_string_equal(json_str(body, "delivery_id"), "7");
    assert_null(json_object_get(body, "internal"));
}

static void seal_into(struct delivery *delivery, const char *dir, const char *secrets)
{
    struct error err = ERROR_NONE;
    auto_seal_master *master = NULL;
    auto_seal_key *key = NULL;

    assert_ok(seal_master_new(master_hex, &master, &err), err);
    key = seal_master_derive(master, "notify");
    assert_ok(seal_key_save(key, dir, &err), err);
    free(delivery->sealed);
    seal(key, secrets, strlen(secrets), &delivery->sealed, &delivery->sealed_size);
}

static void sealed_headers_and_signature_are_added(void **state)
{
    struct error err = ERROR_NONE;
    auto_scratch *dir = scratch_make();
    auto_delivery *delivery = delivery_of("{}");
    auto_message message = {0};

    (void)state;
    seal_into(delivery, dir, "{\"headers\":{\"X-Token\":\"abc\"},\"secret\":\"k\"}");
    assert_ok(message_make(delivery, dir, &message, &err), err);
    assert_string_equal(header(&message, "X-Token"), "abc");
    /* independent: printf '%s' BODY | openssl dgst -sha256 -hmac k */
    assert_string_equal(header(&message, "X-HyperSDK-Signature"),
                        "sha256="
                        "321c08e77cc558eb1068282c993b38b8860947b745af0134a3edfdfeec53458d");
}

static void wrong_secrets_are_refused_without_telling_them(void **state)
{
    static const struct {
        const char *secrets;
        const char *message;
    } bad[] = {
        {"{\"headers\":{\"X\":\"tell\\r\\nEvil: 1\"}}", "control character"},
        {"{\"headers\":{\"X\":7}}", "malformed"},
        {"not json", "webhook 'wh-1'"},
    };
    struct error err = ERROR_NONE;
    auto_scratch *dir = scratch_make();
    auto_scratch *empty = scratch_make();
    auto_delivery *delivery = delivery_of("{}");
    struct message message = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        seal_into(delivery, dir, bad[i].secrets);
        assert_int_equal(message_make(delivery, dir, &message, &err), -1);
        assert_null(strstr(err.message, "tell"));
        error_clear(&err);
        assert_fails(message_make(delivery, dir, &message, &err), err, ERR_INVALID, bad[i].message);
    }
    assert_fails(message_make(delivery, empty, &message, &err), err, ERR_NOT_FOUND,
                 "--export-keys");
    delivery->sealed[delivery->sealed_size - 1] ^= 1;
    assert_fails(message_make(delivery, dir, &message, &err), err, ERR_DENIED, "tampered");
    assert_null(message.body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_payload_still_has_the_seven_keys),
        cmocka_unit_test(only_documented_keys_leave_the_house),
        cmocka_unit_test(sealed_headers_and_signature_are_added),
        cmocka_unit_test(wrong_secrets_are_refused_without_telling_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
