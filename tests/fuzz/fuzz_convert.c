/* A manifest that the bridge is told to convert: from the file to the document for hyper2kvm and
 * the domain. Every disk of the corpus leads to one real image by its relative_path. */
#include <assert.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/qcow2.h"
#include "services/hyper2kvm-bridge/stage.h"

#define IMAGE_NAME    "a.qcow2"
#define CLUSTER_BYTES 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char dir[] = "/tmp/fuzz-convert-XXXXXX";
static char *base_items[] = {dir};
static const struct config_list bases = {base_items, 1};
static char *image;
static char *manifest_path;

static void write_file(const char *path, const void *data, size_t size)
{
    autoclose int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write_all(fd, data, size) < 0)
        abort();
}

static void remove_files(void)
{
    (void)unlink(image);
    (void)unlink(manifest_path);
    (void)rmdir(dir);
}

/* An empty image of one cluster: header, L1 table, refcount table. */
static void make_image(void)
{
    static uint8_t bytes[4 * CLUSTER_BYTES];

    put_be32(bytes, QCOW2_MAGIC);
    put_be32(bytes + QCOW2_AT_VERSION, 2);
    put_be32(bytes + QCOW2_AT_CLUSTER_BITS, 16);
    put_be64(bytes + QCOW2_AT_SIZE, CLUSTER_BYTES);
    put_be32(bytes + QCOW2_AT_L1_SIZE, 1);
    put_be64(bytes + QCOW2_AT_L1_OFFSET, CLUSTER_BYTES);
    put_be64(bytes + QCOW2_AT_REFTABLE_OFFSET, 2 * CLUSTER_BYTES);
    put_be32(bytes + QCOW2_AT_REFTABLE_CLUSTERS, 1);
    write_file(image, bytes, sizeof bytes);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    if (mkdtemp(dir) == NULL)
        abort();
    image = xasprintf("%s/" IMAGE_NAME, dir);
    manifest_path = xasprintf("%s/artifact-manifest.json", dir);
    make_image();
    (void)atexit(remove_files);
    return 0;
}

static void check_document(const struct conversion *c)
{
    char *overlays[CONVERT_DISKS_MAX];
    struct stage stage = {.dir = dir, .out = dir, .count = convert_disk_count(c), .lock = -1};
    auto_json *document = NULL;

    for (size_t i = 0; i < stage.count; i++) {
        overlays[i] = xasprintf("%s/overlay-%zu", dir, i);
        stage.overlays[i] = overlays[i];
        stage.links[i] = overlays[i];
    }
    document = stage_document(c, &stage);
    assert(json_array_size(json_object_get(document, "disks")) == stage.count);
    assert(json_object_get(document, "hooks") == NULL);
    for (size_t i = 0; i < stage.count; i++)
        free(overlays[i]);
}

static void check_domain(const struct conversion *c)
{
    const char *images[CONVERT_DISKS_MAX];
    auto_json *warnings = json_array();
    autofree char *xml = NULL;
    struct error err = ERROR_NONE;

    for (size_t i = 0; i < convert_disk_count(c); i++)
        images[i] = json_str(convert_disk(c, i), "local_path");
    if (convert_domain(c, images, &(struct domain_options){0}, warnings, &xml, &err) == 0)
        assert(strncmp(xml, "<domain ", 8) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char vm_file[] = "vm";
    struct conversion c = {.format = "qcow2", .vm_file = vm_file};
    struct error err = ERROR_NONE;

    write_file(manifest_path, data, size);
    if (convert_read_manifest(manifest_path, &bases, &c.manifest, &err) < 0 ||
        convert_take_disks(c.manifest, dir, &bases, &err) < 0) {
        assert(err.code != ERR_NONE);
        json_decref(c.manifest);
        return 0;
    }
    for (size_t i = 0; i < convert_disk_count(&c); i++)
        assert(strncmp(json_str(convert_disk(&c, i), "local_path"), dir, strlen(dir)) == 0);
    check_document(&c);
    check_domain(&c);
    json_decref(c.manifest);
    return 0;
}
