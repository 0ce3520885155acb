/* See parse.h. */
#include "common/parse.h"

#include <inttypes.h>
#include <string.h>
#include <strings.h>

/* Digits at *text into *out, *text moved behind them. -1: none, or more than 64 bits. */
static int take_digits(const char **text, uint64_t *out)
{
    const char *p = *text;
    uint64_t value = 0;

    if (*p < '0' || *p > '9')
        return -1;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (!checked_mul_u64(value, 10, &value) ||
            !checked_add_u64(value, (uint64_t)(*p - '0'), &value))
            return -1;
    }
    *text = p;
    *out = value;
    return 0;
}

int parse_u64(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out,
              struct error *err)
{
    const char *p = text;
    uint64_t value = 0;

    if (take_digits(&p, &value) < 0 || *p != '\0' || value < min || value > max) {
        return error_set(err, ERR_INVALID,
                         "%s: '%.64s' is not a number from %" PRIu64 " to %" PRIu64, name, text,
                         min, max);
    }
    *out = value;
    return 0;
}

int parse_u32(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t *out,
              struct error *err)
{
    uint64_t value = 0;

    if (parse_u64(name, text, min, max, &value, err) < 0)
        return -1;
    *out = (uint32_t)value;
    return 0;
}

int parse_bool(const char *name, const char *text, bool *out, struct error *err)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2 == 1;
            return 0;
        }
    }
    return error_set(err, ERR_INVALID, "%s: '%.64s' is not true or false", name, text);
}

/* Milliseconds of the unit at *text, which is moved behind it; 0 if there is none. */
static uint64_t take_duration_unit(const char **text)
{
    static const struct {
        const char *unit;
        uint64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000}};

    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        size_t n = strlen(units[i].unit);
        const char *after = *text + n;
        if (strncmp(*text, units[i].unit, n) == 0 &&
            (*after == '\0' || (*after >= '0' && *after <= '9'))) {
            *text += n;
            return units[i].ms;
        }
    }
    return 0;
}

int parse_duration_ms(const char *name, const char *text, int64_t min_ms, int64_t max_ms,
                      int64_t *out, struct error *err)
{
    const char *p = text;
    uint64_t total = 0;

    do {
        uint64_t number = 0;
        uint64_t unit_ms = 1000;
        if (take_digits(&p, &number) < 0)
            goto bad;
        if (*p != '\0' || p == text) {
            unit_ms = take_duration_unit(&p);
        } else if (total > 0) {
            goto bad; /* "1h30" */
        }
        if (unit_ms == 0 || !checked_mul_u64(number, unit_ms, &number) ||
            !checked_add_u64(total, number, &total))
            goto bad;
    } while (*p != '\0');
    if (total > INT64_MAX || (int64_t)total < min_ms || (int64_t)total > max_ms)
        goto bad;
    *out = (int64_t)total;
    return 0;
bad:
    return error_set(err, ERR_INVALID,
                     "%s: '%.64s' is not a duration from %" PRId64 " ms to %" PRId64
                     " ms (write 10s, 5m, 1h30m, 30d)",
                     name, text, min_ms, max_ms);
}

int parse_size_bytes(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *out,
                     struct error *err)
{
    static const char letters[] = "kmgt";
    const char *p = text;
    uint64_t value = 0;
    bool ok = take_digits(&p, &value) == 0;

    if (ok && *p != '\0') {
        const char *at = strchr(letters, *p | 0x20);
        ok = at != NULL && *at != '\0' &&
             (strcmp(p + 1, "") == 0 || strcasecmp(p + 1, "b") == 0 ||
              strcasecmp(p + 1, "ib") == 0) &&
             checked_mul_u64(value, UINT64_C(1) << (10 * (at - letters + 1)), &value);
    }
    if (!ok || value < min || value > max) {
        return error_set(err, ERR_INVALID,
                         "%s: '%.64s' is not a size from %" PRIu64 " to %" PRIu64
                         " bytes (write 1048576, 64M, 10G)",
                         name, text, min, max);
    }
    *out = value;
    return 0;
}

/* ---- times ---- */

/* "YYYY-MM-DD" with a day that exists; the rest of the text in *rest. */
static bool date_is_right(const char *text, const char **rest)
{
    static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    static const char shape[] = "dddd-dd-dd";
    int number[3] = {0}; /* year, month, day */
    int part = 0;
    bool leap;

    for (size_t i = 0; shape[i] != '\0'; i++) {
        bool digit = text[i] >= '0' && text[i] <= '9';
        if (shape[i] == 'd' ? !digit : text[i] != shape[i])
            return false;
        if (digit) {
            number[part] = number[part] * 10 + text[i] - '0';
        } else {
            part++;
        }
    }
    if (number[0] < 1 || number[1] < 1 || number[1] > 12 || number[2] < 1)
        return false;
    leap = (number[0] % 4 == 0 && number[0] % 100 != 0) || number[0] % 400 == 0;
    *rest = text + strlen(shape);
    return number[2] <= month_days[number[1] - 1] + (number[1] == 2 && leap ? 1 : 0);
}

static bool two_digits(const char *text, int max)
{
    return text[0] >= '0' && text[0] <= '9' && text[1] >= '0' && text[1] <= '9' &&
           (text[0] - '0') * 10 + text[1] - '0' <= max;
}

static bool time_is_right(const char *text)
{
    if (!two_digits(text, 23) || text[2] != ':' || !two_digits(text + 3, 59) || text[5] != ':' ||
        !two_digits(text + 6, 59))
        return false;
    text += 8;
    if (*text == '.') {
        size_t digits = strspn(text + 1, "0123456789");
        if (digits == 0 || digits > 9)
            return false;
        text += 1 + digits;
    }
    if (strcmp(text, "Z") == 0)
        return true;
    return (*text == '+' || *text == '-') && strlen(text) == 6 && two_digits(text + 1, 14) &&
           text[3] == ':' && two_digits(text + 4, 59);
}

bool parse_is_time(const char *text, bool or_date)
{
    const char *rest = NULL;

    if (!date_is_right(text, &rest))
        return false;
    return *rest == '\0' ? or_date : *rest == 'T' && time_is_right(rest + 1);
}
