/* See bridge.h. */
#include "bridge.h"

#include <string.h>

#include "common/autos.h"
#include "convert.h"
#include "stage.h"

static struct {
    struct bus_config bus;
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
    if (config->watch_dir[0] != '/' || config->output_dir[0] != '/')
        strbuf_add(problems, "hyper2kvm: watch_dir and output_dir must be absolute paths\n");
    return problems->length == 0 ? 0 : -1;
}

static int bridge_configure(const struct config_file *file, struct strbuf *problems,
                            struct error *err)
{
    if (config_section(file, "bus", &state.bus, problems, err) < 0 ||
        config_section(file, "export", &state.export, problems, err) < 0 ||
        config_section(file, "hyper2kvm", &state.bridge.hyper2kvm, problems, err) < 0)
        return -1;
    if (check(&state.bridge.hyper2kvm, problems) < 0)
        return error_set(err, ERR_INVALID, "section hyper2kvm is not usable");
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

static int bridge_run(struct service *service, struct error *err)
{
    static const struct worker_kind kinds[] = {{"convert", false, convert_run}};
    auto_json *capabilities = json_pack("{s:[s,s,s], s:s}", "paths", "queue", "direct", "builtin",
                                        "fallback", state.bridge.hyper2kvm.fallback);
    struct worker_description description = {
        .role = "bridge",
        .provider = "",
        .kinds = kinds,
        .kind_count = ARRAY_LEN(kinds),
        .transfer_slots = state.export.concurrent_exports,
        .control_slots = 0,
        .bases = &state.bridge.reach,
        .capabilities = capabilities,
        .arg = &state.bridge,
    };

    stage_sweep(state.bridge.hyper2kvm.output_dir);
    return worker_run(service, &state.bus, &description, err);
}

const struct service_description bridge_description = {
    .name = "hyper2kvm-bridge",
    .purpose = "converts exports for KVM: hyper2kvm's queue or program, or built-in",
    .admin_key = "hyper2kvm_bridge",
    .configure = bridge_configure,
    .run = bridge_run,
};
