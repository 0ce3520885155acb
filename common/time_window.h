/* Windows of time in which jobs may start: days of the week, from when until when, in a time zone.
 *
 * A window is open while the wall clock of its zone shows a time within it; one whose end is not
 * behind its start goes over midnight and belongs to the day that it starts on. So when clocks go
 * back, a time that comes twice is in the window twice, and when they go forward, a window that
 * lies within the gap is left out that day. */
#ifndef COMMON_TIME_WINDOW_H
#define COMMON_TIME_WINDOW_H

#include "common/config.h"
#include "common/fields.h"

#define TIME_WINDOWS_MAX     32  /* of one job */
#define TIME_WINDOW_TEXT_MAX 160 /* a name, seven days, two times, the longest zone */

/* What a request gives, one or a list of: a name of `named`; "mon-fri 22:00-06:00 Europe/Berlin",
 * without a zone in the system's; {"start_time", "end_time", "days", "timezone"}. *out: a list of
 * such objects with every member, empty for an empty list; new reference. named: as in the
 * configuration, may be NULL. */
MUST_CHECK int time_windows_read(const json_t *given, const struct config_list *named, json_t **out,
                                 struct field_problem *problem, struct error *err);

/* Items "NAME DAYS TIMES [ZONE]" of the configuration; several may have one name. */
void time_windows_check(const struct config_list *named, struct strbuf *problems);

struct time_windows_state {
    bool open;
    int64_t change_s; /* until then it stays so; at the latest then it must be looked at again */
};
/* list: as time_windows_read() makes it. ERR_UNAVAILABLE, ERR_NOT_FOUND: the zone is gone. */
MUST_CHECK int time_windows_at(const json_t *list, int64_t now_s, struct time_windows_state *out,
                               struct error *err);

#endif
