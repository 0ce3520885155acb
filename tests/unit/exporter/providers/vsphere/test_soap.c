/* SOAP texts: requests, replies, faults, and VMs read from them. */
#include "tests/unit/common/unit.h"

#include "services/exporter/providers/vsphere/inventory.h"
#include "services/exporter/providers/vsphere/property.h"

#define HEAD                                                       \
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope"  \
    " xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\"" \
    " xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>"
#define TAIL "</soapenv:Body></soapenv:Envelope>"

static int parse(const char *text, struct soap_reply *out, struct error *err)
{
    return soap_parse(text, strlen(text), out, err);
}

/* ---- requests ---- */

static void a_request_is_an_envelope_with_escaped_texts(void **state)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb = {0};
    autofree char *text = NULL;
    auto_soap_reply reply = {0};

    (void)state;
    strbuf_init(&sb, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&sb, "Login", "SessionManager", "SessionManager");
    soap_add(&sb, "userName", "a<b>&\"c'");
    soap_end(&sb, "Login");
    assert_ok(strbuf_finish(&sb, &text, &err), err);
    assert_non_null(strstr(text, "<userName>a&lt;b&gt;&amp;"));
    assert_ok(parse(text, &reply, &err), err);
    assert_string_equal(soap_text(reply.response, "userName"), "a<b>&\"c'");
}

/* ---- replies ---- */

static void a_reply_is_its_first_element(void **state)
{
    struct error err = ERROR_NONE;
    auto_soap_reply reply = {0};

    (void)state;
    assert_ok(parse(HEAD "<XResponse xmlns=\"urn:vim25\"><returnval>A &amp; B &#x20ac;</returnval>"
                         "<flag>true</flag><one>1</one><n>42</n><bad>-1</bad></XResponse>" TAIL,
                    &reply, &err),
              err);
    assert_true(soap_is(reply.response, "XResponse"));
    assert_string_equal(soap_text(reply.response, "returnval"), "A & B \xe2\x82\xac");
    assert_true(soap_bool(reply.response, "flag"));
    assert_true(soap_bool(reply.response, "one"));
    assert_false(soap_bool(reply.response, "absent"));
    assert_int_equal(soap_u64(reply.response, "n", 7), 42);
    assert_int_equal(soap_u64(reply.response, "bad", 7), 7);
    assert_int_equal(soap_u64(NULL, "n", 7), 7);
    assert_string_equal(soap_text(NULL, "x"), "");
}

static void what_is_not_soap_is_refused(void **state)
{
    static const struct {
        const char *text;
        const char *words;
    } cases[] = {
        {"", "not well-formed"},
        {"<html>", "not well-formed"},
        {"<x/>", "not a SOAP envelope"},
        {"<Envelope><Body><a/></Body></Envelope>", "not a SOAP envelope"},
        {HEAD TAIL, "body is empty"},
        {"<!DOCTYPE x><x/>", "document type"},
        {"<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><x>&b;</x>", "document type"},
        {HEAD "<a>&unknown;</a>" TAIL, "not well-formed"},
    };
    struct error err = ERROR_NONE;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_soap_reply reply = {0};
        assert_fails(parse(cases[i].text, &reply, &err), err, ERR_PROTOCOL, cases[i].words);
    }
}

static void a_reply_that_is_too_deep_or_too_long_is_refused(void **state)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb = {0};
    auto_soap_reply reply = {0};

    (void)state;
    strbuf_init(&sb, MIB);
    strbuf_add(&sb, HEAD);
    for (int i = 0; i < SOAP_DEPTH_MAX; i++)
        strbuf_add(&sb, "<a>");
    for (int i = 0; i < SOAP_DEPTH_MAX; i++)
        strbuf_add(&sb, "</a>");
    strbuf_add(&sb, TAIL);
    assert_fails(parse(sb.data, &reply, &err), err, ERR_LIMIT, "nested deeper");
    assert_fails(soap_parse(sb.data, SOAP_REPLY_BYTES_MAX + 1, &reply, &err), err, ERR_LIMIT,
                 "is over");
}

