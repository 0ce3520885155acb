/* See time_zone.h.
 *
 * A TZif file is a block with 32-bit times, and since version 2 a second one with 64-bit times
 * and a rule for what comes after its last change. We take the second where there is one. */
#include "common/time_zone.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/time_zone_rule.h"

#define ZONE_DIR      "/usr/share/zoneinfo"
#define FILE_MAX      ((size_t)(256 * KIB)) /* the largest of 2026 has 4 KiB */
#define HEADER_SIZE   44
#define CHANGES_MAX   4096 /* RFC 9636 sets none; 2026 has 242 */
#define TYPES_MAX     256
#define TEXT_MAX      4096
#define RULE_MAX      128
#define SYSTEM_MAX    256
#define LOCALTIME     "/etc/localtime"
#define TIMEZONE_FILE "/etc/timezone"

struct time_zone {
    size_t change_count;
    struct time_zone_change *changes;
    int32_t first_offset; /* before the first change */
    bool has_rule;        /* after the last one */
    struct time_zone_rule rule;
};

struct counts {
    size_t utc_marks;
    size_t standard_marks;
    size_t leaps;
    size_t changes;
    size_t types;
    size_t text;
};

void time_zone_free(struct time_zone *zone)
{
    if (zone == NULL)
        return;
    free(zone->changes);
    free(zone);
}

static uint64_t big_endian(const uint8_t *p, size_t size)
{
    uint64_t value = 0;

    for (size_t i = 0; i < size; i++)
        value = value << 8 | p[i];
    return value;
}

static int read_counts(const uint8_t *p, size_t left, struct counts *out, struct error *err)
{
    static const char *const names[] = {"UTC marks", "standard marks", "leap seconds",
                                        "changes",   "types",          "text"};
    static const size_t max[] = {TYPES_MAX, TYPES_MAX, 0, CHANGES_MAX, TYPES_MAX, TEXT_MAX};
    size_t value[ARRAY_LEN(names)];

    if (left < HEADER_SIZE || memcmp(p, "TZif", 4) != 0)
        return error_set(err, ERR_INVALID, "not a TZif file");
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        value[i] = big_endian(p + 20 + 4 * i, 4);
        if (value[i] > max[i]) {
            return error_set(err, ERR_INVALID, "%zu %s, at most %zu are understood", value[i],
                             names[i], max[i]);
        }
    }
    if (value[4] == 0)
        return error_set(err, ERR_INVALID, "a TZif file without a type");
    *out = (struct counts){value[0], value[1], value[2], value[3], value[4], value[5]};
    return 0;
}

static size_t block_size(const struct counts *n, size_t time_size)
{
    return n->changes * (time_size + 1) + n->types * 6 + n->text + n->leaps * (time_size + 4) +
           n->standard_marks + n->utc_marks;
}

static int read_block(const uint8_t *p, const struct counts *n, size_t time_size,
                      struct time_zone *zone, struct error *err)
{
    const uint8_t *indexes = p + n->changes * time_size;
    const uint8_t *types = indexes + n->changes;
    int32_t offsets[TYPES_MAX] = {0};

    for (size_t i = 0; i < n->types; i++) {
        offsets[i] = (int32_t)(uint32_t)big_endian(types + 6 * i, 4);
        if (offsets[i] > TIME_ZONE_OFFSET_MAX || offsets[i] < -TIME_ZONE_OFFSET_MAX)
            return error_set(err, ERR_INVALID, "an offset of %d s", (int)offsets[i]);
    }
    zone->first_offset = offsets[0];
    zone->changes = xcalloc(n->changes + 1, sizeof *zone->changes);
    zone->change_count = n->changes;
    for (size_t i = 0; i < n->changes; i++) {
        uint64_t raw = big_endian(p + i * time_size, time_size);
        int64_t at = time_size == 4 ? (int64_t)(int32_t)(uint32_t)raw : (int64_t)raw;
        if (indexes[i] >= n->types)
            return error_set(err, ERR_INVALID, "a change to type %u of %zu", indexes[i], n->types);
        if (at > TIME_ZONE_AT_MAX || (i > 0 && at <= zone->changes[i - 1].at))
            return error_set(err, ERR_INVALID, "changes that are not in order");
        zone->changes[i] = (struct time_zone_change){.at = at, .offset = offsets[indexes[i]]};
    }
    return 0;
}

