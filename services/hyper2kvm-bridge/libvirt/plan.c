/* See plan.h. */
#include "plan.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/manifest.h"

#define EXPORT_RECORD    "export.json"
#define RECORD_BYTES_MAX ((size_t)(16 * MIB))

/* ---- networks ---- */

int plan_network(const char *text, struct domain_network *out, struct error *err)
{
    const char *equals = strrchr(text, '=');
    const char *to = equals == NULL ? "" : equals + 1;
    const char *colon = strchr(to, ':');
    const char *name = colon == NULL ? "" : colon + 1;

    *out = (struct domain_network){0};
    if (equals == NULL || equals == text)
        return error_set(err, ERR_INVALID, "'%.128s' is not <source>=<where it goes>", text);
    if (strcmp(to, "user") == 0) {
        out->kind = DOMAIN_NET_USER;
    } else if (strncmp(to, "network:", 8) == 0 && name[0] != '\0') {
        out->kind = DOMAIN_NET_NETWORK;
        out->target = xstrdup(name);
    } else if (strncmp(to, "bridge:", 7) == 0 && name[0] != '\0') {
        out->kind = DOMAIN_NET_BRIDGE;
        out->target = xstrdup(name);
    } else {
        return error_set(err, ERR_INVALID,
                         "'%.128s' leads to none of network:<name>, "
                         "bridge:<name>, user",
                         text);
    }
    out->source = xstrndup(text, (size_t)(equals - text));
    return 0;
}

static int read_networks(const struct config_list *list, struct import_plan *plan,
                         struct error *err)
{
    plan->networks = xcalloc(list->count + 1, sizeof *plan->networks);
    for (size_t i = 0; i < list->count; i++) {
        if (plan_network(list->items[i], &plan->networks[i], err) < 0)
            return error_wrap(err, "libvirt.networks");
        plan->network_count++;
    }
    return 0;
}

/* A network that the job names holds for all NICs; else the map decides, then the default. */
static int read_network(const json_t *wish, const struct libvirt_config *config,
                        struct import_plan *plan, struct error *err)
{
    const char *network = "";
    const char *bridge = "";

    if (json_get_string(wish, "network", "", &network, err) < 0 ||
        json_get_string(wish, "bridge", "", &bridge, err) < 0)
        return -1;
    plan->network_default = (struct domain_network){NULL, DOMAIN_NET_NETWORK, config->network};
    if (network[0] == '\0' && bridge[0] == '\0') {
        if (strcmp(config->network, "user") == 0)
            plan->network_default.kind = DOMAIN_NET_USER;
        return read_networks(&config->networks, plan, err);
    }
    plan->network_default.source = DOMAIN_NET_ANY;
    if (bridge[0] != '\0') {
        plan->network_default.kind = DOMAIN_NET_BRIDGE;
        plan->network_default.target = bridge;
    } else {
        plan->network_default.target = network;
        if (strcmp(network, "user") == 0)
            plan->network_default.kind = DOMAIN_NET_USER;
    }
    return 0;
}

/* ---- images ---- */

/* qcow2 says so itself; anything else is raw only when it is called so. */
static int format_of(const char *path, const char *wanted, const char **out, struct error *err)
{
    static const char magic[4] = {'Q', 'F', 'I', (char)0xfb};
    static const char *const raw_names[] = {".raw", ".img"};
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    const char *dot = strrchr(path, '.');
    char start[4] = "";

    if (fd < 0)
        return error_set_errno(err, errno, "image '%.256s'", path);
    if (pread(fd, start, sizeof start, 0) == (ssize_t)sizeof start &&
        memcmp(start, magic, sizeof magic) == 0 && strcmp(wanted, "raw") != 0) {
        *out = "qcow2";
        return 0;
    }
    for (size_t i = 0; i < ARRAY_LEN(raw_names); i++) {
        if (strcmp(wanted, "raw") == 0 ||
            (dot != NULL && strcmp(dot, raw_names[i]) == 0 && wanted[0] == '\0')) {
            *out = "raw";
            return 0;
        }
    }
    return error_set(err, ERR_NOT_AVAILABLE,
                     "'%.200s' is neither qcow2 nor raw (.raw, .img): convert it first", path);
}

