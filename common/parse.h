/* Numbers, durations and sizes from foreign text: name, bounds, no sign, nothing left over.
 * All return 0/-1; on failure the error is ERR_INVALID and names `name`. */
#ifndef COMMON_PARSE_H
#define COMMON_PARSE_H

#include "common/error.h"

MUST_CHECK int parse_u64(const char *name, const char *text, uint64_t min, uint64_t max,
                         uint64_t *out, struct error *err);
MUST_CHECK int parse_u32(const char *name, const char *text, uint32_t min, uint32_t max,
                         uint32_t *out, struct error *err);
/* true/false, yes/no, on/off, 1/0 */
MUST_CHECK int parse_bool(const char *name, const char *text, bool *out, struct error *err);
/* "10s", "1h30m", "250ms", "30d"; a bare number means seconds. Result in milliseconds. */
MUST_CHECK int parse_duration_ms(const char *name, const char *text, int64_t min_ms, int64_t max_ms,
                                 int64_t *out, struct error *err);
/* Bytes; suffixes K, KB, KiB ... T, TB, TiB are binary (1 KB = 1024). */
MUST_CHECK int parse_size_bytes(const char *name, const char *text, uint64_t min, uint64_t max,
                                uint64_t *out, struct error *err);

/* RFC 3339 "2026-03-01T02:00:00Z" with a day that exists, as PostgreSQL takes it; or_date: or
 * "2026-03-01". */
bool parse_is_time(const char *text, bool or_date);

#endif
