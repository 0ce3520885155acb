/* The domain of a manifest: facts that a guest needs to start, and texts of strangers in it. */
#include "tests/unit/common/unit.h"

#include <jansson.h>
#include <libxml/parser.h>
#include <libxml/xpath.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/xml.h"
#include "services/exporter/formats/domain_xml.h"

static json_t *manifest_of(const char *vm, const char *disks, const char *nics)
{
    autofree char *text = xasprintf("{\"manifest_version\": \"1.0\", \"source\": {\"provider\": "
                                    "\"vsphere\", \"vm_name\": \"web\"}, \"vm\": {\"cpu\": 2, "
                                    "\"mem_gb\": 1, \"memory_mb\": 512%s}, \"disks\": [%s], "
                                    "\"nics\": [%s]}",
                                    vm, disks, nics);
    json_t *manifest = json_loads(text, 0, NULL);

    assert_non_null(manifest);
    return manifest;
}

static char *disk_of(int i, const char *more)
{
    return xasprintf(
        "{\"id\": \"d%d\", \"source_format\": \"qcow2\", \"bytes\": 1, \"local_path\": "
        "\"/x/%d\", \"boot_order_hint\": %d%s}",
        i, i, i, more);
}

static xmlDoc *build(const json_t *manifest, const struct domain_options *options)
{
    static const char *const paths[] = {"/p/0", "/p/1", "/p/2", "/p/3", "/p/4", "/p/5"};
    struct domain_options with_paths = *options;
    autofree char *text = NULL;
    struct error err = ERROR_NONE;
    xmlDoc *doc = NULL;

    if (with_paths.paths == NULL)
        with_paths.paths = paths;
    assert_ok(domain_xml_build(manifest, &with_paths, NULL, &text, &err), err);
    assert_ok(xml_parse(text, strlen(text), 64, &doc, &err), err);
    return doc;
}

/* What an XPath expression says as a text. */
static void assert_xpath(xmlDoc *doc, const char *path, const char *expected)
{
    xmlXPathContext *context = xmlXPathNewContext(doc);
    autofree char *expression = xasprintf("string(%s)", path);
    xmlXPathObject *found = xmlXPathEvalExpression((const xmlChar *)expression, context);

    assert_non_null(found);
    assert_string_equal((const char *)found->stringval, expected);
    xmlXPathFreeObject(found);
    xmlXPathFreeContext(context);
}

static void a_bios_guest_gets_what_it_had(void **state)
{
    autofree char *disk = disk_of(0, ", \"controller\": \"scsi0:0\", \"controller_model\": "
                                     "\"pvscsi\"");
    auto_json *manifest = manifest_of("", disk,
                                      "{\"id\": \"n\", \"mac\": \"00-50-56-01-02-03\", "
                                      "\"network\": \"N\", \"model\": \"vmxnet3\"}");
    auto_xmldoc *doc = build(manifest, &(struct domain_options){.type = "qemu"});

    (void)state;
    assert_xpath(doc, "/domain/@type", "qemu");
    assert_xpath(doc, "/domain/name", "web");
    assert_xpath(doc, "/domain/os/type/@machine", "pc");
    assert_xpath(doc, "/domain/os/@firmware", "");
    assert_xpath(doc, "/domain/memory", "524288");
    assert_xpath(doc, "/domain/vcpu", "2");
    assert_xpath(doc, "/domain/cpu/@mode", "maximum");
    assert_xpath(doc, "/domain/clock/@offset", "utc");
    assert_xpath(doc, "/domain/devices/disk/target/@bus", "scsi");
    assert_xpath(doc, "/domain/devices/disk/source/@file", "/p/0");
    assert_xpath(doc, "/domain/devices/disk/boot/@order", "1");
    assert_xpath(doc, "/domain/devices/controller/@model", "vmpvscsi");
    assert_xpath(doc, "/domain/devices/interface/mac/@address", "00:50:56:01:02:03");
    assert_xpath(doc, "/domain/devices/interface/model/@type", "vmxnet3");
    assert_xpath(doc, "/domain/devices/interface/source/@network", "default");
    assert_xpath(doc, "count(/domain/devices/serial)", "1");
    assert_xpath(doc, "/domain/devices/graphics/@listen", "127.0.0.1");
    assert_xpath(doc, "count(/domain/metadata)", "0");
}

