/* CD-ROM drives as vSphere tells of them, and the call that removes them. */
#include "tests/unit/common/unit.h"

#include "services/exporter/providers/vsphere/cdrom.h"

#define HEAD                                                       \
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope"  \
    " xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\"" \
    " xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\""       \
    "><soapenv:Body><devices xmlns=\"urn:vim25\">"
#define TAIL "</devices></soapenv:Body></soapenv:Envelope>"

#define DRIVE(key, label, backing)                                         \
    "<VirtualDevice i:type=\"VirtualCdrom\"><key>" key "</key><deviceInfo" \
    "><label>" label "</label></deviceInfo>" backing "</VirtualDevice>"
#define BACKING(kind, inside) \
    "<backing i:type=\"VirtualCdrom" kind "BackingInfo\">" inside "</backing>"
#define DISK                                               \
    "<VirtualDevice i:type=\"VirtualDisk\"><key>2000</key" \
    "><deviceInfo><label>Hard disk 1</label></deviceInfo></VirtualDevice>"

static int read_devices(const char *inside, struct cdroms *out, struct error *err)
{
    autofree char *text = xasprintf("%s%s%s", HEAD, inside, TAIL);
    auto_soap_reply reply = {0};
    struct error parse = ERROR_NONE;

    assert_ok(soap_parse(text, strlen(text), &reply, &parse), parse);
    return cdroms_read(reply.response, out, err);
}

static void drives_are_told_with_what_puts_them_back(void **state)
{
    static const struct {
        const char *device;
        const char *text;
    } cases[] = {
        {DRIVE("3000", "CD/DVD drive 1", BACKING("Iso", "<fileName>[ds 1] a&amp;b.iso</fileName>")),
         "CD/DVD drive 1: ISO file '[ds 1] a&b.iso'"},
        {DRIVE("3000", "CD/DVD drive 1", BACKING("Iso", "<fileName/>")),
         "CD/DVD drive 1: no ISO file"},
        {DRIVE("3000", "L", BACKING("Atapi", "<deviceName>/dev/cdrom</deviceName>")),
         "L: host device '/dev/cdrom'"},
        {DRIVE("3000", "L", BACKING("Passthrough", "<deviceName>x</deviceName>")),
         "L: host device 'x'"},
        {DRIVE("3000", "L", BACKING("RemotePassthrough", "<deviceName/>")), "L: client device"},
        {DRIVE("3000", "L", BACKING("RemoteAtapi", "<deviceName>y</deviceName>")),
         "L: client device 'y'"},
        {DRIVE("3000", "L", BACKING("New", "")), "L: VirtualCdromNewBackingInfo"},
        {DRIVE("3000", "", ""), "drive 3000: no backing"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *inside = xasprintf("%s%s", DISK, cases[i].device);
        auto_cdroms list = {0};
        struct error err = ERROR_NONE;
        assert_ok(read_devices(inside, &list, &err), err);
        assert_int_equal(list.count, 1);
        assert_string_equal(list.items[0].key, "3000");
        assert_string_equal(list.items[0].text, cases[i].text);
    }
}

static void other_devices_are_no_drives(void **state)
{
    auto_cdroms list = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_ok(read_devices(DISK "<VirtualDevice i:type=\"VirtualFloppy\"><key>8000</key"
                                "></VirtualDevice>",
                           &list, &err),
              err);
    assert_int_equal(list.count, 0);
    assert_ok(cdroms_read(NULL, &list, &err), err);
    assert_int_equal(list.count, 0);
}

static void drives_without_key_and_too_many_are_refused(void **state)
{
    auto_cdroms list = {0};
    auto_cdroms full = {0};
    auto_strbuf many;
    struct error err = ERROR_NONE;

    (void)state;
    assert_fails(read_devices("<VirtualDevice i:type=\"VirtualCdrom\"/>", &list, &err), err,
                 ERR_PROTOCOL, "no key");
    strbuf_init(&many, 16 * KIB);
    for (int i = 0; i <= CDROMS_MAX; i++)
        strbuf_addf(&many, DRIVE("%d", "L", ""), 3000 + i);
    assert_fails(read_devices(many.data, &full, &err), err, ERR_LIMIT, "remove them in vCenter");
}

static void a_long_name_is_cut_between_characters(void **state)
{
    auto_cdroms list = {0};
    auto_strbuf device;
    struct error err = ERROR_NONE;

    (void)state;
    strbuf_init(&device, 16 * KIB);
    strbuf_add(&device, "<VirtualDevice i:type=\"VirtualCdrom\"><key>3000</key><backing"
                        " i:type=\"VirtualCdromIsoBackingInfo\"><fileName>");
    for (int i = 0; i < 2000; i++)
        strbuf_add(&device, "\xc3\xa4");
    strbuf_add(&device, "</fileName></backing></VirtualDevice>");
    assert_ok(read_devices(device.data, &list, &err), err);
    assert_true(strlen(list.items[0].text) <= CDROM_TEXT_BYTES_MAX);
    assert_true(utf8_is_valid(list.items[0].text));
}

static void one_call_removes_all(void **state)
{
    auto_cdroms list = {0};
    auto_strbuf request;
    struct error err = ERROR_NONE;

    (void)state;
    assert_ok(read_devices(DRIVE("3000", "L", "") DISK DRIVE("16000", "M", ""), &list, &err), err);
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    cdroms_request(&request, "vm-1", &list);
    assert_non_null(strstr(
        request.data,
        "<ReconfigVM_Task xmlns=\"urn:vim25\"><_this type=\"VirtualMachine\">vm-1</_this><spec>"
        "<deviceChange><operation>remove</operation><device xsi:type=\"VirtualCdrom\">"
        "<key>3000</key></device></deviceChange>"
        "<deviceChange><operation>remove</operation><device xsi:type=\"VirtualCdrom\">"
        "<key>16000</key></device></deviceChange>"
        "</spec></ReconfigVM_Task>"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(drives_are_told_with_what_puts_them_back),
        cmocka_unit_test(other_devices_are_no_drives),
        cmocka_unit_test(drives_without_key_and_too_many_are_refused),
        cmocka_unit_test(a_long_name_is_cut_between_characters),
        cmocka_unit_test(one_call_removes_all),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
