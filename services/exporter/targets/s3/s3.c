/* Objects in S3 and what speaks like it. What several requests share (a key, an upload id) is
 * borrowed from the caller; the connection pool and the learnt region are in request.c. */
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/autos.h"
#include "common/clock.h"
#include "services/exporter/targets/s3/request.h"

#define PART_BYTES_MIN      (16 * MIB)
#define PART_COUNT_WANTED   UINT64_C(9500) /* a few hundred below the limit of 10,000 */
#define PART_BYTES_MAX      (5 * GIB)
#define OBJECT_BYTES_MAX    (PART_BYTES_MAX * TARGET_PARTS_MAX)
#define COMPLETE_BYTES_MAX  ((size_t)(4 * MIB)) /* 10,000 parts with SHA-256: 2 MiB */
#define LIST_PAGES_MAX      (TARGET_PARTS_MAX / S3_PAGE_MAX + 2)
#define SWEEP_PAGES_MAX     100
#define ABORT_TRIES         3
#define MD5_BYTES           16
#define NOT_IMPLEMENTED     501
#define BASE64_SIZE         48 /* of 32 bytes and the NUL */
#define EXPORT_ID_START     "/exp-"
#define EXPORT_ID_HEX_COUNT 16

struct s3 {
    struct target base; /* first */
    struct s3_server server;
    atomic_bool unconditional; /* this server knows no If-None-Match; the look before must do */
};

static struct s3 *s3_of(struct target *target)
{
    return (struct s3 *)target;
}

static void base64(const void *data, size_t size, char out[BASE64_SIZE])
{
    assert(size <= 32);
    (void)EVP_EncodeBlock((unsigned char *)out, data, (int)size);
}

static void add_query(struct s3_call *call, const char *name, const char *value)
{
    assert(call->query_count < S3_CALL_PAIRS_MAX);
    call->query[call->query_count++] = (struct s3_pair){name, value};
}

static void add_header(struct s3_call *call, const char *name, const char *value)
{
    assert(call->header_count < S3_CALL_PAIRS_MAX);
    call->headers[call->header_count++] = (struct s3_pair){name, value};
}

static bool checksum_is(const struct s3 *s3, const char *name)
{
    return strcmp(s3->base.base.options.settings->checksum, name) == 0;
}

/* "\"d41d...\"" -> d41d... */
static void plain_etag(const char *etag, char out[TARGET_TAG_SIZE])
{
    size_t length = 0;

    for (const char *p = etag; *p != '\0' && length + 1 < TARGET_TAG_SIZE; p++) {
        if (*p != '"')
            out[length++] = *p;
    }
    out[length] = '\0';
}

/* What S3 calls an object of these parts: MD5, or MD5 of the MD5s and their number. */
static void expected_etag(const struct target_object *object, const struct target_part *parts,
                          size_t count, char out[TARGET_TAG_SIZE])
{
    EVP_MD_CTX *md5;
    uint8_t raw[MD5_BYTES];
    char hex[2 * MD5_BYTES + 1];

    if (count == 1 && !object->in_parts) {
        hex_encode(parts[0].md5, MD5_BYTES, out);
        return;
    }
    md5 = EVP_MD_CTX_new();
    if (md5 == NULL || EVP_DigestInit_ex(md5, EVP_md5(), NULL) != 1)
        abort();
    for (size_t i = 0; i < count; i++) {
        if (EVP_DigestUpdate(md5, parts[i].md5, MD5_BYTES) != 1)
            abort();
    }
    if (EVP_DigestFinal_ex(md5, raw, NULL) != 1)
        abort();
    EVP_MD_CTX_free(md5);
    hex_encode(raw, sizeof raw, hex);
    (void)snprintf(out, TARGET_TAG_SIZE, "%s-%zu", hex, count);
}

/* ---- open, close ---- */

static void s3_close(struct target *target)
{
    struct s3 *s3 = s3_of(target);

    s3_server_release(&s3->server);
    free(s3);
}