static void a_fixed_guest_gets_virtio(void **state)
{
    autofree char *boot = disk_of(0, "");
    autofree char *data = disk_of(1, "");
    autofree char *disks = xasprintf("%s, %s", data, boot); /* boot order, not the list's */
    auto_json *manifest = manifest_of("", disks, "{\"id\": \"n\", \"model\": \"e1000\"}");
    auto_xmldoc *doc = build(manifest, &(struct domain_options){.guest_fixed = true});

    (void)state;
    assert_xpath(doc, "/domain/@type", "kvm");
    assert_xpath(doc, "/domain/cpu/@mode", "host-passthrough");
    assert_xpath(doc, "/domain/devices/disk[1]/target/@dev", "vda");
    assert_xpath(doc, "/domain/devices/disk[2]/target/@dev", "vdb");
    assert_xpath(doc, "/domain/devices/disk[2]/target/@bus", "virtio");
    assert_xpath(doc, "/domain/devices/interface/model/@type", "virtio");
    assert_xpath(doc, "/domain/devices/rng/@model", "virtio");
}

static void a_secure_uefi_windows_gets_its_firmware_tpm_and_clock(void **state)
{
    autofree char *disk = disk_of(0, "");
    auto_json *manifest = manifest_of(", \"firmware\": \"uefi\", \"secureboot\": true, \"tpm\": "
                                      "true, \"os_hint\": \"windows\"",
                                      disk, "");
    auto_xmldoc *doc = build(manifest, &(struct domain_options){0});

    (void)state;
    assert_xpath(doc, "/domain/os/@firmware", "efi");
    assert_xpath(doc, "/domain/os/type/@machine", "q35");
    assert_xpath(doc, "/domain/os/firmware/feature[@name='secure-boot']/@enabled", "yes");
    assert_xpath(doc, "/domain/os/loader/@secure", "yes");
    assert_xpath(doc, "/domain/features/smm/@state", "on");
    assert_xpath(doc, "/domain/features/hyperv/relaxed/@state", "on");
    assert_xpath(doc, "/domain/clock/@offset", "localtime");
    assert_xpath(doc, "/domain/clock/timer[@name='hypervclock']/@present", "yes");
    assert_xpath(doc, "/domain/devices/tpm/@model", "tpm-crb");
    assert_xpath(doc, "/domain/devices/disk/target/@bus", "sata");
}

static void uefi_firmware_can_read_the_boot_disk(void **state)
{
    autofree char *boot = disk_of(0, ", \"controller\": \"scsi0:0\", \"controller_model\": "
                                     "\"pvscsi\"");
    autofree char *data = disk_of(1, ", \"controller\": \"scsi0:1\", \"controller_model\": "
                                     "\"pvscsi\"");
    autofree char *disks = xasprintf("%s, %s", boot, data);
    auto_json *manifest = manifest_of(", \"firmware\": \"uefi\"", disks, "");
    auto_xmldoc *doc = build(manifest, &(struct domain_options){0});

    (void)state;
    assert_xpath(doc, "/domain/devices/disk[1]/target/@bus", "sata");
    assert_xpath(doc, "/domain/devices/disk[1]/target/@dev", "sda");
    assert_xpath(doc, "/domain/devices/disk[2]/target/@bus", "scsi");
    assert_xpath(doc, "/domain/devices/disk[2]/target/@dev", "sdb");
}