static void types_are_found_by_namespace_whatever_the_prefix(void **state)
{
    struct error err = ERROR_NONE;
    auto_soap_reply reply = {0};
    char type[32];

    (void)state;
    assert_ok(parse("<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>"
                    "<R xmlns:o=\"http://www.w3.org/2001/XMLSchema-instance\""
                    " o:type=\"vim25:Thing\" type=\"VirtualMachine\"><n type=\"x\"/></R>"
                    "</s:Body></s:Envelope>",
                    &reply, &err),
              err);
    soap_xsi_type(reply.response, type, sizeof type);
    assert_string_equal(type, "Thing");
    soap_ref_type(reply.response, type, sizeof type);
    assert_string_equal(type, "VirtualMachine");
    soap_xsi_type(soap_child(reply.response, "n"), type, sizeof type);
    assert_string_equal(type, "");
    soap_xsi_type(reply.response, type, 3); /* cut, not overrun */
    assert_string_equal(type, "Th");
}

static void ids_are_checked_before_they_are_sent_on(void **state)
{
    char text[SOAP_ID_BYTES_MAX + 2];

    (void)state;
    assert_true(soap_id_is_sane("vm-57"));
    assert_true(soap_id_is_sane("session[5a]view-1"));
    assert_true(soap_id_is_sane("/tmp/x@folder-5"));
    assert_false(soap_id_is_sane(""));
    assert_false(soap_id_is_sane("a<b"));
    assert_false(soap_id_is_sane("a\nb"));
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    assert_false(soap_id_is_sane(text));
}

/* ---- faults ---- */

static void fault(const char *detail, struct soap_fault *out)
{
    autofree char *text =
        xasprintf(HEAD "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>it said"
                       " no</faultstring><detail>%s</detail></soapenv:Fault>" TAIL,
                  detail);
    struct error err = ERROR_NONE;
    auto_soap_reply reply = {0};

    assert_ok(parse(text, &reply, &err), err);
    assert_null(reply.response);
    *out = reply.fault;
}

static void a_fault_tells_type_words_and_fact(void **state)
{
    struct soap_fault f;
    struct error err = ERROR_NONE;

    (void)state;
    fault("<NoPermissionFault xsi:type=\"NoPermission\"><privilegeId>System.View</privilegeId>"
          "</NoPermissionFault>",
          &f);
    assert_string_equal(f.type, "NoPermission");
    assert_string_equal(f.message, "it said no");
    assert_string_equal(f.detail, "System.View");
    assert_int_equal(soap_fault_error(&f, "Listing", &err), -1);
    assert_int_equal(err.code, ERR_DENIED);
    assert_non_null(strstr(err.message, "Listing: vSphere answers NoPermission (System.View)"));
    fault("<InvalidLoginFault/>", &f); /* without xsi:type */
    assert_string_equal(f.type, "InvalidLogin");
    fault("", &f);
    assert_string_equal(f.type, "UnknownFault");
}

static void faults_say_what_can_be_done(void **state)
{
    static const struct {
        const char *type;
        enum error_code code;
        bool retryable;
    } cases[] = {
        {"NotAuthenticated", ERR_DENIED, false},
        {"ManagedObjectNotFound", ERR_NOT_FOUND, false},
        {"TaskInProgress", ERR_UNAVAILABLE, true},
        {"FileLocked", ERR_UNAVAILABLE, true},
        {"HostNotConnected", ERR_UNAVAILABLE, true},
        {"Timedout", ERR_TIMEOUT, true},
        {"InvalidPowerState", ERR_CONFLICT, false},
        {"TooManySnapshotLevels", ERR_LIMIT, false},
        {"RestrictedVersion", ERR_NOT_AVAILABLE, false},
        {"MethodNotFound", ERR_NOT_AVAILABLE, false},
        {"InvalidArgument", ERR_PROTOCOL, false},
        {"SomethingOfTomorrow", ERR_CONFLICT, false}, /* refused, neither our bug nor passing */
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct soap_fault f = {0};
        struct error err = ERROR_NONE;
        (void)snprintf(f.type, sizeof f.type, "%s", cases[i].type);
        assert_int_equal(soap_fault_error(&f, "x", &err), -1);
        assert_int_equal(err.code, cases[i].code);
        assert_int_equal(error_is_retryable(&err), cases[i].retryable);
    }
}

/* ---- a VM ---- */

#define PROP(name, type, value) \
    "<propSet><name>" name "</name><val xsi:type=\"" type "\">" value "</val></propSet>"
#define DISK(key, controller, unit, backing, more)                                           \
    "<VirtualDevice xsi:type=\"VirtualDisk\"><key>" key "</key><backing xsi:type=\"" backing \
    "\"><fileName>[ds] d/" key ".vmdk</fileName><diskMode>persistent</diskMode>" more        \
    "</backing><controllerKey>" controller "</controllerKey><unitNumber>" unit               \
    "</unitNumber><capacityInKB>1024</capacityInKB></VirtualDevice>"
