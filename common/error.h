/* The error value: a code that answers "what now?", and a message a person can act on.
 *
 * A function that can fail takes `struct error *err` last (never NULL) and returns 0/-1 or
 * pointer/NULL. Success leaves *err alone; failure sets it exactly once. Callers start with
 * `struct error err = ERROR_NONE;`. Messages: lower case, no period, values in '...', no secrets.
 */
#ifndef COMMON_ERROR_H
#define COMMON_ERROR_H

#include "common/base.h"

#define ERROR_MESSAGE_MAX 512 /* one log line or one HTTP error body; longer texts are cut */

enum error_code {
    ERR_NONE = 0,
    ERR_INVALID,        /* the caller's input is wrong: fix it and come again */
    ERR_NOT_FOUND,      /* it does not exist */
    ERR_CONFLICT,       /* it exists already, or is in the wrong state */
    ERR_DENIED,         /* credentials or rights refused */
    ERR_LIMIT,          /* a documented maximum was exceeded (also: no space left) */
    ERR_TIMEOUT,        /* retryable */
    ERR_UNAVAILABLE,    /* retryable: peer down, connection cut, throttled */
    ERR_PROTOCOL,       /* the peer broke its contract: not retryable */
    ERR_CANCELLED,      /* someone asked to stop */
    ERR_SOURCE_CHANGED, /* the VM or disk is not what it was: start over, not resume */
    ERR_CORRUPT,        /* digests or structures disagree */
    ERR_NOT_AVAILABLE,  /* this build or provider cannot do it */
    ERR_INTERNAL,       /* our bug, or the machine's failure */
};

struct error {
    enum error_code code;
    int sys_errno;
    char message[ERROR_MESSAGE_MAX];
};

#define ERROR_NONE \
    {              \
        0          \
    }

/* Always -1, so that callers write `return error_set(...)`. Asserts that err was empty. */
int error_set(struct error *err, enum error_code code, const char *format, ...) PRINTF_LIKE(3, 4);
/* Code from errno (EACCES: DENIED, ENOENT: NOT_FOUND, ENOSPC/EDQUOT: LIMIT, ECONNREFUSED etc.:
 * UNAVAILABLE, else INTERNAL); the message gets ": <errno text>" appended. */
int error_set_errno(struct error *err, int sys_errno, const char *format, ...) PRINTF_LIKE(3, 4);
/* Prepends what the caller knows: "<text>: <old message>". Keeps the code. */
int error_wrap(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);
void error_clear(struct error *err);
/* TIMEOUT and UNAVAILABLE only. */
bool error_is_retryable(const struct error *err);
/* Stable lower-case slug, as in API answers, proto and SQL: "invalid", "not_found", ... */
const char *error_code_name(enum error_code code);
/* Back from the slug; unknown text is ERR_INTERNAL. */
enum error_code error_code_from_name(const char *name);
/* Process exit status for a failure at start: 64 for INVALID, 1 otherwise. */
int error_exit_status(const struct error *err);

/* Shows compiler and analysers what these return: who comes back with 0 has written its *out. */
static inline int error_minus_one(int always)
{
    (void)always;
    return -1;
}
#define error_set(...)       error_minus_one(error_set(__VA_ARGS__))
#define error_set_errno(...) error_minus_one(error_set_errno(__VA_ARGS__))
#define error_wrap(...)      error_minus_one(error_wrap(__VA_ARGS__))

#endif
