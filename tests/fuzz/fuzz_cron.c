/* Cron expressions: what is accepted has a next time within 41 years, in zones with clock changes
 * too, and times come in order. */
#include <string.h>

#include "common/cron.h"

#define TIMES 5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct cron *cron, const char *name)
{
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;
    int64_t at = INT64_C(1790000000);

    if (time_zone_load(name, &zone, &err) < 0)
        return;
    for (int i = 0; i < TIMES; i++) {
        int64_t next = 0;
        if (cron_next(cron, zone, at, &next, &err) < 0 || next <= at || next % 60 != 0 ||
            next - at > INT64_C(41) * 366 * 86400)
            abort();
        at = next;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    autofree char *text = xstrndup((const char *)data, size);
    struct error err = ERROR_NONE;
    struct cron cron;

    if (cron_parse(text, &cron, &err) < 0)
        return 0;
    check(&cron, "UTC");
    check(&cron, "Europe/Berlin");
    check(&cron, "Australia/Lord_Howe");
    return 0;
}