#define FLAT "VirtualDiskFlatVer2BackingInfo"

static const char whole[] = HEAD
    "<R xmlns=\"urn:vim25\"><returnval>"
    "<objects><obj type=\"Datacenter\">dc-1</obj>" PROP("name", "xsd:string", "DC%2f0") PROP(
        "parent", "ManagedObjectReference",
        "group-d1") "</objects>"
                    "<objects><obj type=\"Folder\">group-v3</obj>" PROP("name", "xsd:string", "vm")
                        PROP(
                            "parent", "ManagedObjectReference",
                            "dc-1") "</objects>"
                                    "<objects><obj type=\"Network\">net-1</obj>" PROP(
                                        "name", "xsd:string",
                                        "LAN") "</objects>"
                                               "<objects><obj "
                                               "type=\"VirtualMachine\">vm-7</obj>" PROP(
                                                   "name", "xsd:string",
                                                   "web%5c1%2501") PROP("parent",
                                                                        "ManagedObjectReference",
                                                                        "group-v3")
                                                   PROP("config.firmware", "xsd:string",
                                                        "efi") PROP("config.bootOptions",
                                                                    "VirtualMachineBootOptions",
                                                                    "<efiSecureBootEnabled>true</"
                                                                    "efiSecureBootEnabled><"
                                                                    "bootOrder><deviceKey>2001"
                                                                    "</deviceKey></bootOrder>")
                                                       PROP("config.hardware.numCPU", "xsd:int",
                                                            "4") PROP("runtime.powerState", "x",
                                                                      "poweredOff")
                                                           PROP(
                                                               "runtime.connectionState", "x",
                                                               "connected") PROP("snapshot", "x",
                                                                                 "<rootSnapshotList"
                                                                                 "><"
                                                                                 "childSnapshotList"
                                                                                 "/><"
                                                                                 "childSnapshotList"
                                                                                 "/>"
                                                                                 "</"
                                                                                 "rootSnapshotList"
                                                                                 ">")
                                                               PROP("guest.net", "x",
                                                                    "<GuestNicInfo><ipAddress>10.0."
                                                                    "0.1</"
                                                                    "ipAddress><ipAddress>fe80::1"
                                                                    "</ipAddress></"
                                                                    "GuestNicInfo><GuestNicInfo><"
                                                                    "ipAddress>10.0.0.1"
                                                                    "</ipAddress></GuestNicInfo>")
                                                                   PROP("layoutEx", "x",
                                                                        "<file><key>3</"
                                                                        "key><size>700</size></"
                                                                        "file><file><key>4</key>"
                                                                        "<size>33</size></"
                                                                        "file><disk><key>2000</"
                                                                        "key><chain>"
                                                                        "<fileKey>3</"
                                                                        "fileKey><fileKey>4</"
                                                                        "fileKey></chain></disk>")
                                                                       PROP(
                                                                           "config.hardware.device",
                                                                           "ArrayOfVirtualDevice",
                                                                           "<VirtualDevice "
                                                                           "xsi:type="
                                                                           "\"VirtualTPM\"><key>1</"
                                                                           "key></VirtualDevice>"
                                                                           "<VirtualDevice "
                                                                           "xsi:type="
                                                                           "\"VirtualLsiLogicSASCon"
                                                                           "troller\"><key>1000</"
                                                                           "key><busNumber>2</"
                                                                           "busNumber>"
                                                                           "</VirtualDevice>" DISK(
                                                                               "2000", "1000", "3",
                                                                               FLAT,
                                                                               "<thinProvisioned>"
                                                                               "true</"
                                                                               "thinProvisioned><"
                                                                               "changeId>52 "
                                                                               "1/9</changeId>")
                                                                               DISK("2001", "1000",
                                                                                    "5", FLAT,
                                                                                    "<parent><"
                                                                                    "fileName>[ds] "
                                                                                    "d/p.vmdk</"
                                                                                    "fileName></"
                                                                                    "parent>")
                                                                                   DISK(
                                                                                       "2002", "9",
                                                                                       "0",
                                                                                       "VirtualDisk"
                                                                                       "SparseVer2B"
                                                                                       "ackingInfo",
                                                                                       "") "<Virtua"
                                                                                           "lDevice"
                                                                                           " xsi:"
                                                                                           "type="
                                                                                           "\"Virtu"
                                                                                           "alE1000"
                                                                                           "\"><"
                                                                                           "key>"
                                                                                           "4000</"
                                                                                           "key><"
                                                                                           "macAddr"
                                                                                           "ess>00-"
                                                                                           "50-56-"
                                                                                           "AA-BB-"
                                                                                           "CC"
                                                                                           "</"
                                                                                           "macAddr"
                                                                                           "ess><"
                                                                                           "backing"
                                                                                           "><"
                                                                                           "network"
                                                                                           " type="
                                                                                           "\"Netwo"
                                                                                           "rk\">"
                                                                                           "net-1</"
                                                                                           "network"
                                                                                           "></"
                                                                                           "backing"
                                                                                           "></"
                                                                                           "Virtual"
                                                                                           "Device"
                                                                                           ">") "</"
                                                                                                "ob"
                                                                                                "je"
                                                                                                "ct"
                                                                                                "s>"
                                                                                                "</"
                                                                                                "re"
                                                                                                "tu"
                                                                                                "rn"
                                                                                                "va"
                                                                                                "l>"
                                                                                                "</"
                                                                                                "R"
                                                                                                ">" TAIL;

