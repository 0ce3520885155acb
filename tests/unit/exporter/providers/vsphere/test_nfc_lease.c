/* What an export lease says: whose address a disk has, and what the host says it sent. */
#include "tests/unit/common/unit.h"

#include "services/exporter/providers/vsphere/nfc_lease.h"

#define HEAD                                                       \
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope"  \
    " xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\"" \
    "><soapenv:Body><AnswerResponse xmlns=\"urn:vim25\">"
#define TAIL   "</AnswerResponse></soapenv:Body></soapenv:Envelope>"
#define ORIGIN "https://vc.test:443"

static char scsi[] = "scsi", lsi[] = "lsilogic", label[] = "Hard disk 2";
static const struct vm_disk disk = {
    .controller_type = scsi, .controller_model = lsi, .label = label, .unit = 1};

static void parse(const char *inside, struct soap_reply *out)
{
    struct error err = ERROR_NONE;
    autofree char *text = xasprintf("%s%s%s", HEAD, inside, TAIL);

    assert_ok(soap_parse(text, strlen(text), out, &err), err);
}

static int read_lease(const char *info, struct nfc_lease *out, struct error *err)
{
    auto_soap_reply reply = {0};

    *out = (struct nfc_lease){0};
    parse(info, &reply);
    return nfc_lease_read(reply.response, ORIGIN, &disk, out, err);
}

static void reads(const char *info, const char *url, bool own_host)
{
    struct nfc_lease lease;
    struct error err = ERROR_NONE;

    assert_ok(read_lease(info, &lease, &err), err);
    assert_string_equal(lease.url, url);
    assert_int_equal(lease.own_host, own_host);
    nfc_lease_release(&lease);
}

static void refuses(const char *info, const char *words)
{
    struct nfc_lease lease;
    struct error err = ERROR_NONE;

    assert_fails(read_lease(info, &lease, &err), err, ERR_PROTOCOL, words);
    nfc_lease_release(&lease);
}

#define DEVICE(key, url) "<deviceUrl><key>" key "</key><url>" url "</url></deviceUrl>"
#define OURS             "/vm-1/VirtualLsiLogicController0:1"

static void a_disk_has_the_address_whose_key_ends_in_its_place(void **state)
{
    (void)state;
    reads(DEVICE("/vm-1/VirtualLsiLogicController0:0", "https://a/0")
              DEVICE(OURS, "https://*/nfc/1/disk-1.vmdk"),
          ORIGIN "/nfc/1/disk-1.vmdk", true);
    reads(DEVICE(OURS, "https://*:8443/nfc/x"), ORIGIN "/nfc/x", true);
    reads(DEVICE(OURS, "https://VC.test/nfc/x"), "https://VC.test/nfc/x", true);
    reads(DEVICE(OURS, "https://vc.test:8443/nfc/x"), "https://vc.test:8443/nfc/x", false);
    reads(DEVICE(OURS, "https://esx.test/nfc/x"), "https://esx.test/nfc/x", false);
    reads(DEVICE(OURS, "https://vc.test:443@evil.test/x"), "https://vc.test:443@evil.test/x",
          false);
    reads("<deviceUrl><key>a</key><url>https://esx.test/0</url><targetId>x" OURS
          "</targetId></deviceUrl>" DEVICE("b", "https://esx.test/1"),
          "https://esx.test/0", false);
    reads("<deviceUrl><key>" OURS
          "</key><url>https://e/n</url><disk>false</disk></deviceUrl>" DEVICE(OURS,
                                                                              "https://esx.test/1"),
          "https://esx.test/1", false);
}

