/* Terminal text; see text.h. Widths come from the C.UTF-8 tables of the C library, which are
 * there whatever locale the user has set. */
#include "text.h"

#include <inttypes.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <wchar.h>

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

bool text_locale_is_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        const char *value = secure_getenv(names[i]);
        if (value != NULL && value[0] != '\0')
            return strcasestr(value, "utf-8") != NULL || strcasestr(value, "utf8") != NULL;
    }
    return false;
}

/* Decodes one character; *length is 1 for bytes that are no valid UTF-8, and the result then is
 * UINT32_MAX. */
static uint32_t decode(const unsigned char *p, size_t *length)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    uint32_t code;

    *length = 1;
    if (n == 1)
        return p[0];
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return UINT32_MAX;
    code = p[0] & (0xffU >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0U) != 0x80U)
            return UINT32_MAX;
        code = code << 6 | (p[i] & 0x3fU);
    }
    if (code < smallest[n] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
        return UINT32_MAX;
    *length = n;
    return code;
}

/* Characters that reorder or hide what follows. */
static bool is_direction_control(uint32_t code)
{
    return code == 0x61c || code == 0x200e || code == 0x200f ||
           (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) ||
           code == 0x2028 || code == 0x2029 || code == 0xfeff;
}

void text_add_clean(struct strbuf *out, const char *text, bool utf8)
{
    const unsigned char *p = (const unsigned char *)text;

    while (*p != '\0') {
        size_t length = 1;
        uint32_t code = decode(p, &length);
        if (code == '\n') {
            strbuf_add(out, "\\n");
        } else if (code == '\r') {
            strbuf_add(out, "\\r");
        } else if (code < 0x20 || (code >= 0x7f && code <= 0x9f)) {
            strbuf_addf(out, "\\x%02x", (unsigned int)code);
        } else if (code == UINT32_MAX || is_direction_control(code)) {
            strbuf_add(out, utf8 ? REPLACEMENT : "?");
        } else if (code > 0x7f && !utf8) {
            strbuf_addc(out, '?');
        } else {
            strbuf_add_bytes(out, p, length);
        }
        p += length;
    }
}

size_t text_width(const char *text)
{
    static locale_t unicode; /* made once, kept: the program has one thread */
    const unsigned char *p = (const unsigned char *)text;
    locale_t before;
    size_t width = 0;

    if (unicode == (locale_t)0)
        unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    before = unicode == (locale_t)0 ? (locale_t)0 : uselocale(unicode);
    while (*p != '\0') {
        size_t length = 1;
        uint32_t code = decode(p, &length);
        int columns = code == UINT32_MAX ? 1 : wcwidth((wchar_t)code);
        width += columns < 0 ? 1 : (size_t)columns;
        p += length;
    }
    if (before != (locale_t)0)
        (void)uselocale(before);
    return width;
}

void text_gb(uint64_t bytes, char out[TEXT_NUMBER_SIZE])
{
    (void)snprintf(out, TEXT_NUMBER_SIZE, "%" PRIu64 ".%" PRIu64, bytes / GIB,
                   bytes % GIB * 10 / GIB);
}

void text_size(uint64_t bytes, char out[TEXT_NUMBER_SIZE])
{
    static const char *const units[] = {"KB", "MB", "GB", "TB", "PB"};
    uint64_t unit = KIB;
    size_t i = 0;

    if (bytes < KIB) {
        (void)snprintf(out, TEXT_NUMBER_SIZE, "%" PRIu64 " B", bytes);
        return;
    }
    while (i + 1 < ARRAY_LEN(units) && bytes / unit >= KIB) {
        unit *= KIB;
        i++;
    }
    (void)snprintf(out, TEXT_NUMBER_SIZE, "%" PRIu64 ".%" PRIu64 " %s", bytes / unit,
                   bytes % unit * 10 / unit, units[i]);
}

void text_duration(uint64_t seconds, char out[TEXT_NUMBER_SIZE])
{
    if (seconds < 60) {
        (void)snprintf(out, TEXT_NUMBER_SIZE, "%" PRIu64 "s", seconds);
    } else if (seconds < 3600) {
        (void)snprintf(out, TEXT_NUMBER_SIZE, "%" PRIu64 "m%02" PRIu64 "s", seconds / 60,
                       seconds % 60);
    } else {
        (void)snprintf(out, TEXT_NUMBER_SIZE, "%" PRIu64 "h%02" PRIu64 "m", seconds / 3600,
                       seconds / 60 % 60);
    }
}

static void add_repeated(struct strbuf *out, const char *text, size_t count)
{
    for (size_t i = 0; i < count; i++)
        strbuf_add(out, text);
}