/* What stands on other files would pull them into the guest, or change a restore point. */
static int check_image(const char *path, const char *format, struct error *err)
{
    auto_image *image = NULL;

    if (strcmp(format, "raw") == 0)
        return 0;
    if (strcmp(format, "qcow2") != 0) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "'%.200s' is %.16s, a guest needs qcow2 or raw: convert it first", path,
                         format);
    }
    if (image_open(path, format, &image, err) < 0)
        return -1;
    if (image_backing_name(image) != NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "'%.200s' stands on other images: flatten the restore point first", path);
    }
    return 0;
}

static int take_image(const struct config_list *bases, const char *named, const char *wanted,
                      json_t *disk, struct error *err)
{
    autofree char *path = NULL;
    const char *format = NULL;
    struct stat st;

    if (path_confine(bases, named, &path, err) < 0)
        return -1;
    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "image '%.256s'", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERR_INVALID, "'%.256s' is no regular file", path);
    if (format_of(path, wanted, &format, err) < 0 || check_image(path, format, err) < 0)
        return -1;
    json_set_text(disk, "local_path", path);
    json_set_text(disk, "source_format", format);
    json_put(disk, "bytes", json_integer(st.st_size));
    (void)json_object_del(disk, "relative_path");
    (void)json_object_del(disk, "member");
    (void)json_object_del(disk, "checksum"); /* it was another file's */
    return 0;
}

/* The images that were named instead of those of the manifest: one each, or the manifest's facts
 * about disks (controllers) count for nothing. */
static int take_images(const json_t *paths, const char *format, const struct config_list *bases,
                       json_t *manifest, struct error *err)
{
    json_t *disks = json_object_get(manifest, "disks");
    json_t *path;
    size_t i;

    if (json_array_size(paths) > CONVERT_DISKS_MAX)
        return error_set(err, ERR_LIMIT, "more than %d images", CONVERT_DISKS_MAX);
    if (json_array_size(disks) != json_array_size(paths)) {
        disks = json_array();
        for (i = 0; i < json_array_size(paths); i++) {
            autofree char *id = xasprintf("disk-%zu", i);
            json_t *disk = json_object();
            json_set_text(disk, "id", id);
            json_put(disk, "boot_order_hint", json_integer((json_int_t)i));
            (void)json_array_append_new(disks, disk);
        }
        json_put(manifest, "disks", disks);
    }
    json_array_foreach(paths, i, path)
    {
        if (!json_is_string(path))
            return error_set(err, ERR_INVALID, "'disks' must be a list of paths");
        if (take_image(bases, json_string_value(path), format, json_array_get(disks, i), err) < 0)
            return -1;
    }
    return 0;
}

/* ---- the machine ---- */

static json_t *empty_manifest(void)
{
    json_t *manifest = json_object();
    json_t *source = json_object();

    json_set_text(manifest, "manifest_version", MANIFEST_VERSION);
    json_set_text(source, "provider", "");
    json_put(manifest, "source", source);
    json_put(manifest, "vm", json_object());
    json_put(manifest, "disks", json_array());
    json_put(manifest, "nics", json_array());
    return manifest;
}

/* Nobody said what network the guest was in: it gets one card all the same. */
static void add_default_nic(json_t *manifest)
{
    json_t *nic = json_object();

    json_set_text(nic, "id", "nic-0");
    json_put(manifest, "nics", json_pack("[o]", nic));
}

static int read_machine(const json_t *spec, const struct bridge *bridge, struct import_plan *plan,
                        struct error *err)
{
    const char *manifest_path = "";
    const char *format = "";
    autofree char *dir = NULL;
    json_t *disks = json_object_get(spec, "disks");
    bool named = json_is_array(disks) && json_array_size(disks) > 0;

    if (json_get_string(spec, "manifest_path", "", &manifest_path, err) < 0 ||
        json_get_string(spec, "disk_format", "", &format, err) < 0)
        return -1;
    if (manifest_path[0] == '\0') {
        if (!named)
            return error_set(err, ERR_INVALID, "the task names neither images nor a manifest");
        plan->manifest = empty_manifest();
        add_default_nic(plan->manifest);
    } else {
        dir = path_parent(manifest_path);
        if (convert_read_manifest(manifest_path, named ? &bridge->reach : &bridge->bases,
                                  &plan->manifest, err) < 0 ||
            (!named && convert_take_disks(plan->manifest, dir, &bridge->bases, err) < 0))
            return -1;
        plan->export_path = STEAL(dir);
    }
    if (named && take_images(disks, format, &bridge->reach, plan->manifest, err) < 0)
        return -1;
    return convert_override_machine(spec, plan->manifest, err);
}