static int check_access(struct s3 *s3, struct error *err)
{
    autofree char *prefix = target_key(&s3->base, "");
    autofree char *what = xasprintf("bucket '%s'", s3->base.base.options.url->host);
    struct s3_call call = {.method = "GET", .what = what, .fd = -1};
    auto_s3_reply reply = {0};

    /* A listing, not a HEAD: only answers with a body tell what is wrong. */
    add_query(&call, "max-keys", "1");
    add_query(&call, "prefix", prefix);
    return s3_perform(&s3->server, &call, &reply, err);
}

static int s3_open(const struct target_options *options, struct target **out, struct error *err)
{
    struct s3 *s3 = xcalloc(1, sizeof *s3);
    auto_target *guard = &s3->base;

    s3->base.base.class = &target_s3;
    s3->base.base.options = *options;
    if (s3_server_init(&s3->server, &s3->base, err) < 0 || check_access(s3, err) < 0)
        return -1;
    *out = STEAL(guard);
    return 0;
}

static uint64_t s3_part_size(uint64_t object_size)
{
    uint64_t size = object_size / PART_COUNT_WANTED + (object_size % PART_COUNT_WANTED != 0);

    return max_u64(PART_BYTES_MIN, round_up_u64(size, MIB));
}

/* ---- looking ---- */

static int head(struct s3 *s3, const char *name, struct s3_reply *reply, struct error *err)
{
    autofree char *key = target_key(&s3->base, name);
    struct s3_call call = {.method = "HEAD", .key = key, .what = name, .fd = -1};

    return s3_perform(&s3->server, &call, reply, err);
}

static int s3_exists(struct target *target, const struct target_object *object, bool *out,
                     struct error *err)
{
    auto_s3_reply reply = {0};

    *out = head(s3_of(target), object->name, &reply, err) == 0;
    if (*out || err->code != ERR_NOT_FOUND)
        return *out ? 0 : -1;
    error_clear(err);
    return 0;
}

static int s3_verify(struct target *target, const struct target_object *object,
                     const struct target_part *parts, size_t count, bool *out_proved,
                     struct error *err)
{
    auto_s3_reply reply = {0};
    char wanted[TARGET_TAG_SIZE];
    char got[TARGET_TAG_SIZE];

    if (head(s3_of(target), object->name, &reply, err) < 0)
        return -1;
    if (!reply.has_length || reply.length != object->size) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' has %" PRIu64 " bytes at the target, it should have %" PRIu64,
                         object->name, reply.length, object->size);
    }
    expected_etag(object, parts, count, wanted);
    plain_etag(reply.etag, got);
    *out_proved = strcasecmp(wanted, got) == 0;
    return 0;
}

static int s3_read(struct target *target, const char *name, struct target_range *range,
                   struct error *err)
{
    struct s3 *s3 = s3_of(target);
    autofree char *key = target_key(target, name);
    autofree char *bytes = xasprintf("bytes=%" PRIu64 "-%" PRIu64, range->offset,
                                     range->offset + (uint64_t)range->size - 1);
    struct s3_call call = {.method = "GET",
                           .key = key,
                           .what = name,
                           .fd = -1,
                           .into = range->buffer,
                           .into_size = range->size};
    auto_s3_reply reply = {0};

    add_header(&call, "range", bytes);
    range->got = 0;
    if (target_pay(target, range->size, err) < 0)
        return -1;
    if (s3_perform(&s3->server, &call, &reply, err) < 0) {
        if (reply.status != 416)
            return -1;
        error_clear(err);
        return 0; /* the end */
    }
    if (reply.status != 206 && range->offset != 0)
        return error_set(err, ERR_PROTOCOL, "'%.200s': the server ignores Range", name);
    range->got = reply.body_size;
    return 0;
}

/* ---- an upload ---- */

