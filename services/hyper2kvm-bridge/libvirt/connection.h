/* Connections to libvirt. Only this folder includes libvirt's headers.
 *
 * A libvirtd that hangs must not hold a slot: opening has a deadline (libvirt itself knows none),
 * and an open connection sends keepalives, so that a call fails when the other side is silent for
 * the time that was given. libvirt's own messages go into our errors and nowhere else. */
#ifndef BRIDGE_LIBVIRT_CONNECTION_H
#define BRIDGE_LIBVIRT_CONNECTION_H

#include <libvirt/libvirt.h>
#include <stdlib.h>

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

/* Turns the calling thread's last libvirt error into ours, behind "<text>: ". Always -1. The error
 * is kept before the arguments are looked at: virDomainGetName and its like would wipe it out. */
#define hv_error(err, ...) (hv_error_keep(), hv_error_say(err, __VA_ARGS__))
/* The same for what was done to something that is there: that it lacks a network or a volume is its
 * wrong state, ERR_CONFLICT. */
#define hv_error_of(err, ...) (hv_error_keep(), hv_error_say_of(err, __VA_ARGS__))
void hv_error_keep(void);
int hv_error_say(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);
int hv_error_say_of(struct error *err, const char *format, ...) PRINTF_LIKE(2, 3);
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
DEFINE_HV_AUTO(snapshot, virDomainSnapshotPtr, virDomainSnapshotFree)
#define auto_snapshot CLEANUP(hv_snapshot_auto) virDomainSnapshotPtr

/* What virConnectListAll... give: items[0..count). CLEANUP(hv_<name>_list_release). */
#define DEFINE_HV_LIST(name, pointer, release)                           \
    struct hv_##name##_list {                                            \
        pointer *items;                                                  \
        int count;                                                       \
    };                                                                   \
    __attribute__((unused)) static inline void hv_##name##_list_release( \
        struct hv_##name##_list *list)                                   \
    {                                                                    \
        for (int i = 0; i < list->count; i++)                            \
            (void)release(list->items[i]);                               \
        free(list->items);                                               \
    }
DEFINE_HV_LIST(domain, virDomainPtr, virDomainFree)
DEFINE_HV_LIST(pool, virStoragePoolPtr, virStoragePoolFree)
DEFINE_HV_LIST(volume, virStorageVolPtr, virStorageVolFree)
DEFINE_HV_LIST(network, virNetworkPtr, virNetworkFree)
DEFINE_HV_LIST(snapshot, virDomainSnapshotPtr, virDomainSnapshotFree)

#endif
