/* See metrics.h.
 *
 * Design notes. Series hang on their family (one name, one type) in the order of their birth; a
 * process has some thirty families of a few labels each, so a look-up compares a few short texts
 * under one mutex. */
#include "common/metrics.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "common/clock.h"
#include "common/service.h"

#define METRIC_FAMILIES_MAX 256
#define METRIC_NAME_MAX     128
#define METRIC_LABELS_MAX   512

enum metric_type { METRIC_UNTYPED, METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

/* Seconds: from a statement of a millisecond to a task of an hour. */
static const double bounds[] = {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                2.5,   5,     10,   30,    60,   300, 900,  3600};

struct series {
    struct series *next;
    char *labels;
    double value; /* histogram: sum */
    uint64_t count;
    uint64_t buckets[ARRAY_LEN(bounds)]; /* not cumulative */
};

struct family {
    char *name;
    char *help;
    enum metric_type type;
    struct series *first;
    struct series *last;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static struct family families[METRIC_FAMILIES_MAX];
static size_t family_count;
static size_t series_count;
static uint64_t dropped;
static double start_seconds;

static struct family *family_get(const char *name)
{
    for (size_t i = 0; i < family_count; i++) {
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    }
    if (family_count == METRIC_FAMILIES_MAX)
        return NULL;
    families[family_count].name = xstrndup(name, METRIC_NAME_MAX);
    return &families[family_count++];
}

/* NULL: too many, or the name already is a metric of another type. */
static struct series *series_get(const char *name, const char *labels, enum metric_type type)
{
    struct family *family = family_get(name);
    struct series *series;

    if (family == NULL || (family->type != METRIC_UNTYPED && family->type != type)) {
        dropped++;
        return NULL;
    }
    for (series = family->first; series != NULL; series = series->next) {
        if (strcmp(series->labels, labels) == 0)
            return series;
    }
    if (series_count == METRIC_SERIES_MAX || strlen(labels) > METRIC_LABELS_MAX) {
        dropped++;
        return NULL;
    }
    series_count++;
    family->type = type;
    series = xcalloc(1, sizeof *series);
    series->labels = xstrdup(labels);
    if (family->last == NULL) {
        family->first = series;
    } else {
        family->last->next = series;
    }
    family->last = series;
    return series;
}

void metric_add(const char *name, const char *labels, double value)
{
    LOCK_SCOPE(&mutex);
    struct series *series = series_get(name, labels, METRIC_COUNTER);

    if (series != NULL)
        series->value += value;
}

void metric_set(const char *name, const char *labels, double value)
{
    LOCK_SCOPE(&mutex);
    struct series *series = series_get(name, labels, METRIC_GAUGE);

    if (series != NULL)
        series->value = value;
}

void metric_observe(const char *name, const char *labels, double value)
{
    LOCK_SCOPE(&mutex);
    struct series *series = series_get(name, labels, METRIC_HISTOGRAM);

    if (series == NULL)
        return;
    series->count++;
    series->value += value;
    for (size_t i = 0; i < ARRAY_LEN(bounds); i++) {
        if (value <= bounds[i]) {
            series->buckets[i]++;
            break;
        }
    }
}

void metric_describe(const char *name, const char *help)
{
    LOCK_SCOPE(&mutex);
    struct family *family = family_get(name);

    if (family == NULL)
        return;
    free(family->help);
    family->help = xstrdup(help);
}

void metric_label(struct strbuf *labels, const char *name, const char *value)
{
    strbuf_addf(labels, "%s%s=\"", labels->length == 0 ? "" : ",", name);
    for (const char *p = value; *p != '\0'; p++) {
        if (*p == '\\' || *p == '"')
            strbuf_addc(labels, '\\');
        if (*p == '\n') {
            strbuf_add(labels, "\\n");
        } else {
            strbuf_addc(labels, *p);
        }
    }
    strbuf_addc(labels, '"');
}

void metric_value_text(double value, char out[METRIC_VALUE_SIZE])
{
    if (isnan(value)) {
        (void)snprintf(out, METRIC_VALUE_SIZE, "NaN");
    } else if (isinf(value)) {
        (void)snprintf(out, METRIC_VALUE_SIZE, value > 0 ? "+Inf" : "-Inf");
    } else if (fabs(value) < 9e15 && floor(value) == value) {
        (void)snprintf(out, METRIC_VALUE_SIZE, "%.0f", value);
    } else {
        (void)snprintf(out, METRIC_VALUE_SIZE, "%.17g", value);
    }
}

void metric_header_add(struct strbuf *out, const char *name, const char *type, const char *help)
{
    if (help != NULL) {
        strbuf_addf(out, "# HELP %s ", name);
        for (const char *p = help; *p != '\0'; p++) {
            if (*p == '\\' || *p == '\n') {
                strbuf_add(out, *p == '\n' ? "\\n" : "\\\\");
            } else {
                strbuf_addc(out, *p);
            }
        }
        strbuf_addc(out, '\n');
    }
    strbuf_addf(out, "# TYPE %s %s\n", name, type);
}

void metric_sample_add(struct strbuf *out, const char *name, const char *labels, double value)
{
    char text[METRIC_VALUE_SIZE];

    metric_value_text(value, text);
    if (labels[0] == '\0') {
        strbuf_addf(out, "%s %s\n", name, text);
    } else {
        strbuf_addf(out, "%s{%s} %s\n", name, labels, text);
    }
}

static void render_histogram(struct strbuf *out, const char *name, const struct series *series)
{
    const char *comma = series->labels[0] == '\0' ? "" : ",";
    const char *open = series->labels[0] == '\0' ? "" : "{";
    const char *close = series->labels[0] == '\0' ? "" : "}";
    uint64_t total = 0;
    char text[METRIC_VALUE_SIZE];

    for (size_t i = 0; i < ARRAY_LEN(bounds); i++) {
        total += series->buckets[i];
        strbuf_addf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, series->labels, comma, bounds[i],
                    (unsigned long long)total);
    }
    metric_value_text(series->value, text);
    strbuf_addf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, series->labels, comma,
                (unsigned long long)series->count);
    strbuf_addf(out, "%s_sum%s%s%s %s\n", name, open, series->labels, close, text);
    strbuf_addf(out, "%s_count%s%s%s %llu\n", name, open, series->labels, close,
                (unsigned long long)series->count);
}

