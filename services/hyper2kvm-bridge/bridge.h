/* The bridge process: the worker loop around the task kinds "convert" and "import"
 * (docs/tasks.md). */
#ifndef BRIDGE_BRIDGE_H
#define BRIDGE_BRIDGE_H

#include "common/config_schema.h"
#include "common/service.h"
#include "common/worker.h"

struct bridge { /* one per process; read-only while tasks run */
    struct hyper2kvm_config hyper2kvm;
    struct libvirt_config libvirt;
    struct hooks_config hooks;
    struct webhooks_config webhooks;
    struct config_list bases; /* where exports lie: base_path, then allowed_paths */
    struct config_list reach; /* announced as volumes: the bases and output_dir */
};

extern const struct service_description bridge_description;

#endif
