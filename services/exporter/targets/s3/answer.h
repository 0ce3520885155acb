/* The XML that an S3 server answers with, under limits: size, depth, no document type. */
#ifndef EXPORTER_S3_ANSWER_H
#define EXPORTER_S3_ANSWER_H

#include "common/error.h"

#define S3_ANSWER_BYTES_MAX ((size_t)(2 * MIB)) /* 1000 parts take 300 KiB */
#define S3_ANSWER_DEPTH_MAX 16                  /* S3's have 4 levels */
#define S3_PAGE_MAX         1000
#define S3_TEXT_MAX         1024 /* keys and upload ids */

struct s3_error { /* texts are cut to fit */
    char code[64];
    char message[256];
    char region[64];
};

/* What a successful answer says; empty where it says nothing. */
struct s3_listed_part {
    uint32_t number;
    uint64_t size;
    char etag[128];
};
struct s3_listed_upload {
    char key[S3_TEXT_MAX + 1];
    char id[S3_TEXT_MAX + 1];
    int64_t initiated_ms; /* wall; 0: not told */
};
struct s3_answer {
    char upload_id[S3_TEXT_MAX + 1];
    bool completed; /* CompleteMultipartUploadResult */
    bool truncated;
    uint32_t next_part;
    char next_key[S3_TEXT_MAX + 1];
    char next_id[S3_TEXT_MAX + 1];
    struct s3_listed_part *parts;
    size_t part_count;
    struct s3_listed_upload *uploads;
    size_t upload_count;
};

/* true: it is an <Error>. */
bool s3_error_read(const char *data, size_t size, struct s3_error *out);
/* ERR_PROTOCOL: not such XML, or a value in it is out of bounds. */
MUST_CHECK int s3_answer_read(const char *data, size_t size, struct s3_answer *out,
                              struct error *err);
void s3_answer_release(struct s3_answer *answer);
#define auto_s3_answer CLEANUP(s3_answer_release) struct s3_answer

#endif
