/* What a webhook receives: the body (rest-api.md section 7) and the headers. */
#ifndef NOTIFIER_MESSAGE_H
#define NOTIFIER_MESSAGE_H

#include <curl/curl.h>

#include "services/notifier/store.h"

#define MESSAGE_HEADERS_MAX 32

struct message {
    char *body; /* the flat payload with delivery_id; only documented keys */
    struct curl_slist *headers;
};
void message_release(struct message *message);
#define auto_message CLEANUP(message_release) struct message

/* key_dir: where the key of audience "notify" lies; looked at only when the webhook has sealed
 * headers or a secret. ERR_NOT_FOUND, ERR_DENIED: key missing or another one. */
MUST_CHECK int message_make(const struct delivery *delivery, const char *key_dir,
                            struct message *out, struct error *err);

#endif
