/* See address.h. */
#include "common/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "common/parse.h"

#define ADDRESS_BYTES_MAX 255
#define LISTEN_BACKLOG    512

/* Splits at the last colon; brackets around an IPv6 address go. */
static int split(const char *name, const char *text, char host[ADDRESS_BYTES_MAX + 1],
                 uint32_t *out_port, struct error *err)
{
    const char *colon = strrchr(text, ':');
    const char *start = text;
    size_t length;

    if (colon == NULL || strlen(text) > ADDRESS_BYTES_MAX)
        return error_set(err, ERR_INVALID, "%s: '%.64s' is not host:port", name, text);
    length = (size_t)(colon - text);
    if (text[0] == '[') {
        if (length < 3 || text[length - 1] != ']')
            return error_set(err, ERR_INVALID, "%s: '%.64s' is not [address]:port", name, text);
        start++;
        length -= 2;
    } else if (memchr(text, ':', length) != NULL) {
        return error_set(err, ERR_INVALID, "%s: '%.64s': an IPv6 address needs brackets", name,
                         text);
    }
    memcpy(host, start, length);
    host[length] = '\0';
    return parse_u32(name, colon + 1, 0, UINT16_MAX, out_port, err);
}

int address_parse(const char *name, const char *text, struct address *out, struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char host[ADDRESS_BYTES_MAX + 1] = "";
    char service[8];
    uint32_t port = 0;
    int rv;

    if (split(name, text, host, &port, err) < 0)
        return -1;
    (void)snprintf(service, sizeof service, "%u", (unsigned int)port);
    if (host[0] == '\0')
        hints.ai_family = AF_INET; /* every interface */
    if (text[0] == '[')
        hints.ai_flags |= AI_NUMERICHOST;
    rv = getaddrinfo(host[0] == '\0' ? NULL : host, service, &hints, &found);
    if (rv != 0)
        return error_set(err, ERR_INVALID, "%s: host '%.64s': %s", name, host, gai_strerror(rv));
    *out = (struct address){.size = found->ai_addrlen};
    memcpy(&out->storage, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return 0;
}

uint16_t address_port(const struct sockaddr *address)
{
    struct sockaddr_in6 in6;
    struct sockaddr_in in4;

    if (address->sa_family == AF_INET) {
        memcpy(&in4, address, sizeof in4);
        return ntohs(in4.sin_port);
    }
    if (address->sa_family == AF_INET6) {
        memcpy(&in6, address, sizeof in6);
        return ntohs(in6.sin6_port);
    }
    return 0;
}

struct range4 {
    uint32_t network;
    unsigned int bits;
};

/* IANA special-purpose registry: what is not globally reachable. */
static const struct range4 private4[] = {
    {0x00000000, 8},  /* this host */
    {0x0a000000, 8},  /* private */
    {0x64400000, 10}, /* shared, carrier NAT */
    {0x7f000000, 8},  /* loopback */
    {0xa9fe0000, 16}, /* link-local; cloud metadata services live here */
    {0xac100000, 12}, /* private */
    {0xc0000000, 24}, /* protocol assignments */
    {0xc0000200, 24}, /* documentation */
    {0xc0a80000, 16}, /* private */
    {0xc6120000, 15}, /* benchmarking */
    {0xc6336400, 24}, /* documentation */
    {0xcb007100, 24}, /* documentation */
    {0xe0000000, 3},  /* multicast, reserved, broadcast */
};

static bool private_v4(uint32_t address)
{
    for (size_t i = 0; i < ARRAY_LEN(private4); i++) {
        if ((address ^ private4[i].network) >> (32 - private4[i].bits) == 0)
            return true;
    }
    return false;
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool private_v6(const uint8_t a[16])
{
    static const uint8_t zero[12] = {0};
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    static const uint8_t nat64[12] = {0x00, 0x64, 0xff, 0x9b};

    if (memcmp(a, zero, 12) == 0) /* ::, ::1 and the old IPv4-compatible form */
        return be32(a + 12) <= 1 || private_v4(be32(a + 12));
    if (memcmp(a, mapped, 12) == 0 || memcmp(a, nat64, 12) == 0)
        return private_v4(be32(a + 12));
    if (a[0] == 0x20 && a[1] == 0x02) /* 6to4 */
        return private_v4(be32(a + 2));
    return (a[0] & 0xe0) != 0x20 || /* outside 2000::/3, global unicast */
           (a[0] == 0x20 && a[1] == 0x01 && (a[2] & 0xfe) == 0) || /* 2001::/23, Teredo too */
           (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0d && a[3] == 0xb8); /* documentation */
}

bool address_is_private(const struct sockaddr *address)
{
    struct sockaddr_in6 in6;
    struct sockaddr_in in4;

    if (address->sa_family == AF_INET) {
        memcpy(&in4, address, sizeof in4);
        return private_v4(ntohl(in4.sin_addr.s_addr));
    }
    if (address->sa_family == AF_INET6) {
        memcpy(&in6, address, sizeof in6);
        return private_v6(in6.sin6_addr.s6_addr);
    }
    return true; /* no internet address at all */
}

bool address_is_loopback(const struct sockaddr *address)
{
    struct sockaddr_in6 in6;
    struct sockaddr_in in4;

    if (address->sa_family == AF_INET) {
        memcpy(&in4, address, sizeof in4);
        return ntohl(in4.sin_addr.s_addr) >> 24 == 127;
    }
    if (address->sa_family == AF_INET6) {
        memcpy(&in6, address, sizeof in6);
        return IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr) ||
               (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr) && in6.sin6_addr.s6_addr[12] == 127);
    }
    return address->sa_family == AF_UNIX;
}

int address_listen(const struct address *address, int *out_fd, uint16_t *out_port,
                   struct error *err)
{
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof bound;
    const struct sockaddr *target = (const struct sockaddr *)&address->storage;
    int one = 1;
    autoclose int fd = socket(target->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        bind(fd, target, address->size) < 0 || listen(fd, LISTEN_BACKLOG) < 0 ||
        getsockname(fd, (struct sockaddr *)&bound, &size) < 0) {
        return error_set_errno(err, errno, "port %u cannot be opened",
                               (unsigned int)address_port(target));
    }
    *out_port = address_port((const struct sockaddr *)&bound);
    *out_fd = fd_steal(&fd);
    return 0;
}
