/* Time zones by their IANA name, from the system's tzdata: which offset from UTC holds when.
 *
 * The files (TZif, RFC 9636) are read by us and the process's own zone is never touched: tzset
 * is one for all threads, and a schedule has its own zone. A zone is immutable and may be shared.
 */
#ifndef COMMON_TIME_ZONE_H
#define COMMON_TIME_ZONE_H

#include "common/error.h"

#define TIME_ZONE_NAME_MAX   64                    /* the longest of 2026 has 30 */
#define TIME_ZONE_OFFSET_MAX 93599                 /* RFC 9636: utoff is below 26 h */
#define TIME_ZONE_AT_MAX     INT64_C(253402300799) /* 9999-12-31T23:59:59Z */

struct time_zone;

/* All instants t with start <= t < end have this offset. */
struct time_zone_span {
    int64_t start;  /* INT64_MIN: since ever */
    int64_t end;    /* INT64_MAX: for ever */
    int32_t offset; /* seconds east of UTC */
};

/* ERR_INVALID: no name of a zone. ERR_NOT_FOUND: unknown here. ERR_UNAVAILABLE: no tzdata.
 * Release with time_zone_free(). */
MUST_CHECK int time_zone_load(const char *name, struct time_zone **out, struct error *err);
/* From a file's bytes. ERR_INVALID: not a TZif file that is understood. */
MUST_CHECK int time_zone_parse(const void *data, size_t size, struct time_zone **out,
                               struct error *err);
void time_zone_free(struct time_zone *zone);
DEFINE_AUTO(time_zone, struct time_zone, time_zone_free)
#define auto_time_zone CLEANUP(time_zone_auto) struct time_zone

/* at: -TIME_ZONE_AT_MAX to TIME_ZONE_AT_MAX. */
void time_zone_span_at(const struct time_zone *zone, int64_t at, struct time_zone_span *out);
/* The name of this machine's zone (/etc/localtime, else /etc/timezone), else "UTC". */
void time_zone_system_name(char out[TIME_ZONE_NAME_MAX + 1]);

#endif
