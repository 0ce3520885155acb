/* See strbuf.h. */
#include "common/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define STRBUF_CAPACITY_FIRST 256 /* most URLs and log lines fit without growing */

void strbuf_init(struct strbuf *sb, size_t size_max)
{
    *sb = (struct strbuf){.size_max = size_max};
    sb->capacity = size_max < STRBUF_CAPACITY_FIRST ? size_max + 1 : STRBUF_CAPACITY_FIRST;
    sb->data = xmalloc(sb->capacity);
    sb->data[0] = '\0';
}

void strbuf_release(struct strbuf *sb)
{
    free(sb->data);
    sb->data = NULL;
    sb->length = 0;
}

void strbuf_reset(struct strbuf *sb)
{
    sb->length = 0;
    sb->overflowed = false;
    sb->data[0] = '\0';
}

void strbuf_add_bytes(struct strbuf *sb, const void *data, size_t size)
{
    if (size > sb->size_max - sb->length) {
        size = sb->size_max - sb->length;
        sb->overflowed = true;
    }
    if (sb->length + size + 1 > sb->capacity) {
        size_t wanted = sb->capacity * 2;
        if (wanted < sb->length + size + 1)
            wanted = sb->length + size + 1;
        if (wanted > sb->size_max + 1)
            wanted = sb->size_max + 1;
        sb->data = xrealloc(sb->data, wanted);
        sb->capacity = wanted;
    }
    if (size > 0)
        memcpy(sb->data + sb->length, data, size);
    sb->length += size;
    sb->data[sb->length] = '\0';
}

void strbuf_add(struct strbuf *sb, const char *text)
{
    strbuf_add_bytes(sb, text, strlen(text));
}

void strbuf_addc(struct strbuf *sb, char c)
{
    strbuf_add_bytes(sb, &c, 1);
}

void strbuf_addf(struct strbuf *sb, const char *format, ...)
{
    autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        abort();
    va_end(args);
    strbuf_add(sb, text);
}

void strbuf_add_xml(struct strbuf *sb, const char *text)
{
    for (const char *p = text; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '&') {
            strbuf_add(sb, "&amp;");
        } else if (c == '<') {
            strbuf_add(sb, "&lt;");
        } else if (c == '>') {
            strbuf_add(sb, "&gt;");
        } else if (c == '"') {
            strbuf_add(sb, "&quot;");
        } else if (c == '\'') {
            strbuf_add(sb, "&apos;");
        } else if (c >= 0x20 || c == '\t' || c == '\n' || c == '\r') {
            strbuf_addc(sb, *p);
        }
    }
}

static bool url_unreserved(unsigned char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("-_.~", c) != NULL);
}

void strbuf_add_url(struct strbuf *sb, const char *text)
{
    for (const char *p = text; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        if (url_unreserved(c)) {
            strbuf_addc(sb, *p);
        } else {
            strbuf_addf(sb, "%%%02X", (unsigned int)c);
        }
    }
}

/* Length of the valid UTF-8 sequence at p, 0 if there is none. */
static size_t utf8_sequence(const unsigned char *p)
{
    size_t n;
    uint32_t code;

    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        n = 2;
        code = p[0] & 0x1fU;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        n = 3;
        code = p[0] & 0x0fU;
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        n = 4;
        code = p[0] & 0x07U;
    } else {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0U) != 0x80U)
            return 0;
        code = code << 6 | (p[i] & 0x3fU);
    }
    if ((n == 3 && (code < 0x800 || (code >= 0xd800 && code <= 0xdfff))) ||
        (n == 4 && (code < 0x10000 || code > 0x10ffff)))
        return 0;
    return n;
}

bool utf8_is_valid(const char *text)
{
    const unsigned char *p = (const unsigned char *)text;

    while (*p != '\0') {
        size_t n = utf8_sequence(p);
        if (n == 0)
            return false;
        p += n;
    }
    return true;
}

char *utf8_clean(const char *text, size_t size_max)
{
    size_t size = strnlen(text, size_max + 1);
    char *out = xmalloc(min_u64(size, size_max) + 1);
    size_t length = 0;

    while (text[length] != '\0') { /* input and output keep step: one byte becomes one byte */
        size_t n = utf8_sequence((const unsigned char *)text + length);
        if (length + (n == 0 ? 1 : n) > size_max)
            break;
        if (n == 0)
            out[length++] = '?';
        for (size_t i = 0; i < n; i++, length++)
            out[length] = text[length];
    }
    out[length] = '\0';
    return out;
}

void strbuf_add_json(struct strbuf *sb, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;

    while (*p != '\0') {
        const unsigned char *plain = p;
        while (*p >= 0x20 && *p < 0x7f && *p != '"' && *p != '\\')
            p++;
        strbuf_add_bytes(sb, plain, (size_t)(p - plain));
        if (*p == '\0')
            return;
        size_t n = utf8_sequence(p);
        if (n == 0) {
            strbuf_add(sb, "\xef\xbf\xbd");
            p++;
            continue;
        }
        if (*p == '"' || *p == '\\') {
            strbuf_addf(sb, "\\%c", *p);
        } else if (*p == '\n') {
            strbuf_add(sb, "\\n");
        } else if (*p < 0x20 || *p == 0x7f) {
            strbuf_addf(sb, "\\u%04x", (unsigned int)*p);
        } else {
            strbuf_add_bytes(sb, p, n);
        }
        p += n;
    }
}

int strbuf_finish(struct strbuf *sb, char **out, struct error *err)
{
    if (sb->overflowed)
        return error_set(err, ERR_LIMIT, "text is longer than %zu bytes", sb->size_max);
    *out = STEAL(sb->data);
    strbuf_init(sb, sb->size_max);
    return 0;
}
