/* Where finished exports go: s3://bucket/prefix, sftp://user@host:port/path. The URL names a place
 * and never carries a secret: credentials stand in the exporter's configuration. */
#ifndef COMMON_UPLOAD_URL_H
#define COMMON_UPLOAD_URL_H

#include "common/error.h"
#include "common/strbuf.h"

#define UPLOAD_URL_BYTES_MAX  1024
#define UPLOAD_NAME_BYTES_MAX 255 /* of a bucket, a host, a user */

struct upload_url {
    const char *scheme;                   /* literal: "s3" or "sftp" */
    char host[UPLOAD_NAME_BYTES_MAX + 1]; /* sftp: host, brackets removed; s3: the bucket */
    char user[UPLOAD_NAME_BYTES_MAX + 1]; /* "" when absent */
    uint32_t port;                        /* 0 when absent */
    char path[UPLOAD_URL_BYTES_MAX + 1];  /* without slashes at both ends; "" is the top */
};

/* ERR_NOT_AVAILABLE: a target of the reference that is not in this version. ERR_INVALID: anything
 * else that is wrong; a message never repeats a password. */
MUST_CHECK int upload_url_parse(const char *text, struct upload_url *out, struct error *err);
/* The URL of an object below it, for people: no user's secret can be in it. Caller frees. */
char *upload_url_text(const struct upload_url *url, const char *object);

#endif