static void anything_else_is_no_address(void **state)
{
    (void)state;
    refuses("", "no address for 'Hard disk 2'");
    refuses(DEVICE("/vm-1/VirtualLsiLogicController0:11", "https://a/0"), "no address");
    refuses(DEVICE("/vm-1/VirtualLsiLogicController1:1", "https://a/0"), "no address");
    refuses(DEVICE("/vm-1/ParaVirtualSCSIController0:1", "https://a/0"), "no address");
    refuses(DEVICE("VirtualLsiLogicController0:1", "https://a/0"), "no address");
    refuses(DEVICE(OURS, "https://a/0") DEVICE(OURS, "https://a/1"), "no address");
    refuses(DEVICE(OURS, "http://vc.test/nfc"), "no https");
    refuses(DEVICE(OURS, "file:///etc/passwd"), "no https");
    refuses(DEVICE(OURS, "https://a b/nfc"), "broken address");
}

static void times_and_sizes_have_bounds(void **state)
{
    static const struct {
        const char *text;
        int64_t timeout_ms;
        uint64_t capacity;
    } cases[] = {
        {"<totalDiskCapacityInKB>2</totalDiskCapacityInKB><leaseTimeout>60</leaseTimeout>", 60000,
         2048},
        {"", NFC_TIMEOUT_S * 1000, 0},
        {"<leaseTimeout>-1</leaseTimeout>", NFC_TIMEOUT_S * 1000, 0},
        {"<totalDiskCapacityInKB>18446744073709551615</totalDiskCapacityInKB>"
         "<leaseTimeout>99999999999</leaseTimeout>",
         NFC_TIMEOUT_S * 1000, 0},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *info = xasprintf("%s%s", DEVICE(OURS, "https://*/x"), cases[i].text);
        struct nfc_lease lease;
        struct error err = ERROR_NONE;
        assert_ok(read_lease(info, &lease, &err), err);
        assert_int_equal(lease.timeout_ms, cases[i].timeout_ms);
        assert_int_equal(lease.capacity_bytes, cases[i].capacity);
        nfc_lease_release(&lease);
    }
}

#define SHA1             "a9993e364706816aba3e25717850c26c9cd0d89d"
#define ENTRY(key, rest) "<returnval><key>" key "</key>" rest "</returnval>"

static int compare(const char *entries, struct error *err)
{
    auto_soap_reply reply = {0};
    struct nfc_sent sent = {.size_bytes = 1000, .capacity_bytes = 4096, .sha1 = SHA1};

    parse(entries, &reply);
    return nfc_manifest_compare(reply.response, OURS, &sent, err);
}

static void what_the_host_says_must_be_what_came(void **state)
{
    static const char *const fine[] = {
        "",
        ENTRY("another", "<sha1>00</sha1><size>1</size>"),
        ENTRY(OURS, ""),
        ENTRY(OURS, "<sha1>" SHA1 "</sha1><size>1000</size><capacity>4096</capacity>"),
        ENTRY(OURS, "<sha1>A9993E364706816ABA3E25717850C26C9CD0D89D</sha1>"),
        ENTRY(OURS, "<checksum>" SHA1 "</checksum><checksumType>sha1</checksumType>"),
        ENTRY(OURS, "<checksum>00</checksum><checksumType>sha256</checksumType>"),
    };
    static const char *const wrong[] = {
        ENTRY(OURS, "<sha1>00</sha1>"),
        ENTRY(OURS, "<checksum>00</checksum><checksumType>SHA1</checksumType>"),
        ENTRY(OURS, "<sha1>" SHA1 "</sha1><size>1001</size>"),
        ENTRY(OURS, "<capacity>4097</capacity>"),
        ENTRY("another", "") ENTRY(OURS, "<sha1>00</sha1>"),
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(fine); i++) {
        struct error err = ERROR_NONE;
        assert_ok(compare(fine[i], &err), err);
    }
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct error err = ERROR_NONE;
        assert_fails(compare(wrong[i], &err), err, ERR_CORRUPT, "the host sent");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_disk_has_the_address_whose_key_ends_in_its_place),
        cmocka_unit_test(anything_else_is_no_address),
        cmocka_unit_test(times_and_sizes_have_bounds),
        cmocka_unit_test(what_the_host_says_must_be_what_came),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