/* "\n<rule>\n"; an empty rule means: unknown, the last offset stays. */
static int read_footer(const uint8_t *p, size_t left, struct time_zone *zone, struct error *err)
{
    const uint8_t *end = left < 2 || p[0] != '\n' ? NULL : memchr(p + 1, '\n', left - 1);
    size_t length = end == NULL ? 0 : (size_t)(end - p) - 1;
    char text[RULE_MAX + 1];

    if (end == NULL || length > RULE_MAX || memchr(p + 1, '\0', length) != NULL)
        return error_set(err, ERR_INVALID, "the rule at the end is broken");
    if (length == 0)
        return 0;
    memcpy(text, p + 1, length);
    text[length] = '\0';
    if (time_zone_rule_parse(text, &zone->rule, err) < 0)
        return -1;
    zone->has_rule = true;
    return 0;
}

int time_zone_parse(const void *data, size_t size, struct time_zone **out, struct error *err)
{
    auto_time_zone *zone = xcalloc(1, sizeof *zone);
    const uint8_t *p = data;
    struct counts n = {0};
    size_t time_size = 4;

    if (read_counts(p, size, &n, err) < 0)
        return -1;
    if (p[4] >= '2') {
        size_t first = HEADER_SIZE + block_size(&n, 4);
        if (size < first)
            return error_set(err, ERR_INVALID, "a TZif file that ends too early");
        p += first;
        size -= first;
        time_size = 8;
        if (read_counts(p, size, &n, err) < 0)
            return -1;
    }
    p += HEADER_SIZE;
    size -= HEADER_SIZE;
    if (size < block_size(&n, time_size))
        return error_set(err, ERR_INVALID, "a TZif file that ends too early");
    if (read_block(p, &n, time_size, zone, err) < 0)
        return -1;
    p += block_size(&n, time_size);
    size -= block_size(&n, time_size);
    if (time_size == 8 && read_footer(p, size, zone, err) < 0)
        return -1;
    *out = STEAL(zone);
    return 0;
}

/* Letters, digits, + - _ in parts between slashes, each part begun by a letter: no way out of the
 * directory. What is no zone there (or not the same everywhere) is left out. */
static bool name_is_good(const char *name)
{
    static const char *const others[] = {"posix/", "right/", "localtime", "posixrules"};
    size_t length = strnlen(name, TIME_ZONE_NAME_MAX + 1);
    bool at_start = true;

    if (length == 0 || length > TIME_ZONE_NAME_MAX)
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool is_other = (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '_' || c == '/';
        if (at_start ? !is_letter : !is_letter && !is_other)
            return false;
        at_start = c == '/';
    }
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        if (strncmp(name, others[i], strlen(others[i])) == 0)
            return false;
    }
    return !at_start;
}

static int no_such_zone(const char *name, struct error *err)
{
    if (access(ZONE_DIR "/UTC", R_OK) < 0 && access(ZONE_DIR "/Europe", X_OK) < 0) {
        return error_set(err, ERR_UNAVAILABLE,
                         "no time zones in " ZONE_DIR " on this host: install the package tzdata");
    }
    return error_set(err, ERR_NOT_FOUND,
                     "unknown time zone '%s': it needs an IANA name such as 'Europe/Berlin', "
                     "spelled as in " ZONE_DIR,
                     name);
}

