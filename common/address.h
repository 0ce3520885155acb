/* Network addresses from configuration, and which of them are not the public internet. */
#ifndef COMMON_ADDRESS_H
#define COMMON_ADDRESS_H

#include <sys/socket.h>

#include "common/error.h"

struct address {
    struct sockaddr_storage storage;
    socklen_t size;
};

/* "127.0.0.1:8080", "[::1]:8080", "localhost:0", ":9464" (every interface). Resolves names, so it
 * may block. ERR_INVALID names `name`. */
MUST_CHECK int address_parse(const char *name, const char *text, struct address *out,
                             struct error *err);
uint16_t address_port(const struct sockaddr *address);
bool address_is_loopback(const struct sockaddr *address);
/* Anything that an outsider must not reach through us: loopback, private, link-local, shared,
 * multicast, unspecified, reserved; IPv4 inside IPv6 (mapped, 6to4, NAT64) is looked at as well. */
bool address_is_private(const struct sockaddr *address);
/* A bound, listening, non-blocking socket. */
MUST_CHECK int address_listen(const struct address *address, int *out_fd, uint16_t *out_port,
                              struct error *err);

#endif
