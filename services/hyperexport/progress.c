/* See progress.h. */
#include "progress.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "text.h"

struct facts {
    const char *phase;
    double percentage; /* 0 to 100 */
    bool total_known;
    uint64_t total;
    uint64_t transferred; /* bytes that came from the source: what is used of the disks */
    uint64_t rate;
    bool eta_known;
    uint64_t eta_seconds;
    const char *limited_by; /* "" = nothing in particular */
    size_t disk, disks;     /* the disk being copied, from 1; disks 0: not told */
};

static uint64_t positive(const json_t *object, const char *key, bool *known)
{
    const json_t *value = json_object_get(object, key);
    double number = json_is_number(value) ? json_number_value(value) : -1;

    *known = number >= 0 && number < 1e18;
    return *known ? (uint64_t)number : 0;
}

const char *progress_limit(const json_t *progress)
{
    static const struct {
        const char *word, *shown;
    } limits[] = {{"source", "source"},
                  {"disk", "disk"},
                  {"cpu", "cpu"},
                  {"rate_limit", "rate limit"},
                  {"target", "target"}};
    const char *word = json_str(progress, "limited_by");

    for (size_t i = 0; i < ARRAY_LEN(limits); i++) {
        if (strcmp(limits[i].word, word) == 0)
            return limits[i].shown;
    }
    return "";
}

static void read_disks(const json_t *progress, struct facts *facts)
{
    const json_t *disks = json_object_get(progress, "disks");
    size_t index;
    const json_t *disk;

    facts->disks = json_array_size(disks);
    facts->disk = facts->disks;
    json_array_foreach(disks, index, disk)
    {
        if (strcmp(json_str(disk, "state"), "done") == 0)
            continue;
        facts->disk = index + 1;
        return;
    }
}

static struct facts read_facts(const json_t *progress)
{
    struct facts facts = {0};
    bool ignored;
    const json_t *percentage = json_object_get(progress, "percentage");

    facts.phase = json_str(progress, "phase");
    if (facts.phase[0] == '\0')
        facts.phase = json_str(progress, "status");
    facts.percentage = json_is_number(percentage) ? json_number_value(percentage) : 0;
    if (!(facts.percentage >= 0))
        facts.percentage = 0;
    if (facts.percentage > 100)
        facts.percentage = 100;
    facts.total = positive(progress, "total_bytes", &facts.total_known);
    facts.transferred = positive(progress, "bytes_transferred", &ignored);
    facts.rate = positive(progress, "rate_bytes_per_second", &ignored);
    facts.eta_seconds = positive(progress, "eta_seconds", &facts.eta_known);
    facts.limited_by = progress_limit(progress);
    read_disks(progress, &facts);
    return facts;
}

/* "24.1 MB of 512.0 MB  31.5 MB/s  ETA 8s  disk 1/2  limited by source" */
static void add_numbers(struct strbuf *out, const struct facts *facts, const char *gap)
{
    char size[TEXT_NUMBER_SIZE];

    text_size(facts->transferred, size);
    strbuf_add(out, size);
    if (facts->total_known && facts->total > 0) {
        text_size(facts->total, size);
        strbuf_addf(out, " of %s", size);
    }
    strbuf_addf(out, "%s%.1f MB/s", gap, (double)facts->rate / (double)MIB);
    if (facts->eta_known) {
        text_duration(facts->eta_seconds, size);
        strbuf_addf(out, "%sETA %s", gap, size);
    }
    if (facts->disks > 1)
        strbuf_addf(out, "%sdisk %zu/%zu", gap, facts->disk, facts->disks);
    if (facts->limited_by[0] != '\0')
        strbuf_addf(out, "%slimited by %s", gap, facts->limited_by);
}

void progress_bar(struct strbuf *out, const json_t *progress, size_t columns, bool utf8)
{
    struct facts facts = read_facts(progress);
    size_t full = (size_t)(facts.percentage * PROGRESS_BAR_CELLS / 100);
    size_t before = out->length;

    text_add_clean(out, facts.phase, utf8);
    while (out->length - before < 12) /* the longest phase: "snapshotting" */
        strbuf_addc(out, ' ');
    strbuf_add(out, " [");
    for (size_t i = 0; i < PROGRESS_BAR_CELLS; i++)
        strbuf_add(out, i < full ? (utf8 ? "\xe2\x96\x88" : "#") : (utf8 ? "\xe2\x96\x91" : "."));
    strbuf_addf(out, "] %5.1f%% ", facts.percentage);
    add_numbers(out, &facts, "  ");
    /* everything but the bar is ASCII, and the bar stands at the front */
    while (text_width(out->data + before) > columns && out->length > before)
        out->data[--out->length] = '\0';
}

void progress_words(struct strbuf *out, const json_t *progress)
{
    struct facts facts = read_facts(progress);

    strbuf_add(out, "progress: ");
    text_add_clean(out, facts.phase, false);
    strbuf_addf(out, ", %.1f%%, ", facts.percentage);
    add_numbers(out, &facts, ", ");
}
