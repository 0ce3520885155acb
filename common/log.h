/* JSON-line logging to stderr: one object and one write per line, bounded length.
 *
 *   LOG(INFO, "disk_copied", F_STR("disk", name), F_U64("bytes", n));
 *   LOG(ERROR, "lease_failed", F_ERR(&err));
 *
 * Event names are fixed snake_case, listed in docs/events.md. Never log a secret.
 * Thread-safe; callable before log_init (service "unknown", level info). */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include "common/error.h"

#define LOG_LINE_BYTES_MAX 8192 /* one atomic pipe write is 4 KiB, journald takes 48 KiB */

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };

struct log_field {
    const char *name;
    enum { LOG_FIELD_STR, LOG_FIELD_U64, LOG_FIELD_I64, LOG_FIELD_F64, LOG_FIELD_BOOL } kind;
    const char *str;
    uint64_t u64;
    int64_t i64;
    double f64;
};

#define F_STR(n, v)  ((struct log_field){.name = (n), .kind = LOG_FIELD_STR, .str = (v)})
#define F_U64(n, v)  ((struct log_field){.name = (n), .kind = LOG_FIELD_U64, .u64 = (v)})
#define F_I64(n, v)  ((struct log_field){.name = (n), .kind = LOG_FIELD_I64, .i64 = (v)})
#define F_F64(n, v)  ((struct log_field){.name = (n), .kind = LOG_FIELD_F64, .f64 = (v)})
#define F_BOOL(n, v) ((struct log_field){.name = (n), .kind = LOG_FIELD_BOOL, .u64 = (v) ? 1 : 0})
/* error.code and message as one field "error" */
#define F_ERR(e) F_STR("error", (e)->message), F_STR("error_code", error_code_name((e)->code))

/* service: string literal, kept. */
void log_init(const char *service, enum log_level level);
MUST_CHECK int log_level_parse(const char *text, enum log_level *out, struct error *err);
bool log_enabled(enum log_level level);
void log_write(enum log_level level, const char *event, const struct log_field *fields,
               size_t count);

#define LOG(level, event, ...)                                                              \
    do {                                                                                    \
        const struct log_field log_fields_[] = {{0}, __VA_ARGS__};                          \
        log_write(LOG_LEVEL_##level, (event), log_fields_ + 1, ARRAY_LEN(log_fields_) - 1); \
    } while (0)

/* Every line this thread writes until the end of the block carries job_id and trace_id.
 * Both strings must live that long; either may be NULL. */
struct log_scope {
    const char *job_id;
    const char *trace_id;
};
struct log_scope log_scope_set(const char *job_id, const char *trace_id);
void log_scope_restore(const struct log_scope *old);
#define LOG_SCOPE(job_id, trace_id)                                                         \
    __attribute__((cleanup(log_scope_restore), unused)) const struct log_scope log_scope_ = \
        log_scope_set((job_id), (trace_id))

/* For repeating failures: true when the text changed or a minute passed since the last true.
 * Zero-initialise; one per place. Not thread-safe. *suppressed = how many were held back. */
struct log_throttle {
    uint64_t hash;
    int64_t last_ms;
    uint64_t suppressed;
};
bool log_throttle_pass(struct log_throttle *throttle, const char *text, uint64_t *suppressed);

#endif