struct box_glyphs {
    const char *line, *bar;
    const char *top_left, *top_right, *left, *right, *bottom_left, *bottom_right, *cross;
};
static const struct box_glyphs glyphs_utf8 = {"─", "│", "┌", "┐", "├", "┤", "└", "┘", "┼"};
static const struct box_glyphs glyphs_ascii = {"-", "|", "+", "+", "+", "+", "+", "+", "+"};

struct box {
    struct strbuf *out;
    const struct box_glyphs *glyphs;
    size_t label_width;
    size_t value_width;
};

static void box_row(const struct box *box, const char *label, const char *value,
                    size_t value_columns)
{
    const char *bar = box->glyphs->bar;

    strbuf_addf(box->out, "%s %s", bar, label);
    add_repeated(box->out, " ", box->label_width - text_width(label));
    strbuf_addf(box->out, " %s %s", bar, value);
    add_repeated(box->out, " ", box->value_width - value_columns);
    strbuf_addf(box->out, " %s\n", bar);
}

/* The cell as shown, and how wide it is without its colour codes. */
static size_t box_value(struct strbuf *out, const struct text_row *row,
                        const struct text_style *style)
{
    const char *prefix = row->prefix == NULL ? "" : row->prefix;
    size_t columns = text_width(prefix);
    auto_strbuf clean;

    strbuf_init(&clean, TEXT_BYTES_MAX);
    text_add_clean(&clean, row->value, style->utf8);
    if (style->color && row->color != NULL && columns > 0) {
        strbuf_addf(out, "\033[%sm%s\033[0m", row->color, prefix);
    } else {
        strbuf_add(out, prefix);
    }
    strbuf_add(out, clean.data);
    return columns + text_width(clean.data);
}

static void box_frame(const struct box *box, const char *left, const char *middle,
                      const char *right)
{
    strbuf_add(box->out, left);
    add_repeated(box->out, box->glyphs->line, box->label_width + 2);
    strbuf_add(box->out, middle);
    add_repeated(box->out, box->glyphs->line, box->value_width + 2);
    strbuf_addf(box->out, "%s\n", right);
}

void text_box(struct strbuf *out, const char *title, bool headings, const struct text_row *rows,
              size_t count, const struct text_style *style)
{
    const struct box_glyphs *glyphs = style->utf8 ? &glyphs_utf8 : &glyphs_ascii;
    struct box box = {out, glyphs, 13 /* the reference's layout; longer labels widen it */,
                      TEXT_BOX_VALUE_MIN};
    auto_strbuf cell;

    strbuf_init(&cell, TEXT_BYTES_MAX);
    for (size_t i = 0; i < count; i++) {
        strbuf_reset(&cell);
        box.label_width = max_u64(box.label_width, text_width(rows[i].label));
        box.value_width = max_u64(box.value_width, box_value(&cell, &rows[i], style));
    }
    box.value_width = max_u64(box.value_width, text_width(title));
    strbuf_addf(out, "%s%s %s ", glyphs->top_left, glyphs->line, title);
    add_repeated(out, glyphs->line, box.label_width + box.value_width + 2 - text_width(title));
    strbuf_addf(out, "%s\n", glyphs->top_right);
    if (headings) {
        box_row(&box, "Property", "Value", strlen("Value"));
        box_frame(&box, glyphs->left, glyphs->cross, glyphs->right);
    }
    for (size_t i = 0; i < count; i++) {
        size_t columns;
        strbuf_reset(&cell);
        columns = box_value(&cell, &rows[i], style);
        box_row(&box, rows[i].label, cell.data, columns);
    }
    box_frame(&box, glyphs->bottom_left, glyphs->line, glyphs->bottom_right);
}

void text_table(struct strbuf *out, const char *const *cells, size_t columns, size_t rows,
                bool utf8)
{
    size_t widths[TEXT_COLUMNS_MAX] = {0};
    auto_strbuf cell;

    assert(columns <= TEXT_COLUMNS_MAX);
    strbuf_init(&cell, TEXT_BYTES_MAX);
    for (size_t pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < rows * columns; i++) {
            size_t column = i % columns;
            size_t width;
            strbuf_reset(&cell);
            text_add_clean(&cell, cells[i], utf8);
            width = text_width(cell.data);
            if (pass == 0) {
                widths[column] = max_u64(widths[column], width);
                continue;
            }
            strbuf_add(out, cell.data);
            if (column + 1 == columns) {
                strbuf_addc(out, '\n');
            } else {
                add_repeated(out, " ", widths[column] - width + 2);
            }
        }
    }
}
