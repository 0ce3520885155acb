/* See bridge.h. */
#include "bridge.h"

#include <string.h>

#include "common/autos.h"
#include "convert.h"
#include "hook.h"
#include "inspect.h"
#include "services/hyper2kvm-bridge/libvirt/call.h"
#include "services/hyper2kvm-bridge/libvirt/import.h"
#include "stage.h"

static struct {
    struct bus_config bus;
    struct daemon_config daemon;
    struct export_config export;
    struct bridge bridge;
} state;

static void add_path(struct config_list *list, const char *path)
{
    list->items = xreallocarray(list->items, list->count + 1, sizeof *list->items);
    list->items[list->count++] = xstrdup(path);
}

static int check(const struct hyper2kvm_config *config, struct strbuf *problems)
{
    if (strcmp(config->fallback, "builtin") != 0 && strcmp(config->fallback, "fail") != 0) {
        strbuf_addf(problems, "hyper2kvm.fallback: '%.32s' is not builtin or fail\n",
                    config->fallback);
    }
    if (strcmp(config->default_format, "qcow2") != 0 &&
        strcmp(config->default_format, "raw") != 0) {
        strbuf_addf(problems, "hyper2kvm.default_format: '%.32s' is not qcow2 or raw\n",
                    config->default_format);
    }
    if (config->restart_command.count > HYPER2KVM_RESTART_WORDS_MAX) {
        strbuf_addf(problems, "hyper2kvm.restart_command: more than %d words\n",
                    HYPER2KVM_RESTART_WORDS_MAX);
    }
    if (config->watch_dir[0] != '/' || config->output_dir[0] != '/')
        strbuf_add(problems, "hyper2kvm: watch_dir and output_dir must be absolute paths\n");
    return problems->length == 0 ? 0 : -1;
}

static int bridge_configure(const struct config_file *file, struct strbuf *problems,
                            struct error *err)
{
    if (config_section(file, "bus", &state.bus, problems, err) < 0 ||
        config_section(file, "daemon", &state.daemon, problems, err) < 0 ||
        config_section(file, "export", &state.export, problems, err) < 0 ||
        config_section(file, "hyper2kvm", &state.bridge.hyper2kvm, problems, err) < 0 ||
        config_section(file, "libvirt", &state.bridge.libvirt, problems, err) < 0 ||
        config_section(file, "hooks", &state.bridge.hooks, problems, err) < 0 ||
        config_section(file, "webhooks", &state.bridge.webhooks, problems, err) < 0)
        return -1;
    if (check(&state.bridge.hyper2kvm, problems) < 0)
        return error_set(err, ERR_INVALID, "section hyper2kvm is not usable");
    if (state.bridge.hooks.scripts_dir[0] != '\0' && state.bridge.hooks.scripts_dir[0] != '/') {
        strbuf_add(problems, "hooks.scripts_dir: must be an absolute path\n");
        return error_set(err, ERR_INVALID, "section hooks is not usable");
    }
    if (import_check_config(&state.bridge.libvirt, problems) < 0)
        return error_set(err, ERR_INVALID, "section libvirt is not usable");
    if (state.bridge.bases.count > 0)
        return 0; /* a reload: directories stay as they were */
    add_path(&state.bridge.bases, state.export.base_path);
    for (size_t i = 0; i < state.export.allowed_paths.count; i++)
        add_path(&state.bridge.bases, state.export.allowed_paths.items[i]);
    for (size_t i = 0; i < state.bridge.bases.count; i++)
        add_path(&state.bridge.reach, state.bridge.bases.items[i]);
    add_path(&state.bridge.reach, state.bridge.hyper2kvm.output_dir);
    return 0;
}

/* Asked before every lease request: libvirt comes and goes. */
static json_t *capabilities(void *arg)
{
    const struct bridge *bridge = arg;
    json_t *libvirt = import_probe_record();
    bool available = json_is_true(json_object_get(libvirt, "available"));

    return json_pack("{s:[s,s,s,s], s:s, s:o, s:{s:b}}", "paths", "queue", "direct", "virt-v2v",
                     "builtin", "fallback", bridge->hyper2kvm.fallback, "libvirt", libvirt,
                     "features", "libvirt_import", available ? 1 : 0);
}

static int bridge_run(struct service *service, struct error *err)
{
    static const struct worker_kind kinds[] = {
        {"convert", false, convert_run},
        {"import", false, import_run},
        {"release", true, import_release_run},
        {"inspect_image", true, inspect_image_run},
        {"validate_manifest", true, validate_manifest_run},
        {"libvirt", true, libvirt_call_run},
        {"script", false, hook_script_run},
        {"webhook", false, hook_webhook_run},
    };
    struct worker_description description = {
        .role = "bridge",
        .provider = "",
        .kinds = kinds,
        .kind_count = ARRAY_LEN(kinds),
        .transfer_slots = state.export.concurrent_exports,
        .control_slots = state.daemon.workers,
        .bases = &state.bridge.reach,
        .capabilities_now = capabilities,
        .arg = &state.bridge,
    };

    stage_sweep(state.bridge.hyper2kvm.output_dir);
    import_probe_start(&state.bridge.libvirt);
    return worker_run(service, &state.bus, &description, err);
}

const struct service_description bridge_description = {
    .name = "hyper2kvm-bridge",
    .purpose = "converts exports for KVM and imports them into libvirt",
    .admin_key = "hyper2kvm_bridge",
    .configure = bridge_configure,
    .run = bridge_run,
};
