/* See records.h. */
#include "records.h"

#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/strbuf.h"

#define KEY_SIZE       48
#define CHUNK_BYTES    3000 /* records hold 4096 bytes, and a chunk is cut between characters */
#define CHUNKS_MAX     (REPLACED_XML_MAX / CHUNK_BYTES + 1)
#define TARGET_KEY     "import.target"
#define UUID_KEY       "import.domain"
#define NAMES_KEY      "import.names"
#define VOLUME_KEY     "import.volume.%zu"
#define REPLACED_KEY   "import.replaced.%zu"
#define MARK_KEY       "import.mark.%zu"
#define JSON_BYTES_MAX 8192

static const char *text_of(const struct worker_task *task, const char *key)
{
    const char *text = worker_task_record_get(task, key);

    return text == NULL ? "" : text;
}

static json_t *object_of(const struct worker_task *task, const char *key)
{
    const char *text = text_of(task, key);
    struct error ignored = ERROR_NONE;
    json_t *object = NULL;

    if (text[0] == '\0' || json_parse(text, strlen(text), JSON_BYTES_MAX, &object, &ignored) < 0)
        return NULL;
    return object;
}

static int put_object(struct worker_task *task, const char *key, const json_t *object,
                      struct error *err)
{
    autofree char *text = json_text(object);

    return worker_task_record_put(task, key, text, err);
}

/* ---- volumes ---- */

bool record_volume(const struct worker_task *task, size_t index, struct made_volume *out)
{
    char key[KEY_SIZE];

    (void)snprintf(key, sizeof key, VOLUME_KEY, index);
    *out = (struct made_volume){.json = object_of(task, key)};
    if (out->json == NULL)
        return false;
    out->pool = json_str(out->json, "pool");
    out->name = json_str(out->json, "name");
    out->complete = json_is_true(json_object_get(out->json, "complete"));
    return true;
}

int record_volume_put(struct worker_task *task, size_t index, const char *pool, const char *name,
                      bool complete, struct error *err)
{
    auto_json *object = json_object();
    char key[KEY_SIZE];

    (void)snprintf(key, sizeof key, VOLUME_KEY, index);
    json_set_text(object, "pool", pool);
    json_set_text(object, "name", name);
    json_put(object, "complete", json_boolean(complete));
    return put_object(task, key, object, err);
}

int record_volume_drop(struct worker_task *task, size_t index, struct error *err)
{
    char key[KEY_SIZE];

    (void)snprintf(key, sizeof key, VOLUME_KEY, index);
    return worker_task_record_put(task, key, "", err);
}

/* ---- target and domain ---- */

int record_target_put(struct worker_task *task, const char *uri, const char *job_id,
                      struct error *err)
{
    auto_json *object = json_object();

    json_set_text(object, "uri", uri);
    json_set_text(object, "job", job_id);
    return put_object(task, TARGET_KEY, object, err);
}

json_t *record_target(const struct worker_task *task)
{
    return object_of(task, TARGET_KEY);
}

const char *record_uuid(const struct worker_task *task)
{
    return text_of(task, UUID_KEY);
}

int record_uuid_put(struct worker_task *task, const char *uuid, struct error *err)
{
    return worker_task_record_put(task, UUID_KEY, uuid, err);
}

int record_names_claim(struct worker_task *task, const char *uri, struct error *err)
{
    return worker_task_record_claim(task, NAMES_KEY, uri, err);
}

int record_names_release(struct worker_task *task, struct error *err)
{
    return worker_task_record_put(task, NAMES_KEY, "", err);
}

/* ---- the replaced definition ---- */

char *record_replaced(const struct worker_task *task)
{
    auto_strbuf sb;

    strbuf_init(&sb, REPLACED_XML_MAX + CHUNK_BYTES);
    for (size_t i = 0; i < CHUNKS_MAX; i++) {
        char key[KEY_SIZE];
        const char *chunk;
        (void)snprintf(key, sizeof key, REPLACED_KEY, i);
        chunk = text_of(task, key);
        if (chunk[0] == '\0')
            break;
        strbuf_add(&sb, chunk);
    }
    return sb.length == 0 ? NULL : xstrdup(sb.data);
}

/* The number of bytes of a chunk that ends between characters. */
static size_t chunk_length(const char *text)
{
    size_t length = strnlen(text, CHUNK_BYTES);

    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80)
        length--;
    return length;
}

int record_replaced_put(struct worker_task *task, const char *xml, struct error *err)
{
    size_t i = 0;

    if (strlen(xml) > REPLACED_XML_MAX) {
        return error_set(err, ERR_LIMIT, "the domain's definition of %zu bytes is over %zu",
                         strlen(xml), REPLACED_XML_MAX);
    }
    for (;; i++) {
        autofree char *chunk = xstrndup(xml, chunk_length(xml));
        char key[KEY_SIZE];
        (void)snprintf(key, sizeof key, REPLACED_KEY, i);
        if (chunk[0] == '\0' && worker_task_record_get(task, key) == NULL)
            return 0;
        if (worker_task_record_put(task, key, chunk, err) < 0)
            return -1;
        if (chunk[0] == '\0')
            return 0;
        xml += strlen(chunk);
    }
}

/* ---- marks ---- */

const char *record_mark(const struct worker_task *task, size_t index)
{
    char key[KEY_SIZE];

    (void)snprintf(key, sizeof key, MARK_KEY, index);
    return text_of(task, key);
}

int record_mark_put(struct worker_task *task, size_t index, const char *dir, struct error *err)
{
    char key[KEY_SIZE];

    (void)snprintf(key, sizeof key, MARK_KEY, index);
    return worker_task_record_put(task, key, dir, err);
}