static int s3_begin(struct target *target, const struct target_object *object, size_t part_count,
                    char **out_id, struct error *err)
{
    struct s3 *s3 = s3_of(target);
    autofree char *key = target_key(target, object->name);
    struct s3_call call = {.method = "POST", .key = key, .what = object->name, .fd = -1};
    auto_s3_reply reply = {0};
    auto_s3_answer answer = {0};

    if (object->size > OBJECT_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "'%.200s' is over the largest object of S3", object->name);
    if (part_count == 1 && !object->in_parts) {
        *out_id = xstrdup("");
        return 0;
    }
    add_query(&call, "uploads", "");
    add_header(&call, "content-type", "application/octet-stream");
    if (checksum_is(s3, "sha256"))
        add_header(&call, "x-amz-checksum-algorithm", "SHA256");
    if (s3_perform(&s3->server, &call, &reply, err) < 0 ||
        s3_answer_read(reply.body == NULL ? "" : reply.body, reply.body_size, &answer, err) < 0)
        return -1;
    if (answer.upload_id[0] == '\0') {
        return error_set(err, ERR_PROTOCOL, "'%.200s': the server's answer has no UploadId",
                         object->name);
    }
    *out_id = xstrdup(answer.upload_id);
    return 0;
}

/* One page of the parts that the server holds. */
static int list_page(struct s3 *s3, const struct target_object *object, const char *id,
                     uint32_t after, struct s3_answer *out, struct error *err)
{
    autofree char *key = target_key(&s3->base, object->name);
    autofree char *marker = xasprintf("%" PRIu32, after);
    struct s3_call call = {.method = "GET", .key = key, .what = object->name, .fd = -1};
    auto_s3_reply reply = {0};

    add_query(&call, "uploadId", id);
    add_query(&call, "max-parts", "1000");
    add_query(&call, "part-number-marker", marker);
    if (s3_perform(&s3->server, &call, &reply, err) < 0)
        return -1;
    return s3_answer_read(reply.body == NULL ? "" : reply.body, reply.body_size, out, err);
}

static void mark_held(const struct s3_answer *page, const struct target_part *parts, size_t count,
                      bool *held)
{
    for (size_t i = 0; i < page->part_count; i++) {
        const struct s3_listed_part *listed = &page->parts[i];
        char tag[TARGET_TAG_SIZE];
        if (listed->number == 0 || listed->number > count)
            continue;
        plain_etag(listed->etag, tag);
        held[listed->number - 1] = parts[listed->number - 1].size == listed->size &&
                                   strcasecmp(parts[listed->number - 1].tag, tag) == 0;
    }
}

static int s3_held(struct target *target, const struct target_object *object, const char *id,
                   struct target_part *parts, size_t count, struct error *err)
{
    autofree bool *held = xcalloc(count, sizeof *held);
    uint32_t after = 0;
    bool more = id[0] != '\0';

    for (int page = 0; more; page++) {
        auto_s3_answer answer = {0};
        if (page == LIST_PAGES_MAX) {
            return error_set(err, ERR_PROTOCOL, "'%.200s': the server's part list has no end",
                             object->name);
        }
        if (list_page(s3_of(target), object, id, after, &answer, err) < 0)
            return -1;
        mark_held(&answer, parts, count, held);
        more = answer.truncated && answer.next_part > after;
        after = answer.next_part;
    }
    for (size_t i = 0; i < count; i++) {
        if (!held[i])
            parts[i].tag[0] = '\0';
    }
    return 0;
}

/* An object that is there already: of this very content, e.g. after a lost answer? */
static int conflict(struct s3 *s3, const struct target_object *object,
                    const struct target_part *parts, size_t count, struct error *err)
{
    struct error look = ERROR_NONE;
    bool proved = false;

    if (s3_verify(&s3->base, object, parts, count, &proved, &look) == 0 && proved) {
        error_clear(err);
        return 0;
    }
    error_clear(err);
    return error_set(err, ERR_CONFLICT,
                     "'%.200s' exists at the target with other content and is not replaced",
                     object->name);
}

