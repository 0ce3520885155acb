/* See later_routes.h. An endpoint that arrives leaves this list. */
#include "later_routes.h"

#include "match.h"

#define LATER(method, path)                        \
    {                                              \
        method, path, NULL, NULL, "later", 0, NULL \
    }
#define LATER_BOTH(method, short_path, path) LATER(method, short_path), LATER(method, path)

static const struct route later[] = {
    LATER("GET", "/metrics"),
    LATER("POST", "/api/v1/roles"),
    LATER("PUT", "/api/v1/roles/{name}"),
    LATER("DELETE", "/api/v1/roles/{name}"),
    LATER_BOTH("GET", "/audit/export", "/api/v1/audit/export"),
    LATER("GET", "/api/v1/audit/verify"),
    LATER_BOTH("POST", "/vms/shutdown", "/api/v1/vms/{id}/shutdown"),
    LATER_BOTH("POST", "/vms/poweroff", "/api/v1/vms/{id}/poweroff"),
    LATER_BOTH("POST", "/vms/remove-cdrom", "/api/v1/vms/{id}/remove-cdrom"),
    LATER("GET", "/api/v1/vms/{id}/snapshots"),
    LATER("POST", "/api/v1/vms/{id}/snapshots"),
    LATER("DELETE", "/api/v1/vms/{id}/snapshots/{snap}"),
    LATER_BOTH("GET", "/vsphere/{what}", "/api/v1/vsphere/{what}"),
    LATER("GET", "/vsphere/vcenter/info"),
    LATER_BOTH("POST", "/vsphere/clone", "/api/v1/vsphere/clone"),
    LATER("POST", "/vsphere/clone/bulk"),
    /* webhooks and mail */
    LATER_BOTH("GET", "/webhooks", "/api/v1/webhooks"),
    LATER_BOTH("POST", "/webhooks", "/api/v1/webhooks"),
    LATER("POST", "/webhooks/configure"),
    LATER_BOTH("GET", "/webhooks/{id}", "/api/v1/webhooks/{id}"),
    LATER_BOTH("PUT", "/webhooks/{id}", "/api/v1/webhooks/{id}"),
    LATER_BOTH("DELETE", "/webhooks/{id}", "/api/v1/webhooks/{id}"),
    LATER_BOTH("POST", "/webhooks/test", "/api/v1/webhooks/test"),
    LATER("GET", "/api/v1/webhooks/{id}/deliveries"),
    LATER_BOTH("GET", "/notifications/config", "/api/v1/notifications"),
    LATER_BOTH("PUT", "/notifications/update", "/api/v1/notifications"),
    LATER("POST", "/api/v1/notifications/test"),
    /* libvirt */
    LATER("POST", "/libvirt/network/{action}"),
    LATER("POST", "/libvirt/interface/{action}"),
    LATER("GET", "/libvirt/isos/{what}"),
    /* optional */
    LATER("POST", "/cost/{what}"),
    LATER("GET", "/carbon/{what}"),
    LATER("POST", "/carbon/{what}"),
    LATER("POST", "/migration/{what}"),
    LATER("POST", "/api/v1/plan/{what}"),
};

bool later_route(const char *method, const char *path)
{
    struct match match;

    (void)method; /* a path that comes later is not available with any method */
    return match_route(later, ARRAY_LEN(later), "GET", path, &match) != MATCH_NONE;
}
