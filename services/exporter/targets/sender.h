/* The threads that send the parts of one object, and what they have done: shared by upload.c and
 * upload_stream.c.
 *
 * Who fills it hashes a part (part_hash) and queues it; a sending thread stores it at the target,
 * has it noted, and takes the next. How many send at a time is halved when the server asks for less
 * and rises again by one for every few parts that went well. The queue is short, and the bytes stay
 * in the file until they go out, so memory does not grow with the part size. */
#ifndef EXPORTER_SENDER_H
#define EXPORTER_SENDER_H

#include <openssl/evp.h>
#include <pthread.h>

#include "services/exporter/targets/target.h"

struct sender {
    struct target *target;
    const struct target_object *object;
    const char *id;
    int fd;
    struct target_part *parts;
    /* The part is stored: writes that down. Called by sending threads, one at a time. */
    int (*note)(void *arg, const struct target_part *part, struct error *err);
    void *arg;

    pthread_t threads[TARGET_PARALLEL_MAX];
    size_t thread_count;
    pthread_mutex_t mutex; /* guards everything below */
    pthread_cond_t changed;
    uint32_t queue[TARGET_PARALLEL_MAX]; /* indices of parts */
    size_t queued;
    bool closed; /* nothing more comes */
    uint32_t active;
    uint32_t allowed;
    uint32_t allowed_max;
    uint32_t good;
    unsigned int slow_downs_seen;
    uint64_t stored; /* bytes of parts that are there */
    bool failed;
    struct error error; /* the first */
};

/* Everything but the callback, the file and the parts is zero before. */
void sender_init(struct sender *s);
void sender_release(struct sender *s); /* no thread is left */
MUST_CHECK int sender_start(struct sender *s, uint32_t threads, struct error *err);
/* true: the part is in the queue, or sending has failed; else it has waited for a while. */
bool sender_try_enqueue(struct sender *s, uint32_t index);
/* A part that the target has already. */
void sender_count(struct sender *s, uint64_t bytes);
/* Ends them all; the first error stays. */
void sender_fail(struct sender *s, const struct error *err);
bool sender_has_failed(struct sender *s, uint64_t *out_stored);
/* Nothing more comes. true: all parts are through, or sending has failed; else it has waited for a
 * while. */
bool sender_try_idle(struct sender *s, uint64_t *out_stored);
/* Ends when the queue is empty or sending has failed. */
void sender_join(struct sender *s);

struct part_hash {
    EVP_MD_CTX *sha256;
    EVP_MD_CTX *md5;
    unsigned char *piece;
    /* NULL, or gets every piece, too. */
    void (*take)(void *arg, const void *data, size_t size);
    void *arg;
};
void part_hash_init(struct part_hash *h);
void part_hash_release(struct part_hash *h);
/* Sets the part's digests. ERR_CANCELLED: the target's flag. */
MUST_CHECK int part_hash_make(struct part_hash *h, const struct target *target, int fd,
                              struct target_part *part, struct error *err);

/* Cuts an object of that size: their number, 0 on failure. *out: caller frees. */
size_t parts_make(const struct target *target, uint64_t size, struct target_part **out,
                  struct error *err);

struct object_check {
    const struct target_object *object;
    const char *sha256; /* hex, of all of it; NULL: nobody knows it, the parts' digests count */
    char *out_sha256;   /* then: DIGEST_HEX_SIZE, gets it */
    const struct target_part *parts;
    size_t count;
    int (*may_write)(void *arg, struct error *err); /* -1 ends it: the lease is lost */
    /* NULL, or gets what is read back, in order. */
    int (*take)(void *arg, uint64_t offset, const void *data, size_t size, struct error *err);
    void *arg;
};
/* Is the object at the target that one? Reads it back when the target cannot tell, or its SHA-256
 * is not known. ERR_CORRUPT: it is another. */
MUST_CHECK int object_check(struct target *target, const struct object_check *check,
                            struct error *err);

/* One line of a state file, durable; fd -1: there is none. Takes the line. */
MUST_CHECK int state_line_append(int fd, json_t *line_taken, struct error *err);

#endif
