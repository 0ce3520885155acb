/* See id.h. */
#include "common/id.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

void random_bytes(void *out, size_t size)
{
    unsigned char *p = out;

    while (size > 0) {
        ssize_t n = getrandom(p, size, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            abort(); /* without randomness no token is safe */
        p += n;
        size -= (size_t)n;
    }
}

void id_new(const char *prefix, char out[ID_SIZE])
{
    unsigned char raw[8];
    char hex[2 * sizeof raw + 1];

    random_bytes(raw, sizeof raw);
    hex_encode(raw, sizeof raw, hex);
    (void)snprintf(out, ID_SIZE, "%.14s-%s", prefix, hex);
}

void uuid_new(char out[UUID_SIZE])
{
    unsigned char raw[16];
    char hex[2 * sizeof raw + 1];

    random_bytes(raw, sizeof raw);
    raw[6] = (unsigned char)((raw[6] & 0x0f) | 0x40);
    raw[8] = (unsigned char)((raw[8] & 0x3f) | 0x80);
    hex_encode(raw, sizeof raw, hex);
    (void)snprintf(out, UUID_SIZE, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16,
                   hex + 20);
}

void traceparent_new(const char *trace_id, char out[TRACEPARENT_SIZE])
{
    unsigned char raw[24];
    char hex[2 * sizeof raw + 1];

    random_bytes(raw, sizeof raw);
    hex_encode(raw, sizeof raw, hex);
    (void)snprintf(out, TRACEPARENT_SIZE, "00-%.32s-%.16s-01", trace_id == NULL ? hex : trace_id,
                   hex + 32);
}

static bool lower_hex(const char *text, size_t n)
{
    return strspn(text, "0123456789abcdef") >= n;
}

bool traceparent_trace_id(const char *traceparent, char out[33])
{
    if (strlen(traceparent) != 55 || traceparent[2] != '-' || traceparent[35] != '-' ||
        traceparent[52] != '-' || !lower_hex(traceparent, 2) || !lower_hex(traceparent + 3, 32) ||
        !lower_hex(traceparent + 36, 16) || !lower_hex(traceparent + 53, 2) ||
        strspn(traceparent + 3, "0") >= 32)
        return false;
    memcpy(out, traceparent + 3, 32);
    out[32] = '\0';
    return true;
}
