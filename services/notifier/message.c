/* See message.h. */
#include "services/notifier/message.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/seal.h"

#define SIGNATURE_HEADER "X-HyperSDK-Signature"

void message_release(struct message *message)
{
    free(message->body);
    curl_slist_free_all(message->headers);
    *message = (struct message){0};
}

/* Keys that a payload may have besides the seven. */
static const char *const extra_keys[] = {"provider", "vm_path",       "total_size",
                                         "error",    "manifest_path", "schedule_id"};

static void copy_or(json_t *to, const json_t *from, const char *key, json_t *fallback)
{
    json_t *value = json_object_get(from, key);

    if (value == NULL || json_is_null(value)) {
        (void)json_object_set_new(to, key, fallback);
        return;
    }
    (void)json_object_set(to, key, value);
    json_decref(fallback);
}

static char *make_body(const struct delivery *delivery)
{
    auto_json *body = json_object();
    const json_t *from = delivery->payload;

    copy_or(body, from, "event", json_string(delivery->event));
    copy_or(body, from, "timestamp", json_string(delivery->created_at));
    copy_or(body, from, "job_id", json_string(delivery->job_id));
    copy_or(body, from, "vm_name", json_string(""));
    copy_or(body, from, "status", json_string(""));
    copy_or(body, from, "duration_seconds", json_integer(0));
    copy_or(body, from, "exported_files", json_array());
    for (size_t i = 0; i < ARRAY_LEN(extra_keys); i++) {
        json_t *value = json_object_get(from, extra_keys[i]);
        if (value != NULL && !json_is_null(value))
            (void)json_object_set(body, extra_keys[i], value);
    }
    json_set_text(body, "delivery_id", delivery->id);
    return json_text(body);
}

static int add_header(struct message *message, const char *name, const char *value,
                      struct error *err)
{
    autofree char *line = NULL;

    for (const char *p = value; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 && *p != '\t')
            return error_set(err, ERR_INVALID, "header '%.64s' holds a control character", name);
    }
    line = xasprintf("%s: %s", name, value);
    message->headers = curl_slist_append(message->headers, line);
    explicit_bzero(line, strlen(line)); /* it may be a token */
    return 0;
}

/* "sha256=<hex>" of HMAC-SHA-256 over the body. */
static int add_signature(struct message *message, const char *secret, struct error *err)
{
    unsigned char mac[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    char text[7 + 2 * EVP_MAX_MD_SIZE + 1] = "sha256=";

    if (HMAC(EVP_sha256(), secret, (int)strlen(secret), (const unsigned char *)message->body,
             strlen(message->body), mac, &size) == NULL)
        return error_set(err, ERR_INTERNAL, "the signature cannot be made");
    hex_encode(mac, size, text + 7);
    return add_header(message, SIGNATURE_HEADER, text, err);
}

/* sealed JSON: {"headers": {name: value}, "secret": text} */
static int add_sealed(struct message *message, const struct delivery *delivery, const char *key_dir,
                      struct error *err)
{
    auto_seal_key *key = NULL;
    auto_secret *text = NULL;
    auto_json *secrets = NULL;
    size_t size = 0;
    size_t count = 0;
    const char *name;
    json_t *value;

    if (seal_key_load(key_dir, "notify", &key, err) < 0 ||
        seal_open(key, delivery->sealed, delivery->sealed_size, &text, &size, err) < 0 ||
        json_parse(text, size, SEAL_SECRET_BYTES_MAX, &secrets, err) < 0)
        return error_wrap(err, "headers of webhook '%.64s'", delivery->webhook_id);
    json_object_foreach(json_object_get(secrets, "headers"), name, value)
    {
        if (!json_is_string(value) || ++count > MESSAGE_HEADERS_MAX) {
            return error_set(err, ERR_INVALID, "headers of webhook '%.64s' are malformed",
                             delivery->webhook_id);
        }
        if (add_header(message, name, json_string_value(value), err) < 0)
            return -1;
    }
    if (json_str(secrets, "secret")[0] != '\0')
        return add_signature(message, json_str(secrets, "secret"), err);
    return 0;
}

int message_make(const struct delivery *delivery, const char *key_dir, struct message *out,
                 struct error *err)
{
    auto_message message = {0};

    message.body = make_body(delivery);
    if (add_header(&message, "Content-Type", "application/json", err) < 0 ||
        add_header(&message, "X-HyperSDK-Event", delivery->event, err) < 0 ||
        add_header(&message, "X-HyperSDK-Delivery", delivery->id, err) < 0)
        return -1;
    if (delivery->sealed != NULL && add_sealed(&message, delivery, key_dir, err) < 0)
        return -1;
    *out = message;
    message = (struct message){0};
    return 0;
}