/* What makes an object: it must not replace another one, as far as the server knows how. */
static int publish(struct s3 *s3, const struct s3_call *plain, struct s3_reply *reply,
                   struct error *err)
{
    struct s3_call call = *plain;

    if (!atomic_load(&s3->unconditional)) {
        add_header(&call, "if-none-match", "*");
        if (s3_perform(&s3->server, &call, reply, err) == 0 || reply->status != NOT_IMPLEMENTED)
            return err->code == ERR_NONE ? 0 : -1;
        atomic_store(&s3->unconditional, true);
        error_clear(err);
    }
    return s3_perform(&s3->server, plain, reply, err);
}

static int put_once(struct s3 *s3, const struct target_object *object, const char *id,
                    const struct s3_call *call, struct target_part *part, struct error *err)
{
    auto_s3_reply reply = {0};
    char md5[2 * MD5_BYTES + 1];

    int rc =
        id[0] == '\0' ? publish(s3, call, &reply, err) : s3_perform(&s3->server, call, &reply, err);

    if (rc < 0) {
        /* Damaged on the way; or the file changed, which no number of tries will mend. */
        if (strcmp(reply.error.code, "XAmzContentSHA256Mismatch") == 0)
            err->code = ERR_UNAVAILABLE;
        if (id[0] != '\0' || err->code != ERR_CONFLICT || conflict(s3, object, part, 1, err) < 0)
            return -1;
        hex_encode(part->md5, MD5_BYTES, part->tag);
        return 0;
    }
    plain_etag(reply.etag, part->tag);
    hex_encode(part->md5, MD5_BYTES, md5);
    if (part->tag[0] == '\0' || (!reply.encrypted && strlen(part->tag) == 2 * MD5_BYTES &&
                                 strcasecmp(part->tag, md5) != 0)) {
        part->tag[0] = '\0';
        return error_set(err, ERR_UNAVAILABLE,
                         "%.200s: the server stored other bytes than were sent (its ETag differs)",
                         call->what);
    }
    return 0;
}

static int s3_put_part(struct target *target, const struct target_object *object, const char *id,
                       int fd, struct target_part *part, struct error *err)
{
    struct s3 *s3 = s3_of(target);
    autofree char *key = target_key(target, object->name);
    autofree char *number = xasprintf("%" PRIu32, part->number);
    autofree char *what = xasprintf("'%.150s', part %s", object->name, number);
    char sha256[65];
    char md5_text[BASE64_SIZE];
    char sha256_text[BASE64_SIZE];
    struct s3_call call = {.method = "PUT",
                           .key = key,
                           .what = what,
                           .fd = fd,
                           .offset = part->offset,
                           .size = part->size,
                           .payload_sha256 = sha256};

    hex_encode(part->sha256, sizeof part->sha256, sha256);
    base64(part->md5, sizeof part->md5, md5_text);
    base64(part->sha256, sizeof part->sha256, sha256_text);
    if (checksum_is(s3, "md5")) {
        add_header(&call, "content-md5", md5_text);
    } else if (checksum_is(s3, "sha256")) {
        add_header(&call, "x-amz-checksum-sha256", sha256_text);
    }
    if (id[0] == '\0') {
        add_header(&call, "content-type", "application/octet-stream");
    } else {
        add_query(&call, "partNumber", number);
        add_query(&call, "uploadId", id);
    }
    for (uint32_t attempt = 0;; attempt++) {
        if (put_once(s3, object, id, &call, part, err) == 0)
            return 0;
        if (attempt + 1 >= ABORT_TRIES || !target_retry(target, attempt, 0, err))
            return -1;
    }
}

