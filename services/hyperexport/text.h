/* Text as a terminal shows it: names from elsewhere made harmless, display width, sizes,
 * durations, box-drawn and plain tables. */
#ifndef HYPEREXPORT_TEXT_H
#define HYPEREXPORT_TEXT_H

#include "common/strbuf.h"

#define TEXT_BYTES_MAX     ((size_t)(4 * MIB)) /* the longest output: a list of 10,000 VMs */
#define TEXT_NUMBER_SIZE   32                  /* any formatted number or duration */
#define TEXT_COLUMNS_MAX   10
#define TEXT_BOX_VALUE_MIN 32 /* value column of the VM information box (CLI reference 6.1) */

/* Does the user's locale say UTF-8? (LC_ALL, LC_CTYPE, LANG in that order) */
bool text_locale_is_utf8(void);

/* Appends foreign text so that it cannot steer the terminal: line breaks become \n and \r, other
 * control characters \xNN, direction overrides and invalid UTF-8 U+FFFD. Without utf8 every
 * character beyond ASCII becomes '?'. */
void text_add_clean(struct strbuf *out, const char *text, bool utf8);
/* Columns that clean text takes; East Asian wide characters count two, combining ones none. */
size_t text_width(const char *text);

/* GB as the seed prints it: 1 GB = 2^30 bytes, one decimal, truncated: 138047488000 is "128.5". */
void text_gb(uint64_t bytes, char out[TEXT_NUMBER_SIZE]);
/* "512 B", "5.0 MB", "40.0 GB": binary units, one decimal, truncated. */
void text_size(uint64_t bytes, char out[TEXT_NUMBER_SIZE]);
/* "6s", "1m05s", "2h03m". */
void text_duration(uint64_t seconds, char out[TEXT_NUMBER_SIZE]);

struct text_row {
    const char *label;
    const char *value;
    const char *prefix; /* shown before value, e.g. a bullet; may be NULL */
    const char *color;  /* SGR number for the prefix, e.g. "32"; NULL: none */
};
struct text_style {
    bool utf8;
    bool color;
};
/* A two-column box with the title in its top border; as wide as its longest value. headings adds
 * the "Property | Value" line. Values are cleaned here. */
void text_box(struct strbuf *out, const char *title, bool headings, const struct text_row *rows,
              size_t count, const struct text_style *style);

/* Rows of `columns` cells each, aligned, two spaces between; cells are cleaned here. The first
 * row is the heading. */
void text_table(struct strbuf *out, const char *const *cells, size_t columns, size_t rows,
                bool utf8);

#endif
