/* See log.h. */
#include "common/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/strbuf.h"

#define LOG_THROTTLE_MS 60000 /* the same failure is repeated once a minute */

static const char *log_service = "unknown";
static _Atomic int log_level_min = LOG_LEVEL_INFO;
static _Thread_local struct log_scope scope;

static const char *const level_names[] = {"debug", "info", "warn", "error"};

void log_init(const char *service, enum log_level level)
{
    log_service = service;
    atomic_store(&log_level_min, (int)level);
}

int log_level_parse(const char *text, enum log_level *out, struct error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(level_names); i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return 0;
        }
    }
    return error_set(err, ERR_INVALID, "log level '%.32s' is not debug, info, warn or error", text);
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load(&log_level_min);
}

static void add_field(struct strbuf *sb, const struct log_field *field)
{
    strbuf_addf(sb, ",\"%s\":", field->name);
    switch (field->kind) {
    case LOG_FIELD_STR:
        strbuf_addc(sb, '"');
        strbuf_add_json(sb, field->str == NULL ? "" : field->str);
        strbuf_addc(sb, '"');
        break;
    case LOG_FIELD_U64:
        strbuf_addf(sb, "%" PRIu64, field->u64);
        break;
    case LOG_FIELD_I64:
        strbuf_addf(sb, "%" PRId64, field->i64);
        break;
    case LOG_FIELD_F64:
        if (isfinite(field->f64)) {
            strbuf_addf(sb, "%.3f", field->f64);
        } else {
            strbuf_add(sb, "null"); /* JSON has no other word for it */
        }
        break;
    case LOG_FIELD_BOOL:
        strbuf_add(sb, field->u64 != 0 ? "true" : "false");
        break;
    }
}

void log_write(enum log_level level, const char *event, const struct log_field *fields,
               size_t count)
{
    char now[CLOCK_RFC3339_SIZE];
    auto_strbuf sb = {0};

    if (!log_enabled(level))
        return;
    clock_rfc3339_now(now);
    strbuf_init(&sb, LOG_LINE_BYTES_MAX);
    strbuf_addf(&sb, "{\"ts\":\"%s\",\"level\":\"%s\",\"service\":\"%s\",\"event\":\"%s\"", now,
                level_names[level], log_service, event);
    if (scope.job_id != NULL)
        add_field(&sb, &F_STR("job_id", scope.job_id));
    if (scope.trace_id != NULL)
        add_field(&sb, &F_STR("trace_id", scope.trace_id));
    for (size_t i = 0; i < count; i++) {
        size_t before = sb.length;
        add_field(&sb, &fields[i]);
        if (sb.overflowed || sb.length + 24 > sb.size_max) { /* keep the line valid JSON */
            sb.length = before;
            sb.overflowed = false;
            strbuf_add(&sb, ",\"truncated\":true");
            break;
        }
    }
    strbuf_add(&sb, "}\n");
    if (write_all(STDERR_FILENO, sb.data, sb.length) < 0)
        return; /* nobody is left to tell */
}

struct log_scope log_scope_set(const char *job_id, const char *trace_id)
{
    struct log_scope old = scope;

    scope = (struct log_scope){.job_id = job_id, .trace_id = trace_id};
    return old;
}

void log_scope_restore(const struct log_scope *old)
{
    scope = *old;
}

bool log_throttle_pass(struct log_throttle *throttle, const char *text, uint64_t *suppressed)
{
    uint64_t hash = UINT64_C(1469598103934665603); /* FNV-1a */
    int64_t now_ms = clock_mono_ms();

    for (const char *p = text; *p != '\0'; p++)
        hash = (hash ^ (unsigned char)*p) * UINT64_C(1099511628211);
    if (hash == throttle->hash && throttle->last_ms != 0 &&
        now_ms - throttle->last_ms < LOG_THROTTLE_MS) {
        throttle->suppressed++;
        return false;
    }
    *suppressed = throttle->suppressed;
    *throttle = (struct log_throttle){.hash = hash, .last_ms = now_ms};
    return true;
}
