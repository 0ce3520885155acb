/* Addresses: parsing, and what counts as private. */
#include "tests/unit/common/unit.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "common/address.h"

static const struct sockaddr *ip(const char *text)
{
    static struct sockaddr_storage storage;
    struct sockaddr_in in4 = {.sin_family = AF_INET, .sin_port = htons(80)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(81)};

    if (inet_pton(AF_INET, text, &in4.sin_addr) == 1)
        memcpy(&storage, &in4, sizeof in4);
    else if (inet_pton(AF_INET6, text, &in6.sin6_addr) == 1)
        memcpy(&storage, &in6, sizeof in6);
    else
        fail_msg("'%s' is no address", text);
    return (const struct sockaddr *)&storage;
}

static void private_ranges_are_known_in_every_disguise(void **state)
{
    static const char *const private_ones[] = {"127.0.0.1",
                                               "127.255.0.1",
                                               "10.0.0.1",
                                               "172.16.0.1",
                                               "172.31.255.255",
                                               "192.168.1.1",
                                               "169.254.169.254",
                                               "0.0.0.0",
                                               "100.64.0.1",
                                               "224.0.0.1",
                                               "240.0.0.1",
                                               "255.255.255.255",
                                               "192.0.2.1",
                                               "198.18.0.1",
                                               "::1",
                                               "::",
                                               "fe80::1",
                                               "fc00::1",
                                               "fd12::1",
                                               "ff02::1",
                                               "::ffff:127.0.0.1",
                                               "::ffff:10.1.2.3",
                                               "64:ff9b::7f00:1",
                                               "2002:7f00:1::1",
                                               "2002:c0a8:101::1",
                                               "2001:db8::1",
                                               "2001::1",
                                               "fec0::1",
                                               "::127.0.0.1"};
    static const char *const public_ones[] = {
        "8.8.8.8",        "172.15.0.1",       "172.32.0.1",      "192.167.0.1",     "100.63.0.1",
        "100.128.0.1",    "169.253.0.1",      "223.255.255.255", "2606:4700::1111", "2a00:1450::1",
        "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(private_ones); i++) {
        if (!address_is_private(ip(private_ones[i])))
            fail_msg("%s counts as public", private_ones[i]);
    }
    for (size_t i = 0; i < ARRAY_LEN(public_ones); i++) {
        if (address_is_private(ip(public_ones[i])))
            fail_msg("%s counts as private", public_ones[i]);
    }
}

static void loopback_is_narrower_than_private(void **state)
{
    struct sockaddr local = {.sa_family = AF_UNIX};

    (void)state;
    assert_true(address_is_loopback(ip("127.1.2.3")));
    assert_true(address_is_loopback(ip("::1")));
    assert_true(address_is_loopback(ip("::ffff:127.0.0.1")));
    assert_false(address_is_loopback(ip("10.0.0.1")));
    assert_false(address_is_loopback(ip("::ffff:10.0.0.1")));
    assert_false(address_is_loopback(ip("0.0.0.0")));
    assert_true(address_is_loopback(&local));
    assert_true(address_is_private(&local));
}

static void host_and_port_are_parsed(void **state)
{
    struct error err = ERROR_NONE;
    struct address address;

    (void)state;
    assert_ok(address_parse("a", "127.0.0.1:8080", &address, &err), err);
    assert_int_equal(address_port((const struct sockaddr *)&address.storage), 8080);
    assert_true(address_is_loopback((const struct sockaddr *)&address.storage));
    assert_ok(address_parse("a", "[::1]:81", &address, &err), err);
    assert_int_equal(address_port((const struct sockaddr *)&address.storage), 81);
    assert_ok(address_parse("a", ":0", &address, &err), err);
    assert_false(address_is_loopback((const struct sockaddr *)&address.storage));
}

static void wrong_addresses_name_their_key(void **state)
{
    static const char *const bad[] = {"127.0.0.1", "",           "127.0.0.1:", "127.0.0.1:70000",
                                      "::1:80",    "[::1:80",    "[]:80",      "127.0.0.1:-1",
                                      "a b:80",    "127.0.0.1:x"};
    struct error err = ERROR_NONE;
    struct address address;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(address_parse("daemon.address", bad[i], &address, &err), err, ERR_INVALID,
                     "daemon.address: ");
}

static void a_listening_socket_tells_its_port_and_is_exclusive(void **state)
{
    struct error err = ERROR_NONE;
    struct address address;
    autofree char *text = NULL;
    autoclose int fd = -1;
    uint16_t port = 0;
    int second = -1;

    (void)state;
    assert_ok(address_parse("a", "127.0.0.1:0", &address, &err), err);
    assert_ok(address_listen(&address, &fd, &port, &err), err);
    assert_true(port > 0);
    text = xasprintf("127.0.0.1:%u", (unsigned int)port);
    assert_ok(address_parse("a", text, &address, &err), err);
    assert_fails(address_listen(&address, &second, &port, &err), err, ERR_CONFLICT,
                 "cannot be opened");
    assert_int_equal(second, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(private_ranges_are_known_in_every_disguise),
        cmocka_unit_test(loopback_is_narrower_than_private),
        cmocka_unit_test(host_and_port_are_parsed),
        cmocka_unit_test(wrong_addresses_name_their_key),
        cmocka_unit_test(a_listening_socket_tells_its_port_and_is_exclusive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
