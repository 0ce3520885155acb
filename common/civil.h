/* Days of the Gregorian calendar, counted from 1970-01-01. Pure arithmetic, no time zones. */
#ifndef COMMON_CIVIL_H
#define COMMON_CIVIL_H

#include "common/base.h"

#define DAY_SECONDS INT64_C(86400)

struct civil {
    int year;
    int month;   /* 1-12 */
    int day;     /* 1-31 */
    int weekday; /* 0 = Sunday */
};

/* month 1-12; day may lie outside the month and counts on. */
int64_t civil_days(int year, int month, int day);
void civil_date(int64_t days, struct civil *out);
int civil_month_days(int year, int month);
bool civil_is_leap(int year);
/* a / b and a % b, rounded down; b > 0. */
int64_t floor_div(int64_t a, int64_t b);
int64_t floor_mod(int64_t a, int64_t b);

#endif
