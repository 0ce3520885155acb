/* Connections to libvirt. Only this folder includes libvirt's headers.
 *
 * A libvirtd that hangs must not hold a slot: opening has a deadline (libvirt itself knows none),
 * and an open connection sends keepalives, so that a call fails when the other side is silent for
 * the time that was given. libvirt's own messages go into our errors and nowhere else. */
#ifndef BRIDGE_LIBVIRT_CONNECTION_H
#define BRIDGE_LIBVIRT_CONNECTION_H

#include <libvirt/libvirt.h>

#include "common/error.h"

#define HV_OPENING_MAX 8 /* threads that wait for a daemon which does not answer */

/* ERR_UNAVAILABLE and ERR_TIMEOUT: the daemon is down or hangs. ERR_DENIED: not for us. */
MUST_CHECK int hv_open(const char *uri, int64_t timeout_ms, virConnectPtr *out, struct error *err);
void hv_close(virConnectPtr connection); /* NULL-safe */

static inline void hv_auto_close(virConnectPtr *connection)
{
    hv_close(*connection);
}
#define auto_connection CLEANUP(hv_auto_close) virConnectPtr

/* Turns the calling thread's last libvirt error into ours, behind "<text>: ". Always -1. */
int hv_error(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);
/* Its number (VIR_ERR_...). */
int hv_error_number(void);

/* The domain type to use: `wanted` ("kvm", "qemu") or, for "auto", kvm where the host has it.
 * The mock driver has one of its own. *out: literal or wanted. ERR_NOT_AVAILABLE: no QEMU. */
MUST_CHECK int hv_domain_type(virConnectPtr connection, const char *wanted, const char **out,
                              struct error *err);

#define DEFINE_HV_AUTO(name, pointer, release)                              \
    __attribute__((unused)) static inline void hv_##name##_auto(pointer *p) \
    {                                                                       \
        if (*p != NULL)                                                     \
            (void)release(*p);                                              \
    }
DEFINE_HV_AUTO(domain, virDomainPtr, virDomainFree)
#define auto_domain CLEANUP(hv_domain_auto) virDomainPtr
DEFINE_HV_AUTO(pool, virStoragePoolPtr, virStoragePoolFree)
#define auto_pool CLEANUP(hv_pool_auto) virStoragePoolPtr
DEFINE_HV_AUTO(volume, virStorageVolPtr, virStorageVolFree)
#define auto_volume CLEANUP(hv_volume_auto) virStorageVolPtr

#endif