static void a_vm_is_read_whole(void **state)
{
    struct error err = ERROR_NONE;
    auto_soap_reply reply = {0};
    auto_vsphere_vm vm;
    struct inventory_names *names = inventory_names_new();
    const xmlNode *object;

    (void)state;
    vsphere_vm_init(&vm);
    assert_ok(parse(whole, &reply, &err), err);
    object = soap_child(soap_child(reply.response, "returnval"), "objects");
    for (int i = 0; i < 3; i++, object = soap_next(object))
        assert_ok(inventory_names_add(names, object, &err), err);
    inventory_names_sort(names);
    assert_ok(inventory_read_vm(object, names, &vm, &err), err);
    inventory_names_free(names);

    assert_string_equal(vm.vm.id, "vm-7");
    assert_string_equal(vm.vm.name, "web\\1%01"); /* unescaped once */
    assert_string_equal(vm.vm.path, "/DC/0/vm/web\\1%01");
    assert_string_equal(vm.vm.datacenter, "DC/0");
    assert_string_equal(vm.datacenter_path, "DC/0");
    assert_int_equal(vm.vm.firmware, VM_FIRMWARE_UEFI);
    assert_true(vm.vm.secure_boot);
    assert_true(vm.vm.tpm);
    assert_true(vm.connected);
    assert_int_equal(vm.vm.num_cpu, 4);
    assert_int_equal(vm.vm.snapshot_count, 3);
    assert_int_equal(vm.vm.ip_address_count, 2); /* each once */
    assert_int_equal(vm.vm.used_bytes, 733);
    assert_int_equal(vm.vm.storage_bytes, 3 * MIB);
}

static void disks_keep_their_own_backings_when_they_are_sorted(void **state)
{
    struct error err = ERROR_NONE;
    auto_soap_reply reply = {0};
    auto_vsphere_vm vm;
    const xmlNode *object;

    (void)state;
    vsphere_vm_init(&vm);
    assert_ok(parse(whole, &reply, &err), err);
    object = soap_child(soap_child(reply.response, "returnval"), "objects");
    while (soap_next(object) != NULL)
        object = soap_next(object);
    assert_ok(inventory_read_vm(object, NULL, &vm, &err), err);
    assert_int_equal(vm.vm.disk_count, 3);
    assert_string_equal(vm.vm.disks[0].id, "2001"); /* in the boot order */
    assert_true(vm.backings[0].has_parent);
    assert_string_equal(vm.vm.disks[1].id, "2000");
    assert_false(vm.backings[1].has_parent);
    assert_string_equal(vm.vm.disks[1].controller_model, "lsisas1068");
    assert_int_equal(vm.vm.disks[1].controller_bus, 2);
    assert_int_equal(vm.vm.disks[1].unit, 3);
    assert_true(vm.vm.disks[1].thin);
    assert_string_equal(vm.vm.disks[1].change_id, "52 1/9");
    assert_int_equal(vm.vm.disks[1].capacity_bytes, MIB);
    assert_string_equal(vm.vm.disks[2].id, "2002"); /* on no known controller */
    assert_string_equal(vm.vm.disks[2].format, "sparse");
    assert_non_null(strstr(vm.vm.disks[2].skip_reason, "no flat file"));
    assert_int_equal(vm.vm.nic_count, 1);
    assert_string_equal(vm.vm.nics[0].mac, "00:50:56:aa:bb:cc");
    assert_string_equal(vm.vm.nics[0].model, "e1000");
    assert_string_equal(vm.vm.nics[0].network, "net-1"); /* its name is not known */
}