static int read_images(struct import_plan *plan, struct error *err)
{
    const json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(plan->manifest, "disks"), i, disk)
    {
        const char *path = json_str(disk, "local_path");
        if (check_image(path, json_str(disk, "source_format"), err) < 0)
            return -1;
        plan->images[plan->count++] = xstrdup(path);
    }
    return 0;
}

static int read_clash(const json_t *wish, struct import_plan *plan, struct error *err)
{
    static const char *const words[] = {"fail", "rename", "replace"};
    const char *word = NULL;

    if (json_get_string(wish, "if_exists", words[0], &word, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(words[i], word) == 0) {
            plan->clash = (enum plan_clash)i;
            return 0;
        }
    }
    return error_set(err, ERR_INVALID, "if_exists '%.32s' is not fail, rename or replace", word);
}

/* A URI can name programs to run: only those that the configuration allows. */
int plan_check_uri(const struct libvirt_config *config, const char *uri, struct error *err)
{
    if (strcmp(config->uri, uri) == 0)
        return 0;
    for (size_t i = 0; i < config->allowed_uris.count; i++) {
        if (strcmp(config->allowed_uris.items[i], uri) == 0)
            return 0;
    }
    return error_set(err, ERR_DENIED, "libvirt.allowed_uris does not have '%.128s'", uri);
}

int plan_read(const json_t *spec, const struct bridge *bridge, struct import_plan *out,
              struct error *err)
{
    const struct libvirt_config *config = &bridge->libvirt;
    auto_plan plan = {.domain_type = config->domain_type};
    json_t *wish = NULL;
    const char *name = "";

    if (json_get_object(spec, "libvirt", &wish, err) < 0 ||
        json_get_string(wish, "uri", config->uri, &plan.uri, err) < 0 ||
        plan_check_uri(config, plan.uri, err) < 0 ||
        json_get_string(wish, "pool", config->pool, &plan.pool, err) < 0 ||
        json_get_bool(wish, "autostart", false, &plan.autostart, err) < 0 ||
        json_get_bool(wish, "start", false, &plan.start, err) < 0 ||
        json_get_bool(spec, "guest_fixed", false, &plan.guest_fixed, err) < 0 ||
        json_get_string(spec, "vm_name", "", &name, err) < 0 || read_clash(wish, &plan, err) < 0 ||
        read_network(wish, config, &plan, err) < 0 || read_machine(spec, bridge, &plan, err) < 0 ||
        read_images(&plan, err) < 0)
        return -1;
    plan.name = domain_xml_name(plan.manifest, name);
    if (plan.export_path == NULL)
        plan.export_path = xstrdup("");
    *out = plan;
    plan = (struct import_plan){0};
    return 0;
}

void plan_release(struct import_plan *plan)
{
    json_decref(plan->manifest);
    for (size_t i = 0; i < plan->count; i++)
        free(plan->images[i]);
    for (size_t i = 0; i < plan->network_count; i++) {
        free((char *)(uintptr_t)plan->networks[i].source);
        free((char *)(uintptr_t)plan->networks[i].target);
    }
    free(plan->networks);
    free(plan->name);
    free(plan->export_path);
}

/* ---- in place ---- */

int plan_is_export(const char *dir, bool *out, struct error *err)
{
    autofree char *path = xasprintf("%s/" EXPORT_RECORD, dir);
    autofree char *text = NULL;
    auto_json *record = NULL;
    size_t size = 0;

    *out = false;
    if (access(path, F_OK) < 0)
        return 0; /* images of a conversion, or put there by someone */
    if (file_read(path, RECORD_BYTES_MAX, &text, &size, err) < 0 ||
        json_parse(text, size, RECORD_BYTES_MAX, &record, err) < 0)
        return error_wrap(err, "'%.256s'", path);
    if (json_is_object(json_object_get(record, "incremental"))) {
        return error_set(err, ERR_CONFLICT,
                         "'%.200s' is a restore point, which a running domain would change: name "
                         "a storage pool, so that it gets a copy",
                         dir);
    }
    *out = true;
    return 0;
}