static void names_of_strangers_stay_texts(void **state)
{
    static const char name[] = "a&b <c> \"d\" 'e' \xc3\xbc";
    static const char *const paths[] = {"/images/<x>'&\".qcow2"};
    static const struct domain_network to = {DOMAIN_NET_ANY, DOMAIN_NET_BRIDGE, "br'0"};
    const struct domain_origin origin = {"job-1", "/e/<x>", "vsphere", "vm-1", name};
    autofree char *disk = disk_of(0, "");
    auto_json *manifest = manifest_of("", disk, "{\"id\": \"n\", \"network\": \"<N>\"}");
    auto_xmldoc *doc = build(
        manifest, &(struct domain_options){
                      .name = name, .paths = paths, .network_default = &to, .origin = &origin});

    (void)state;
    assert_xpath(doc, "/domain/name", name);
    assert_xpath(doc, "/domain/devices/disk/source/@file", paths[0]);
    assert_xpath(doc, "/domain/devices/interface/source/@bridge", "br'0");
    assert_xpath(doc, "/domain/metadata/*[local-name()='import']/@job", "job-1");
    assert_xpath(doc, "/domain/metadata/*[local-name()='import']/@vm-name", name);
    assert_xpath(doc, "/domain/metadata/*[local-name()='import']/@export", "/e/<x>");
}

static void names_that_libvirt_refuses_are_changed(void **state)
{
    auto_json *manifest = manifest_of("", "", "");
    char longest[300];
    const char *const names[][2] = {
        {"a/b\nc", "a_b_c"}, {"   ", "vm"}, {NULL, "web"}, {"", "web"}, {longest, NULL},
    };

    (void)state;
    memset(longest, 'x', sizeof longest);
    memcpy(longest + 199, "\xc3\xbc", 2); /* the limit lies inside of it */
    longest[sizeof longest - 1] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        autofree char *name = domain_xml_name(manifest, names[i][0]);
        if (names[i][1] != NULL) {
            assert_string_equal(name, names[i][1]);
        } else {
            assert_int_equal(strlen(name), 199);
        }
    }
}

static void networks_are_mapped_one_by_one(void **state)
{
    static const struct domain_network map[] = {{"A", DOMAIN_NET_BRIDGE, "br0"},
                                                {"B", DOMAIN_NET_USER, NULL}};
    autofree char *disk = disk_of(0, "");
    auto_json *manifest =
        manifest_of("", disk,
                    "{\"id\": \"1\", \"network\": \"A\"}, {\"id\": \"2\", \"network\": \"B\"}, "
                    "{\"id\": \"3\", \"network\": \"C\"}");
    auto_json *warnings = json_array();
    auto_xmldoc *doc = NULL;
    autofree char *text = NULL;
    static const char *const paths[] = {"/p"};
    struct error err = ERROR_NONE;

    (void)state;
    assert_ok(domain_xml_build(
                  manifest,
                  &(struct domain_options){.networks = map, .network_count = 2, .paths = paths},
                  warnings, &text, &err),
              err);
    assert_ok(xml_parse(text, strlen(text), 64, &doc, &err), err);
    assert_xpath(doc, "/domain/devices/interface[1]/source/@bridge", "br0");
    assert_xpath(doc, "/domain/devices/interface[2]/@type", "user");
    assert_xpath(doc, "/domain/devices/interface[3]/source/@network", "default");
    assert_int_equal(json_array_size(warnings), 1);
    assert_non_null(strstr(json_string_value(json_array_get(warnings, 0)), "'C'"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bios_guest_gets_what_it_had),
        cmocka_unit_test(a_fixed_guest_gets_virtio),
        cmocka_unit_test(a_secure_uefi_windows_gets_its_firmware_tpm_and_clock),
        cmocka_unit_test(uefi_firmware_can_read_the_boot_disk),
        cmocka_unit_test(names_of_strangers_stay_texts),
        cmocka_unit_test(names_that_libvirt_refuses_are_changed),
        cmocka_unit_test(networks_are_mapped_one_by_one),
    };

    xmlInitParser();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
