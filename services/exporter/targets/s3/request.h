/* One signed request to an S3 server, repeated while that may help: throttling, lost connections,
 * the wrong region (once), a clock that is off (once). Used by s3.c only. */
#ifndef EXPORTER_S3_REQUEST_H
#define EXPORTER_S3_REQUEST_H

#include "common/http_client.h"
#include "services/exporter/targets/s3/answer.h"
#include "services/exporter/targets/s3/sign.h"
#include "services/exporter/targets/target.h"

#define S3_REGION_BYTES_MAX 63
#define S3_CALL_PAIRS_MAX   8 /* of a call; request.c adds host, date, hash and token */

struct s3_server { /* thread-safe */
    struct target *target;
    char *origin; /* "https://s3.eu-west-1.amazonaws.com"; NULL: made from the region */
    bool path_style;
    struct http_options http;
    pthread_mutex_t mutex; /* guards region, idle */
    char region[S3_REGION_BYTES_MAX + 1];
    CURL *idle[TARGET_PARALLEL_MAX];
    size_t idle_count;
    _Atomic int64_t skew_ms; /* the server's clock minus ours */
};

struct s3_call {
    const char *method;
    const char *key;  /* not encoded; NULL: the bucket itself */
    const char *what; /* for messages: "part 3 of 'x'" */
    struct s3_pair query[S3_CALL_PAIRS_MAX];
    size_t query_count;
    struct s3_pair headers[S3_CALL_PAIRS_MAX]; /* lower-case names */
    size_t header_count;
    const void *data; /* the body, or NULL and */
    int fd;           /* its file, from offset, or neither: size 0 */
    uint64_t offset;
    uint64_t size;
    const char *payload_sha256; /* hex; NULL: made from data */
    void *into;                 /* the answer's body goes there when not NULL */
    size_t into_size;
};

struct s3_reply {
    long status;
    char *body;
    size_t body_size;
    char etag[128];
    bool encrypted; /* by a key service: the ETag is no MD5 then */
    bool has_length;
    uint64_t length;
    struct s3_error error; /* of a refusal */
    /* for request.c */
    char region[S3_REGION_BYTES_MAX + 1];
    int64_t retry_after_ms;
    int64_t date_ms;
};
void s3_reply_release(struct s3_reply *reply);
#define auto_s3_reply CLEANUP(s3_reply_release) struct s3_reply

/* ERR_INVALID: the endpoint is no http(s) URL without a path. */
MUST_CHECK int s3_server_init(struct s3_server *server, struct target *target, struct error *err);
void s3_server_release(struct s3_server *server);
/* 0: status 2xx. -1: err, and when a server answered, reply->status and reply->error. */
MUST_CHECK int s3_perform(struct s3_server *server, const struct s3_call *call,
                          struct s3_reply *reply, struct error *err);
/* The error of a refusal, also of one that came with status 200. */
int s3_refusal(const struct s3_call *call, long status, const struct s3_error *refusal,
               struct error *err);
#endif