static void render_family(struct strbuf *out, const struct family *family)
{
    static const char *const types[] = {
        [METRIC_COUNTER] = "counter", [METRIC_GAUGE] = "gauge", [METRIC_HISTOGRAM] = "histogram"};

    if (family->type == METRIC_UNTYPED)
        return; /* described, never used */
    metric_header_add(out, family->name, types[family->type], family->help);
    for (const struct series *series = family->first; series != NULL; series = series->next) {
        if (family->type == METRIC_HISTOGRAM) {
            render_histogram(out, family->name, series);
        } else {
            metric_sample_add(out, family->name, series->labels, series->value);
        }
    }
}

static void gauge(struct strbuf *out, const char *name, const char *type, const char *help,
                  double value)
{
    metric_header_add(out, name, type, help);
    metric_sample_add(out, name, "", value);
}

static double open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    double count = -3; /* ".", ".." and the directory itself */

    if (dir == NULL)
        return 0;
    while (readdir(dir) != NULL)
        count++;
    (void)closedir(dir);
    return count;
}

struct proc_stat {
    double cpu_seconds;
    double threads;
    double start_after_boot_s;
    double virtual_bytes;
    double resident_bytes;
};

/* Fields of /proc/self/stat after the name in parentheses; see proc(5). */
static bool read_stat(struct proc_stat *out)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    size_t size;
    char *at;
    double ticks = (double)sysconf(_SC_CLK_TCK);
    double fields[25] = {0}; /* [0] is field 3, "state" */

    if (file == NULL)
        return false;
    size = fread(text, 1, sizeof text - 1, file);
    (void)fclose(file);
    text[size] = '\0';
    at = strrchr(text, ')');
    if (at == NULL || at[1] == '\0' || at[2] == '\0')
        return false;
    at += 3; /* ") S" */
    for (size_t i = 1; i < ARRAY_LEN(fields); i++)
        fields[i] = strtod(at, &at);
    out->cpu_seconds = (fields[11] + fields[12]) / ticks;
    out->threads = fields[17];
    out->start_after_boot_s = fields[19] / ticks;
    out->virtual_bytes = fields[20];
    out->resident_bytes = fields[21] * (double)sysconf(_SC_PAGESIZE);
    return true;
}

static void render_process(struct strbuf *out)
{
    struct proc_stat stat = {0};
    struct rlimit limit = {0};
    struct timespec boot = {0};

    if (!read_stat(&stat))
        return;
    if (start_seconds == 0) { /* once: two clocks drift, a start time must not */
        (void)clock_gettime(CLOCK_BOOTTIME, &boot);
        start_seconds =
            (double)clock_wall_ms() / 1000.0 -
            ((double)boot.tv_sec + (double)boot.tv_nsec / 1e9 - stat.start_after_boot_s);
    }
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    gauge(out, "process_cpu_seconds_total", "counter", "CPU time, user and system",
          stat.cpu_seconds);
    gauge(out, "process_resident_memory_bytes", "gauge", "Resident memory", stat.resident_bytes);
    gauge(out, "process_virtual_memory_bytes", "gauge", "Virtual memory", stat.virtual_bytes);
    gauge(out, "process_threads", "gauge", "Threads", stat.threads);
    gauge(out, "process_open_fds", "gauge", "Open file descriptors", open_fds());
    gauge(out, "process_max_fds", "gauge", "Limit of open file descriptors",
          (double)limit.rlim_cur);
    gauge(out, "process_start_time_seconds", "gauge", "Start, seconds since 1970", start_seconds);
}

void metrics_render(struct strbuf *out)
{
    LOCK_SCOPE(&mutex);

    for (size_t i = 0; i < family_count; i++)
        render_family(out, &families[i]);
    if (dropped > 0) {
        gauge(out, "hypersdk_metrics_dropped_total", "counter",
              "Values that had no place among the series", (double)dropped);
    }
    metric_header_add(out, "hypersdk_build_info", "gauge", "The version that runs");
    metric_sample_add(out, "hypersdk_build_info", "version=\"" HYPERSDK_VERSION "\"", 1);
    render_process(out);
}
