/* See sign.h. */
#include "services/exporter/targets/s3/sign.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <time.h>

#include "common/strbuf.h"

#define ALGORITHM  "AWS4-HMAC-SHA256"
#define HASH_BYTES 32
#define HEX_SIZE   (2 * HASH_BYTES + 1)

static int compare_pairs(const void *a, const void *b)
{
    const struct s3_pair *left = a;
    const struct s3_pair *right = b;
    int order = strcmp(left->name, right->name);

    return order != 0 ? order : strcmp(left->value, right->value);
}

char *s3_encode_key(const char *key)
{
    auto_strbuf sb;
    char *out = NULL;
    struct error none = ERROR_NONE;

    strbuf_init(&sb, 3 * strlen(key) + 1);
    for (const char *p = key; *p != '\0';) {
        size_t length = strcspn(p, "/");
        autofree char *piece = xstrndup(p, length);
        strbuf_add_url(&sb, piece);
        p += length;
        if (*p == '/') {
            strbuf_addc(&sb, '/');
            p++;
        }
    }
    if (strbuf_finish(&sb, &out, &none) < 0)
        abort(); /* three bytes for each always suffice */
    return out;
}

char *s3_query_text(const struct s3_pair *query, size_t count)
{
    struct s3_pair sorted[S3_PAIRS_MAX];
    auto_strbuf sb;

    assert(count <= S3_PAIRS_MAX);
    memcpy(sorted, query, count * sizeof *query);
    qsort(sorted, count, sizeof *sorted, compare_pairs);
    strbuf_init(&sb, S3_SIGNING_BYTES);
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            strbuf_addc(&sb, '&');
        strbuf_add_url(&sb, sorted[i].name);
        strbuf_addc(&sb, '=');
        strbuf_add_url(&sb, sorted[i].value);
    }
    return xstrdup(sb.data);
}

void s3_date(int64_t wall_ms, char out[S3_DATE_SIZE])
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm utc;

    if (gmtime_r(&seconds, &utc) == NULL ||
        strftime(out, S3_DATE_SIZE, "%Y%m%dT%H%M%SZ", &utc) == 0)
        abort(); /* a clock of this century */
}

static void hmac(const void *key, size_t key_size, const char *text, uint8_t out[HASH_BYTES])
{
    unsigned int size = HASH_BYTES;

    if (HMAC(EVP_sha256(), key, (int)key_size, (const unsigned char *)text, strlen(text), out,
             &size) == NULL)
        abort(); /* out of memory */
}

static void sha256_hex(const char *text, size_t size, char out[HEX_SIZE])
{
    uint8_t raw[HASH_BYTES];

    if (EVP_Digest(text, size, raw, NULL, EVP_sha256(), NULL) != 1)
        abort();
    hex_encode(raw, sizeof raw, out);
}

/* The canonical request into sb, the names of the signed headers into names. */
static void canonical(const struct s3_to_sign *request, struct strbuf *sb, struct strbuf *names)
{
    struct s3_pair headers[S3_PAIRS_MAX];
    autofree char *query = s3_query_text(request->query, request->query_count);

    assert(request->header_count <= S3_PAIRS_MAX);
    memcpy(headers, request->headers, request->header_count * sizeof *headers);
    qsort(headers, request->header_count, sizeof *headers, compare_pairs);
    strbuf_addf(sb, "%s\n%s\n%s\n", request->method, request->path, query);
    for (size_t i = 0; i < request->header_count; i++) {
        strbuf_addf(sb, "%s:%s\n", headers[i].name, headers[i].value);
        strbuf_addf(names, "%s%s", i == 0 ? "" : ";", headers[i].name);
    }
    strbuf_addf(sb, "\n%s\n%s", names->data, request->payload_sha256);
}

static void signing_key(const struct s3_credentials *credentials, const char day[9],
                        uint8_t out[HASH_BYTES])
{
    autofree char *start = xasprintf("AWS4%s", credentials->secret_access_key);

    hmac(start, strlen(start), day, out);
    hmac(out, HASH_BYTES, credentials->region, out);
    hmac(out, HASH_BYTES, "s3", out);
    hmac(out, HASH_BYTES, "aws4_request", out);
    explicit_bzero(start, strlen(start));
}

int s3_sign(const struct s3_to_sign *request, const struct s3_credentials *credentials,
            const char date[S3_DATE_SIZE], char **out, struct error *err)
{
    autofree char *day = xstrndup(date, 8);
    autofree char *scope = xasprintf("%s/%s/s3/aws4_request", day, credentials->region);
    autofree char *text = NULL;
    uint8_t key[HASH_BYTES];
    uint8_t raw[HASH_BYTES];
    char hash[HEX_SIZE];
    char signature[HEX_SIZE];
    auto_strbuf sb;
    auto_strbuf names;

    strbuf_init(&sb, S3_SIGNING_BYTES);
    strbuf_init(&names, S3_SIGNING_BYTES);
    canonical(request, &sb, &names);
    if (sb.overflowed || names.overflowed) {
        return error_set(err, ERR_LIMIT, "request of over %d bytes cannot be signed",
                         S3_SIGNING_BYTES);
    }
    sha256_hex(sb.data, sb.length, hash);
    text = xasprintf(ALGORITHM "\n%s\n%s\n%s", date, scope, hash);
    signing_key(credentials, day, key);
    hmac(key, sizeof key, text, raw);
    explicit_bzero(key, sizeof key);
    hex_encode(raw, sizeof raw, signature);
    *out = xasprintf(ALGORITHM " Credential=%s/%s,SignedHeaders=%s,Signature=%s",
                     credentials->access_key_id, scope, names.data, signature);
    return 0;
}