static int complete_text(const struct s3 *s3, const struct target_part *parts, size_t count,
                         char **out, struct error *err)
{
    auto_strbuf sb;

    strbuf_init(&sb, COMPLETE_BYTES_MAX);
    strbuf_add(&sb, "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (size_t i = 0; i < count; i++) {
        strbuf_add(&sb, "<Part><ETag>\"");
        strbuf_add_xml(&sb, parts[i].tag);
        strbuf_addf(&sb, "\"</ETag><PartNumber>%" PRIu32 "</PartNumber>", parts[i].number);
        if (checksum_is(s3, "sha256")) {
            char text[BASE64_SIZE];
            base64(parts[i].sha256, sizeof parts[i].sha256, text);
            strbuf_addf(&sb, "<ChecksumSHA256>%s</ChecksumSHA256>", text);
        }
        strbuf_add(&sb, "</Part>");
    }
    strbuf_add(&sb, "</CompleteMultipartUpload>");
    return strbuf_finish(&sb, out, err);
}

/* The server sends 200 before it knows: only the body says how it went. */
static int complete_once(struct s3 *s3, const struct s3_call *call, struct error *err)
{
    auto_s3_reply reply = {0};
    auto_s3_answer answer = {0};
    struct s3_error refusal;
    const char *body;

    if (publish(s3, call, &reply, err) < 0)
        return -1;
    body = reply.body == NULL ? "" : reply.body;
    if (s3_error_read(body, reply.body_size, &refusal)) {
        return s3_refusal(call, strcmp(refusal.code, "NoSuchUpload") == 0 ? 404 : reply.status,
                          &refusal, err);
    }
    if (s3_answer_read(body, reply.body_size, &answer, err) < 0)
        return -1;
    if (!answer.completed) {
        return error_set(err, ERR_PROTOCOL, "'%.200s': the server does not say that it completed",
                         call->what);
    }
    return 0;
}

static int s3_complete(struct target *target, const struct target_object *object, const char *id,
                       const struct target_part *parts, size_t count, struct error *err)
{
    struct s3 *s3 = s3_of(target);
    autofree char *key = target_key(target, object->name);
    autofree char *text = NULL;
    struct s3_call call = {.method = "POST", .key = key, .what = object->name, .fd = -1};

    if (id[0] == '\0')
        return 0; /* the only part was the object */
    if (complete_text(s3, parts, count, &text, err) < 0)
        return -1;
    call.data = text;
    call.size = strlen(text);
    add_query(&call, "uploadId", id);
    add_header(&call, "content-type", "application/xml");
    for (uint32_t attempt = 0;; attempt++) {
        if (complete_once(s3, &call, err) == 0)
            return 0;
        /* Done before, and the answer was lost? */
        if (err->code == ERR_NOT_FOUND || err->code == ERR_CONFLICT) {
            struct error first = *err;
            if (conflict(s3, object, parts, count, err) == 0)
                return 0;
            if (first.code == ERR_NOT_FOUND)
                *err = first;
            return -1;
        }
        if (!target_retry(target, attempt, 0, err))
            return -1;
    }
}

/* ---- remains ---- */

static int delete_key(struct s3 *s3, const struct s3_call *call, struct error *err)
{
    auto_s3_reply reply = {0};

    if (s3_perform(&s3->server, call, &reply, err) == 0)
        return 0;
    if (err->code != ERR_NOT_FOUND)
        return -1;
    error_clear(err);
    return 0;
}

static int s3_remove(struct target *target, const char *name, struct error *err)
{
    autofree char *key = target_key(target, name);
    const struct s3_call call = {.method = "DELETE", .key = key, .what = name, .fd = -1};

    return delete_key(s3_of(target), &call, err);
}

static int delete_upload(struct s3 *s3, const char *key, const char *id, struct error *err)
{
    struct s3_call call = {.method = "DELETE", .key = key, .what = key, .fd = -1};

    add_query(&call, "uploadId", id);
    return delete_key(s3, &call, err);
}

