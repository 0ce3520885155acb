/* See civil.h. Years are counted from March, so that the leap day is a year's last. */
#include "common/civil.h"

#define ERA_DAYS      146097 /* 400 years */
#define EPOCH_OFFSET  719468 /* days from 0000-03-01 to 1970-01-01 */
#define EPOCH_WEEKDAY 4      /* a Thursday */

int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0 ? 1 : 0);
}

int64_t floor_mod(int64_t a, int64_t b)
{
    return a % b < 0 ? a % b + b : a % b;
}

int64_t civil_days(int year, int month, int day)
{
    int64_t y = month <= 2 ? (int64_t)year - 1 : year;
    int64_t era = floor_div(y, 400);
    int64_t of_era = floor_mod(y, 400);
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5;

    assert(month >= 1 && month <= 12);
    return era * ERA_DAYS + of_era * 365 + of_era / 4 - of_era / 100 + of_year + day - 1 -
           EPOCH_OFFSET;
}

void civil_date(int64_t days, struct civil *out)
{
    int64_t z = days + EPOCH_OFFSET;
    int64_t day = floor_mod(z, ERA_DAYS);
    int64_t of_era = (day - day / 1460 + day / 36524 - day / 146096) / 365;
    int64_t of_year = day - (365 * of_era + of_era / 4 - of_era / 100);
    int64_t m = (5 * of_year + 2) / 153;

    out->day = (int)(of_year - (153 * m + 2) / 5 + 1);
    out->month = (int)(m < 10 ? m + 3 : m - 9);
    out->year = (int)(floor_div(z, ERA_DAYS) * 400 + of_era + (out->month <= 2 ? 1 : 0));
    out->weekday = (int)floor_mod(days + EPOCH_WEEKDAY, 7);
}

bool civil_is_leap(int year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

int civil_month_days(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

    assert(month >= 1 && month <= 12);
    return days[month - 1] + (month == 2 && civil_is_leap(year) ? 1 : 0);
}
