/* A place outside that takes finished files: what a target implements, and what upload.h promises
 * it. One folder per target (s3, sftp), one line in target.c's table.
 *
 *   open -> exists | begin -> N x put_part (any order, several threads) -> complete -> verify
 *        -> close
 *
 * An object is cut into parts; it appears under its name only by complete, as a whole, and replaces
 * nothing. `id` is what the target calls an unfinished upload ("" when one request stores all of
 * it): text, kept in a state file, so that another process can go on.
 *
 * A target repeats what may pass by itself (target_retry); what it returns is final for now:
 *   ERR_DENIED credentials or rights, ERR_NOT_FOUND bucket, directory or upload gone, ERR_CONFLICT
 *   somebody else's object, ERR_UNAVAILABLE/ERR_TIMEOUT try later, ERR_CORRUPT other bytes there,
 *   ERR_CANCELLED `stopped` became true. Messages name the place, never a secret. */
#ifndef EXPORTER_TARGET_H
#define EXPORTER_TARGET_H

#include <jansson.h>
#include <stdatomic.h>

#include "common/error.h"
#include "common/upload_url.h"
#include "services/exporter/engine/rate_limit.h"

#define TARGET_PARTS_MAX    10000 /* S3's */
#define TARGET_TAG_SIZE     128
#define TARGET_ID_BYTES_MAX 1024
#define TARGET_TRIES        8
#define TARGET_BACKOFF_MS   500
#define TARGET_BACKOFF_MAX  30000
#define TARGET_PARALLEL_MAX 32

/* One entry uploads.<name> of the configuration; strings are never NULL. */
struct target_settings {
    char *url; /* uploads below it use this entry */
    char *endpoint;
    char *region;
    char *path_style; /* "auto", "true", "false" */
    char *access_key_id;
    char *secret_access_key;
    char *session_token;
    char *checksum; /* "md5", "sha256", "none" */
    char *ca_file;
    char *username;
    char *password;
    char *key_file;
    char *known_hosts;
    uint32_t parallel;
    int64_t stale_after_ms;
};

/* Every entry of the section "uploads" (JSON null: none): names, types, URLs. ERR_INVALID. */
MUST_CHECK int target_settings_check(const json_t *uploads, struct error *err);
/* The entry that `url` lies below (the longest such path), else for s3:// what AWS_* says.
 * ERR_DENIED: no credentials are configured for it. */
MUST_CHECK int target_settings_find(const json_t *uploads, const struct upload_url *url,
                                    struct target_settings *out, struct error *err);
void target_settings_release(struct target_settings *settings);
#define auto_target_settings CLEANUP(target_settings_release) struct target_settings

struct target; /* each class defines its own, with target_base first */

struct target_object {
    const char *name; /* below the URL's path, '/' between its parts */
    uint64_t size;
    bool in_parts; /* it is an upload of parts, even if there is one only: its size comes last */
};

struct target_part {
    uint32_t number; /* from 1 */
    uint64_t offset;
    uint64_t size;
    uint8_t sha256[32];
    uint8_t md5[16];
    char tag[TARGET_TAG_SIZE]; /* what the target calls this content; "" = not stored */
};

struct target_range { /* to be read */
    uint64_t offset;
    void *buffer;
    size_t size; /* of buffer */
    size_t got;
};

struct target_options { /* all of it outlives the target */
    const struct upload_url *url;
    const struct target_settings *settings;
    const atomic_bool *stopped;
    struct rate_transfer *rate; /* what bytes of files are taken from; NULL: no limit */
};

struct target_class {
    const char *scheme;
    bool any_order; /* of its parts may the first come last */
    /* Can we get in, does the bucket or directory exist? Changes nothing. */
    int (*open)(const struct target_options *options, struct target **out, struct error *err);
    void (*close)(struct target *target);
    uint64_t (*part_size)(uint64_t object_size);
    int (*exists)(struct target *target, const struct target_object *object, bool *out,
                  struct error *err);
    /* *out_id: caller frees. */
    int (*begin)(struct target *target, const struct target_object *object, size_t part_count,
                 char **out_id, struct error *err);
    /* Clears the tag of each part that the target does not hold exactly so. ERR_NOT_FOUND: it does
     * not know the upload (any more). */
    int (*held)(struct target *target, const struct target_object *object, const char *id,
                struct target_part *parts, size_t count, struct error *err);
    /* Stores fd's bytes at part->offset, whose digests are in *part; sets part->tag. Repeatable;
     * called by several threads, for different parts. */
    int (*put_part)(struct target *target, const struct target_object *object, const char *id,
                    int fd, struct target_part *part, struct error *err);
    /* Publishes; repeatable. */
    int (*complete)(struct target *target, const struct target_object *object, const char *id,
                    const struct target_part *parts, size_t count, struct error *err);
    /* Size, and content as far as the target tells it: *out_proved false means that nobody but a
     * reader knows. ERR_CORRUPT: it is not that object. ERR_NOT_FOUND: there is none. */
    int (*verify)(struct target *target, const struct target_object *object,
                  const struct target_part *parts, size_t count, bool *out_proved,
                  struct error *err);
    /* Fills range->got; 0: the end. */
    int (*read)(struct target *target, const char *name, struct target_range *range,
                struct error *err);
    /* Removes the object, one of ours; gone already is success. */
    int (*remove)(struct target *target, const char *name, struct error *err);
    /* Removes the unfinished upload; gone already is success. */
    int (*abort)(struct target *target, const struct target_object *object, const char *id,
                 struct error *err);
    /* Aborts unfinished uploads below the URL that are older than age_ms. */
    int (*sweep)(struct target *target, int64_t age_ms, size_t *out_count, struct error *err);
};

struct target_base {
    const struct target_class *class;
    struct target_options options;
    atomic_uint slow_downs;            /* how often the server asked for less */
    atomic_uint_fast64_t rate_wait_ns; /* of all threads, for bandwidth */
};

/* Any target begins with its target_base. */
struct target {
    struct target_base base;
};

MUST_CHECK int target_open(const struct target_options *options, struct target **out,
                           struct error *err);
void target_close(struct target *target); /* NULL-safe */
DEFINE_AUTO(target, struct target, target_close)
#define auto_target CLEANUP(target_auto) struct target

/* ERR_CANCELLED when the options' flag is set. */
MUST_CHECK int target_check(const struct target *target, struct error *err);
/* Before bytes of a file go out: waits until the limit allows them. ERR_CANCELLED: stopped. */
MUST_CHECK int target_pay(struct target *target, uint64_t bytes, struct error *err);
/* After a failure: true = *err is cleared and it has waited (at least wait_ms, 0: back-off), try
 * again. false: *err stands. */
bool target_retry(struct target *target, uint32_t attempt, int64_t wait_ms, struct error *err);
/* "<url's path>/<name>". Caller frees. */
char *target_key(const struct target *target, const char *name);

/* targets/s3, targets/sftp */
extern const struct target_class target_s3;
extern const struct target_class target_sftp;

#endif