/* A PUT that was under way may still store its part: look, and repeat. */
static int s3_abort(struct target *target, const struct target_object *object, const char *id,
                    struct error *err)
{
    struct s3 *s3 = s3_of(target);
    autofree char *key = target_key(target, object->name);

    if (id[0] == '\0')
        return 0;
    for (int i = 0; i < ABORT_TRIES; i++) {
        auto_s3_answer left = {0};
        struct error look = ERROR_NONE;
        if (delete_upload(s3, key, id, err) < 0)
            return -1;
        if (list_page(s3, object, id, 0, &left, &look) < 0)
            return 0; /* gone; or nobody can say, and it was deleted */
    }
    return 0;
}

/* ".../exp-0123456789abcdef/<file>": an upload of ours, whatever else lives in the bucket. */
static bool is_ours(const char *key)
{
    for (const char *p = strstr(key, EXPORT_ID_START); p != NULL;
         p = strstr(p + 1, EXPORT_ID_START)) {
        const char *hex = p + strlen(EXPORT_ID_START);
        if (strspn(hex, "0123456789abcdef") == EXPORT_ID_HEX_COUNT &&
            hex[EXPORT_ID_HEX_COUNT] == '/' && strchr(hex + EXPORT_ID_HEX_COUNT + 1, '/') == NULL)
            return true;
    }
    return false;
}

static int sweep_page(struct s3 *s3, const struct s3_answer *page, int64_t before_ms,
                      const char *prefix, size_t *count, struct error *err)
{
    for (size_t i = 0; i < page->upload_count; i++) {
        const struct s3_listed_upload *upload = &page->uploads[i];
        if (upload->initiated_ms == 0 || upload->initiated_ms >= before_ms ||
            strncmp(upload->key, prefix, strlen(prefix)) != 0 || !is_ours(upload->key))
            continue;
        if (delete_upload(s3, upload->key, upload->id, err) < 0)
            return -1;
        (*count)++;
    }
    return 0;
}

static int s3_sweep(struct target *target, int64_t age_ms, size_t *out_count, struct error *err)
{
    struct s3 *s3 = s3_of(target);
    autofree char *prefix = target_key(target, "");
    int64_t before_ms = clock_wall_ms() + atomic_load(&s3->server.skew_ms) - age_ms;
    char next_key[S3_TEXT_MAX + 1] = "";
    char next_id[S3_TEXT_MAX + 1] = "";

    *out_count = 0;
    for (int page = 0; page < SWEEP_PAGES_MAX; page++) {
        struct s3_call call = {.method = "GET", .what = "unfinished uploads", .fd = -1};
        auto_s3_reply reply = {0};
        auto_s3_answer answer = {0};
        add_query(&call, "uploads", "");
        add_query(&call, "prefix", prefix);
        if (next_key[0] != '\0') {
            add_query(&call, "key-marker", next_key);
            add_query(&call, "upload-id-marker", next_id);
        }
        if (s3_perform(&s3->server, &call, &reply, err) < 0 ||
            s3_answer_read(reply.body == NULL ? "" : reply.body, reply.body_size, &answer, err) <
                0 ||
            sweep_page(s3, &answer, before_ms, prefix, out_count, err) < 0)
            return -1;
        if (!answer.truncated || answer.next_key[0] == '\0')
            return 0;
        memcpy(next_key, answer.next_key, sizeof next_key);
        memcpy(next_id, answer.next_id, sizeof next_id);
    }
    return 0;
}

const struct target_class target_s3 = {
    .scheme = "s3",
    .any_order = true,
    .open = s3_open,
    .close = s3_close,
    .part_size = s3_part_size,
    .exists = s3_exists,
    .begin = s3_begin,
    .held = s3_held,
    .put_part = s3_put_part,
    .complete = s3_complete,
    .verify = s3_verify,
    .read = s3_read,
    .remove = s3_remove,
    .abort = s3_abort,
    .sweep = s3_sweep,
};
