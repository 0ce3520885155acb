/* See totals.h. */
#include "totals.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/metric_totals.h"
#include "common/metrics.h"

#define LABELS_BYTES_MAX 4096
#define LE_MAX           64 /* bounds of one histogram, old ones included */

struct bucket {
    double bound;
    char text[32]; /* as stored */
    double count;  /* not cumulative */
};

struct sample {
    char *labels; /* ready text, without le */
    double value; /* counter; histogram: sum */
    double count;
    struct bucket buckets[LE_MAX];
    size_t bucket_count;
};

struct family {
    char *name;
    bool histogram;
    struct sample **samples;
    size_t count;
};

struct totals {
    struct family *families;
    size_t count;
};

static const struct {
    const char *name;
    const char *help;
} helps[] = {
    {"hypersdk_jobs_total", "Jobs that ended, by final status and provider"},
    {"hypersdk_job_duration_seconds", "From start to end of jobs that completed or failed"},
    {"hypersdk_vms_exported_total", "VMs exported"},
    {"hypersdk_bytes_exported_total", "Bytes of exported disks"},
    {"hypersdk_webhook_deliveries_total", "Attempts to deliver a webhook, by result"},
};

struct totals *totals_new(void)
{
    return xcalloc(1, sizeof(struct totals));
}

void totals_free(struct totals *totals)
{
    if (totals == NULL)
        return;
    for (size_t i = 0; i < totals->count; i++) {
        struct family *family = &totals->families[i];
        for (size_t j = 0; j < family->count; j++) {
            free(family->samples[j]->labels);
            free(family->samples[j]);
        }
        free(family->samples);
        free(family->name);
    }
    free(totals->families);
    free(totals);
}

static struct family *family_get(struct totals *totals, const char *name, bool histogram)
{
    struct family *family;

    for (size_t i = 0; i < totals->count; i++) {
        if (strcmp(totals->families[i].name, name) == 0)
            return &totals->families[i];
    }
    totals->families = xreallocarray(totals->families, totals->count + 1, sizeof *totals->families);
    family = &totals->families[totals->count++];
    *family = (struct family){.name = xstrdup(name), .histogram = histogram};
    return family;
}

static struct sample *sample_get(struct family *family, const char *labels)
{
    struct sample *sample;

    /* rows come sorted, so the last one is the likely one */
    for (size_t i = family->count; i > 0; i--) {
        if (strcmp(family->samples[i - 1]->labels, labels) == 0)
            return family->samples[i - 1];
    }
    family->samples = xreallocarray(family->samples, family->count + 1, sizeof(struct sample *));
    sample = xcalloc(1, sizeof *sample);
    sample->labels = xstrdup(labels);
    family->samples[family->count++] = sample;
    return sample;
}

static bool is_metric_name(const char *name)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";

    return name[0] != '\0' && (name[0] < '0' || name[0] > '9') &&
           strspn(name, allowed) == strlen(name);
}

/* The labels of a row as Prometheus writes them; "le" apart. */
static int labels_text(const char *json, struct strbuf *out, char le[32], struct error *err)
{
    auto_json *labels = NULL;
    const char *name;
    json_t *value;

    le[0] = '\0';
    if (json_parse(json, strlen(json), LABELS_BYTES_MAX, &labels, err) < 0)
        return -1;
    json_object_foreach(labels, name, value)
    {
        if (!is_metric_name(name) || !json_is_string(value))
            return error_set(err, ERR_INVALID, "label '%.64s' is malformed", name);
        if (strcmp(name, "le") == 0) {
            (void)snprintf(le, 32, "%s", json_string_value(value));
        } else {
            metric_label(out, name, json_string_value(value));
        }
    }
    if (out->overflowed)
        return error_set(err, ERR_INVALID, "labels are over %d bytes", LABELS_BYTES_MAX);
    return 0;
}

static double bound_of(const char *le)
{
    return strcmp(le, "+Inf") == 0 ? (double)INFINITY : strtod(le, NULL);
}

static void bucket_add(struct sample *sample, const char *le, double count)
{
    size_t at = 0;
    double bound = bound_of(le);

    while (at < sample->bucket_count && sample->buckets[at].bound < bound)
        at++;
    if (at < sample->bucket_count && strcmp(sample->buckets[at].text, le) == 0) {
        sample->buckets[at].count += count;
        return;
    }
    if (sample->bucket_count == LE_MAX)
        return;
    memmove(&sample->buckets[at + 1], &sample->buckets[at],
            (sample->bucket_count - at) * sizeof sample->buckets[0]);
    sample->buckets[at] = (struct bucket){.bound = bound, .count = count};
    (void)snprintf(sample->buckets[at].text, sizeof sample->buckets[at].text, "%s", le);
    sample->bucket_count++;
}