/* Room for one disk more than there may be. */
static void a_vm_with_too_many_disks_is_refused(void **state)
{
    struct error err = ERROR_NONE;
    auto_strbuf sb = {0};
    auto_soap_reply reply = {0};
    auto_vsphere_vm vm;

    (void)state;
    vsphere_vm_init(&vm);
    strbuf_init(&sb, MIB);
    strbuf_add(&sb, HEAD "<R><objects><obj type=\"VirtualMachine\">vm-1</obj><propSet><name>config."
                         "hardware.device</name><val>");
    for (int i = 0; i <= VM_DISKS_MAX; i++)
        strbuf_add(&sb, DISK("2000", "1000", "0", FLAT, ""));
    strbuf_add(&sb, "</val></propSet></objects></R>" TAIL);
    assert_ok(parse(sb.data, &reply, &err), err);
    assert_fails(inventory_read_vm(soap_child(reply.response, "objects"), NULL, &vm, &err), err,
                 ERR_LIMIT, "more than 64 disks");
}

static void hidden_properties_are_known_as_such(void **state)
{
    struct error err = ERROR_NONE;
    auto_soap_reply reply = {0};
    const xmlNode *object;

    (void)state;
    assert_ok(
        parse(HEAD "<R><objects><obj type=\"VirtualMachine\">vm-1</obj>" PROP(
                  "name", "s",
                  "x") "<missingSet><path>config</path><fault/></missingSet></objects></R>" TAIL,
              &reply, &err),
        err);
    object = soap_child(reply.response, "objects");
    assert_string_equal(property_text(object, "name"), "x");
    assert_int_equal(property_u64(object, "name", 3), 3);
    assert_null(property_value(object, "config"));
}

/* a is b's folder and b is a's: the climb ends. */
static void folders_in_a_circle_end(void **state)
{
    struct error err = ERROR_NONE;
    auto_soap_reply reply = {0};
    auto_vsphere_vm vm;
    struct inventory_names *names = inventory_names_new();
    const xmlNode *object;

    (void)state;
    vsphere_vm_init(&vm);
    assert_ok(
        parse(HEAD "<R><objects><obj type=\"Folder\">a</obj>" PROP("name", "s", "A") PROP(
                  "parent", "m",
                  "b") "</objects><objects><obj type=\"Folder\">b</obj>" PROP("name", "s", "B")
                  PROP("parent", "m", "a") "</objects>"
                                           "<objects><obj type=\"VirtualMachine\">vm-1</obj>" PROP(
                                               "name", "s", "x")
                                               PROP("parent", "m", "a") "</objects></R>" TAIL,
              &reply, &err),
        err);
    object = soap_child(reply.response, "objects");
    for (int i = 0; i < 2; i++, object = soap_next(object))
        assert_ok(inventory_names_add(names, object, &err), err);
    inventory_names_sort(names);
    assert_ok(inventory_read_vm(object, names, &vm, &err), err);
    inventory_names_free(names);
    assert_true(strlen(vm.vm.path) < 3 * INVENTORY_PATH_DEPTH);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_an_envelope_with_escaped_texts),
        cmocka_unit_test(a_reply_is_its_first_element),
        cmocka_unit_test(what_is_not_soap_is_refused),
        cmocka_unit_test(a_reply_that_is_too_deep_or_too_long_is_refused),
        cmocka_unit_test(types_are_found_by_namespace_whatever_the_prefix),
        cmocka_unit_test(ids_are_checked_before_they_are_sent_on),
        cmocka_unit_test(a_fault_tells_type_words_and_fact),
        cmocka_unit_test(faults_say_what_can_be_done),
        cmocka_unit_test(a_vm_is_read_whole),
        cmocka_unit_test(disks_keep_their_own_backings_when_they_are_sorted),
        cmocka_unit_test(a_vm_with_too_many_disks_is_refused),
        cmocka_unit_test(hidden_properties_are_known_as_such),
        cmocka_unit_test(folders_in_a_circle_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
