/* Time zones and cron expressions as the suite reads them, for tests that compare with others.
 *
 * Reads lines from stdin, answers each with one line:
 *   span ZONE AT              "START END OFFSET"
 *   next ZONE AFTER N CRON    the next N instants after AFTER
 * or "error CODE: TEXT". */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/cron.h"
#include "common/parse.h"

#define LINE_MAX_BYTES 1024
#define COUNT_MAX      10000

static int print_next(const struct time_zone *zone, int64_t after, int count, const char *text,
                      struct error *err)
{
    struct cron cron;

    if (cron_parse(text, &cron, err) < 0)
        return -1;
    for (int i = 0; i < count; i++) {
        if (cron_next(&cron, zone, after, &after, err) < 0)
            return -1;
        (void)printf("%s%" PRId64, i > 0 ? " " : "", after);
    }
    (void)printf("\n");
    return 0;
}

/* The next word of *line; *line moves behind it and the blank after it. */
static const char *take_word(char **line)
{
    char *word = *line;
    size_t length = strcspn(word, " ");

    *line += length;
    if (**line != '\0') {
        **line = '\0';
        (*line)++;
    }
    return word;
}

static int answer(char *line, struct error *err)
{
    const char *word = take_word(&line);
    const char *name = take_word(&line);
    const char *at_text = take_word(&line);
    auto_time_zone *zone = NULL;
    struct time_zone_span span;
    uint32_t count = 0;
    uint64_t at = 0;

    if (parse_u64("AT", at_text, 0, TIME_ZONE_AT_MAX, &at, err) < 0 ||
        time_zone_load(name, &zone, err) < 0)
        return -1;
    if (strcmp(word, "span") == 0) {
        time_zone_span_at(zone, (int64_t)at, &span);
        (void)printf("%" PRId64 " %" PRId64 " %d\n", span.start, span.end, (int)span.offset);
        return 0;
    }
    if (parse_u32("N", take_word(&line), 1, COUNT_MAX, &count, err) < 0)
        return -1;
    return print_next(zone, (int64_t)at, (int)count, line, err);
}

int main(void)
{
    char line[LINE_MAX_BYTES];

    while (fgets(line, sizeof line, stdin) != NULL) {
        struct error err = ERROR_NONE;
        line[strcspn(line, "\n")] = '\0';
        if (answer(line, &err) < 0)
            (void)printf("error %s: %s\n", error_code_name(err.code), err.message);
        (void)fflush(stdout);
    }
    return 0;
}
