/* Random identifiers from the kernel's generator. */
#ifndef COMMON_ID_H
#define COMMON_ID_H

#include "common/base.h"

#define ID_SIZE     32 /* "<prefix>-<16 hex>" and the NUL; prefix of at most 14 bytes */
#define TOKEN_BYTES 16 /* lease tokens: 128 bits */
#define UUID_SIZE   37

/* "job-9f0c1d2e3a4b5c6d" */
void id_new(const char *prefix, char out[ID_SIZE]);
/* RFC 4122 version 4, lower case. */
void uuid_new(char out[UUID_SIZE]);
void random_bytes(void *out, size_t size);
/* W3C traceparent "00-<32 hex>-<16 hex>-01"; trace_id may be NULL (a new one is made). */
#define TRACEPARENT_SIZE 56
void traceparent_new(const char *trace_id, char out[TRACEPARENT_SIZE]);
/* The 32-hex trace id inside a valid traceparent copied to out (33 bytes); false if malformed. */
bool traceparent_trace_id(const char *traceparent, char out[33]);

#endif