static struct sample *histogram_get(struct totals *totals, const char *name, const char *labels)
{
    struct sample *sample = sample_get(family_get(totals, name, true), labels);

    if (sample->bucket_count == 0) {
        for (size_t i = 0; i < metric_duration_bounds_count; i++)
            bucket_add(sample, metric_duration_bounds[i], 0);
    }
    return sample;
}

/* Does name end in the suffix? Then its length without it, else 0. */
static size_t stem(const char *name, const char *suffix)
{
    size_t n = strlen(name);
    size_t m = strlen(suffix);

    return n > m && strcmp(name + n - m, suffix) == 0 ? n - m : 0;
}

int totals_add(struct totals *totals, const char *name, const char *labels, double value,
               struct error *err)
{
    auto_strbuf text;
    char le[32];
    size_t length;

    strbuf_init(&text, LABELS_BYTES_MAX);
    if (!is_metric_name(name))
        return error_set(err, ERR_INVALID, "metric name '%.64s' is malformed", name);
    if (labels_text(labels, &text, le, err) < 0)
        return error_wrap(err, "%.64s", name);
    if ((length = stem(name, "_bucket")) > 0 && le[0] != '\0') {
        autofree char *family = xstrndup(name, length);
        bucket_add(histogram_get(totals, family, text.data), le, value);
    } else if ((length = stem(name, "_seconds_sum")) > 0) {
        autofree char *family = xstrndup(name, length + strlen("_seconds"));
        histogram_get(totals, family, text.data)->value += value;
    } else if ((length = stem(name, "_seconds_count")) > 0) {
        autofree char *family = xstrndup(name, length + strlen("_seconds"));
        histogram_get(totals, family, text.data)->count += value;
    } else {
        sample_get(family_get(totals, name, false), text.data)->value += value;
    }
    return 0;
}

static void promise_jobs(struct totals *totals, const char *provider)
{
    static const char *const statuses[] = {"cancelled", "completed", "failed"};

    for (size_t i = 0; i < ARRAY_LEN(statuses); i++) {
        auto_strbuf labels;
        strbuf_init(&labels, LABELS_BYTES_MAX);
        /* in the order in which PostgreSQL gives the keys of a row */
        metric_label(&labels, "status", statuses[i]);
        metric_label(&labels, "provider", provider);
        (void)sample_get(family_get(totals, "hypersdk_jobs_total", false), labels.data);
    }
}

void totals_add_promised(struct totals *totals, char *const *providers, size_t count)
{
    static const char *const results[] = {"result=\"delivered\"", "result=\"failed\"",
                                          "result=\"gone\"", "result=\"retried\""};
    struct family *durations = family_get(totals, "hypersdk_job_duration_seconds", true);

    if (durations->count == 0)
        (void)histogram_get(totals, "hypersdk_job_duration_seconds", "vm_type=\"\",provider=\"\"");
    if (count == 0)
        promise_jobs(totals, "");
    for (size_t i = 0; i < count; i++)
        promise_jobs(totals, providers[i]);
    (void)sample_get(family_get(totals, "hypersdk_vms_exported_total", false), "");
    (void)sample_get(family_get(totals, "hypersdk_bytes_exported_total", false), "");
    for (size_t i = 0; i < ARRAY_LEN(results); i++) {
        (void)sample_get(family_get(totals, "hypersdk_webhook_deliveries_total", false),
                         results[i]);
    }
}

static const char *help_of(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(helps); i++) {
        if (strcmp(helps[i].name, name) == 0)
            return helps[i].help;
    }
    return NULL;
}

static void render_histogram(struct strbuf *out, const char *name, const struct sample *sample)
{
    autofree char *bucket = xasprintf("%s_bucket", name);
    autofree char *sum = xasprintf("%s_sum", name);
    autofree char *count = xasprintf("%s_count", name);
    double total = 0;

    for (size_t i = 0; i < sample->bucket_count; i++) {
        auto_strbuf labels;
        strbuf_init(&labels, LABELS_BYTES_MAX + 64);
        strbuf_add(&labels, sample->labels);
        metric_label(&labels, "le", sample->buckets[i].text);
        total += sample->buckets[i].count;
        metric_sample_add(out, bucket, labels.data, total);
    }
    metric_sample_add(out, sum, sample->labels, sample->value);
    metric_sample_add(out, count, sample->labels, sample->count);
}

void totals_render(const struct totals *totals, struct strbuf *out)
{
    for (size_t i = 0; i < totals->count; i++) {
        const struct family *family = &totals->families[i];
        metric_header_add(out, family->name, family->histogram ? "histogram" : "counter",
                          help_of(family->name));
        for (size_t j = 0; j < family->count; j++) {
            if (family->histogram) {
                render_histogram(out, family->name, family->samples[j]);
            } else {
                metric_sample_add(out, family->name, family->samples[j]->labels,
                                  family->samples[j]->value);
            }
        }
    }
}