int time_zone_load(const char *name, struct time_zone **out, struct error *err)
{
    autofree char *path = NULL;
    autofree uint8_t *data = NULL;
    autoclose int fd = -1;
    struct stat st;

    if (!name_is_good(name)) {
        return error_set(err, ERR_INVALID,
                         "'%.64s' is no time zone name: it needs an IANA name such as "
                         "'Europe/Berlin' or 'UTC'",
                         name);
    }
    if (strcmp(name, "UTC") == 0) { /* also without tzdata */
        *out = xcalloc(1, sizeof **out);
        return 0;
    }
    path = xasprintf(ZONE_DIR "/%s", name);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return no_such_zone(name, err);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "time zone '%s'", name);
    if (!S_ISREG(st.st_mode))
        return no_such_zone(name, err);
    if ((size_t)st.st_size > FILE_MAX) {
        return error_set(err, ERR_LIMIT, "time zone '%s': its file is over %zu bytes", name,
                         FILE_MAX);
    }
    data = xmalloc((size_t)st.st_size + 1);
    if (pread_all(fd, data, (size_t)st.st_size, 0) < 0)
        return error_set_errno(err, errno, "time zone '%s'", name);
    if (time_zone_parse(data, (size_t)st.st_size, out, err) < 0)
        return error_wrap(err, "time zone '%s'", name);
    return 0;
}

/* After the last change: between two changes of the rule, but not before that last change. */
static void span_by_rule(const struct time_zone *zone, int64_t at, int64_t since,
                         struct time_zone_span *out)
{
    struct time_zone_change changes[TIME_ZONE_RULE_CHANGES];
    size_t i = 0;

    *out = (struct time_zone_span){.start = since, .end = INT64_MAX, .offset = zone->rule.standard};
    if (!zone->rule.has_daylight)
        return;
    time_zone_rule_changes(&zone->rule, at, changes);
    while (i + 1 < ARRAY_LEN(changes) && changes[i + 1].at <= at)
        i++;
    assert(changes[i].at <= at && i + 1 < ARRAY_LEN(changes));
    out->offset = changes[i].offset;
    out->end = changes[i + 1].at;
    if (changes[i].at > since)
        out->start = changes[i].at;
}

void time_zone_span_at(const struct time_zone *zone, int64_t at, struct time_zone_span *out)
{
    size_t low = 0;
    size_t high = zone->change_count;

    assert(at <= TIME_ZONE_AT_MAX && at >= -TIME_ZONE_AT_MAX);
    while (low < high) { /* how many changes are not after `at` */
        size_t middle = low + (high - low) / 2;
        if (zone->changes[middle].at <= at) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == zone->change_count && zone->has_rule) {
        span_by_rule(zone, at, low == 0 ? INT64_MIN : zone->changes[low - 1].at, out);
        return;
    }
    out->start = low == 0 ? INT64_MIN : zone->changes[low - 1].at;
    out->end = low == zone->change_count ? INT64_MAX : zone->changes[low].at;
    out->offset = low == 0 ? zone->first_offset : zone->changes[low - 1].offset;
}

static bool take_system_name(char *text, char out[TIME_ZONE_NAME_MAX + 1])
{
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;

    text[strcspn(text, " \t\r\n")] = '\0';
    if (time_zone_load(text, &zone, &err) < 0)
        return false;
    memcpy(out, text, strlen(text) + 1);
    return true;
}

void time_zone_system_name(char out[TIME_ZONE_NAME_MAX + 1])
{
    char text[SYSTEM_MAX];
    ssize_t length = readlink(LOCALTIME, text, sizeof text - 1);
    autoclose int fd = -1;
    char *inside;

    if (length > 0) {
        text[length] = '\0';
        inside = strstr(text, "/zoneinfo/");
        if (inside != NULL && take_system_name(inside + strlen("/zoneinfo/"), out))
            return;
    }
    fd = open(TIMEZONE_FILE, O_RDONLY | O_CLOEXEC);
    length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (length > 0) {
        text[length] = '\0';
        if (take_system_name(text, out))
            return;
    }
    memcpy(out, "UTC", sizeof "UTC");
}
