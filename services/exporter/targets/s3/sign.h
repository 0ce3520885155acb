/* AWS Signature Version 4 as S3 wants it: the path is encoded once and not normalised, and
 * x-amz-content-sha256 is one of the signed headers. */
#ifndef EXPORTER_S3_SIGN_H
#define EXPORTER_S3_SIGN_H

#include "common/error.h"

#define S3_PAIRS_MAX     16
#define S3_DATE_SIZE     17 /* 20130524T000000Z and the NUL */
#define S3_PATH_BYTES    (3 * 1024 + 256)
#define S3_SIGNING_BYTES 16384 /* canonical request: path, query, headers with a session token */

struct s3_pair { /* not encoded */
    const char *name;
    const char *value;
};

struct s3_to_sign {
    const char *method;
    const char *path;                   /* encoded, begins with '/' */
    struct s3_pair query[S3_PAIRS_MAX]; /* any order */
    size_t query_count;
    struct s3_pair headers[S3_PAIRS_MAX]; /* lower-case names, any order; host is one of them */
    size_t header_count;
    const char *payload_sha256; /* hex */
};

struct s3_credentials {
    const char *access_key_id;
    const char *secret_access_key;
    const char *region;
};

/* Percent-encoding of a key; '/' stays. Caller frees. */
char *s3_encode_key(const char *key);
/* "a=1&b=", encoded and in the order that is signed. Caller frees. */
char *s3_query_text(const struct s3_pair *query, size_t count);
void s3_date(int64_t wall_ms, char out[S3_DATE_SIZE]);
/* The value of Authorization. *out: caller frees. ERR_LIMIT: the request is too long. */
MUST_CHECK int s3_sign(const struct s3_to_sign *request, const struct s3_credentials *credentials,
                       const char date[S3_DATE_SIZE], char **out, struct error *err);

#endif
