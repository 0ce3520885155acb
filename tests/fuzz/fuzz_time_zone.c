/* TZif files: every instant lies in its span, and spans follow each other. */
#include <string.h>

#include "common/time_zone.h"

#define SPANS_MAX 200

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;
    struct time_zone_span span;
    int64_t at = -TIME_ZONE_AT_MAX;

    if (time_zone_parse(data, size, &zone, &err) < 0)
        return 0;
    for (int i = 0; i < SPANS_MAX && at <= TIME_ZONE_AT_MAX; i++) {
        time_zone_span_at(zone, at, &span);
        if (span.start > at || span.end <= at || span.offset > TIME_ZONE_OFFSET_MAX ||
            span.offset < -TIME_ZONE_OFFSET_MAX)
            abort();
        at = span.end;
    }
    return 0;
}
