/* Bounded text buffer: created with its maximum, appends never fail loudly, one check at the
 * end. One owner, no locking. */
#ifndef COMMON_STRBUF_H
#define COMMON_STRBUF_H

#include "common/error.h"

struct strbuf {
    char *data;      /* NUL-terminated, never NULL after init */
    size_t length;   /* without the NUL */
    size_t capacity; /* allocated */
    size_t size_max; /* longest allowed length */
    bool overflowed; /* something did not fit; the content is cut there */
};

void strbuf_init(struct strbuf *sb, size_t size_max);
void strbuf_release(struct strbuf *sb);
void strbuf_reset(struct strbuf *sb);
void strbuf_add(struct strbuf *sb, const char *text);
void strbuf_add_bytes(struct strbuf *sb, const void *data, size_t size);
void strbuf_addc(struct strbuf *sb, char c);
void strbuf_addf(struct strbuf *sb, const char *format, ...) PRINTF_LIKE(2, 3);
/* &, <, >, ", ' become entities; control bytes other than tab, CR, LF are dropped (not XML). */
void strbuf_add_xml(struct strbuf *sb, const char *text);
/* Percent-encoding of everything but A-Z a-z 0-9 - _ . ~ (RFC 3986 unreserved). */
void strbuf_add_url(struct strbuf *sb, const char *text);
/* The text without surrounding quotes, escaped for JSON. Invalid UTF-8 bytes become U+FFFD. */
void strbuf_add_json(struct strbuf *sb, const char *text);
/* Well-formed UTF-8: no overlong forms, no surrogates (PostgreSQL and JSON refuse them). */
bool utf8_is_valid(const char *text);
/* A valid copy: what is not UTF-8 becomes '?', cut at size_max bytes between characters. */
char *utf8_clean(const char *text, size_t size_max);
/* Success: *out is the text (caller frees), sb is empty. ERR_LIMIT if anything did not fit. */
MUST_CHECK int strbuf_finish(struct strbuf *sb, char **out, struct error *err);

#define auto_strbuf CLEANUP(strbuf_release) struct strbuf

#endif
