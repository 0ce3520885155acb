/* See error.h. */
#include "common/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The functions behind the macros of those names. */
#undef error_set
#undef error_set_errno
#undef error_wrap

static const char *const names[] = {
    [ERR_NONE] = "none",
    [ERR_INVALID] = "invalid",
    [ERR_NOT_FOUND] = "not_found",
    [ERR_CONFLICT] = "conflict",
    [ERR_DENIED] = "denied",
    [ERR_LIMIT] = "limit",
    [ERR_TIMEOUT] = "timeout",
    [ERR_UNAVAILABLE] = "unavailable",
    [ERR_PROTOCOL] = "protocol",
    [ERR_CANCELLED] = "cancelled",
    [ERR_SOURCE_CHANGED] = "source_changed",
    [ERR_CORRUPT] = "corrupt",
    [ERR_NOT_AVAILABLE] = "not_available",
    [ERR_INTERNAL] = "internal",
};

int error_set(struct error *err, enum error_code code, const char *format, ...)
{
    va_list args;

    assert(err->code == ERR_NONE);
    assert(code != ERR_NONE);
    err->code = code;
    va_start(args, format);
    (void)vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return -1;
}

static enum error_code code_of_errno(int sys_errno)
{
    switch (sys_errno) {
    case EACCES:
    case EPERM:
    case EROFS:
        return ERR_DENIED;
    case ENOENT:
    case ENOTDIR:
        return ERR_NOT_FOUND;
    case EEXIST:
    case EADDRINUSE:
    case ENOTEMPTY:
        return ERR_CONFLICT;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
        return ERR_LIMIT;
    case ETIMEDOUT:
        return ERR_TIMEOUT;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EAGAIN:
        return ERR_UNAVAILABLE;
    default:
        return ERR_INTERNAL;
    }
}

int error_set_errno(struct error *err, int sys_errno, const char *format, ...)
{
    char text[ERROR_MESSAGE_MAX];
    char reason[128];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)error_set(err, code_of_errno(sys_errno), "%.360s: %.127s", text,
                    strerror_r(sys_errno, reason, sizeof reason));
    err->sys_errno = sys_errno;
    return -1;
}

int error_wrap(struct error *err, const char *format, ...)
{
    char old[ERROR_MESSAGE_MAX];
    size_t used;
    int n;
    va_list args;

    assert(err->code != ERR_NONE);
    memcpy(old, err->message, sizeof old);
    va_start(args, format);
    n = vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    used = n < 0 ? 0 : (size_t)n;
    if (used >= sizeof err->message)
        used = sizeof err->message - 1;
    (void)snprintf(err->message + used, sizeof err->message - used, ": %.*s",
                   (int)(sizeof err->message - used), old);
    return -1;
}

void error_clear(struct error *err)
{
    memset(err, 0, sizeof *err);
}

bool error_is_retryable(const struct error *err)
{
    return err->code == ERR_TIMEOUT || err->code == ERR_UNAVAILABLE;
}

const char *error_code_name(enum error_code code)
{
    return (size_t)code < ARRAY_LEN(names) ? names[code] : "internal";
}

enum error_code error_code_from_name(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(names[i], name) == 0)
            return (enum error_code)i;
    }
    return ERR_INTERNAL;
}

int error_exit_status(const struct error *err)
{
    return err->code == ERR_INVALID ? 64 : 1;
}
