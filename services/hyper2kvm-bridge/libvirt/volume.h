/* Images as volumes of a storage pool. Everything goes through libvirt, so that it works wherever
 * the pool is and whoever owns its directory. */
#ifndef BRIDGE_LIBVIRT_VOLUME_H
#define BRIDGE_LIBVIRT_VOLUME_H

#include "connection.h"

struct volume_source {
    const char *file;   /* a local image; read while it is sent */
    const char *format; /* "qcow2", "raw" */
    void *arg;
    /* From time to time, with the bytes sent so far. -1 with err: stop. */
    int (*progress)(void *arg, uint64_t done, struct error *err);
};

/* Bytes that the image takes up in a pool: its file's size. */
MUST_CHECK int volume_source_size(const struct volume_source *source, uint64_t *out,
                                  struct error *err);
/* The pool, running. ERR_NOT_FOUND; ERR_CONFLICT: it does not run. */
MUST_CHECK int volume_pool(virConnectPtr connection, const char *name, virStoragePoolPtr *out,
                           struct error *err);
/* 1: *out is it. 0: there is none. */
MUST_CHECK int volume_find(virStoragePoolPtr pool, const char *name, virStorageVolPtr *out,
                           struct error *err);
/* Creates the volume and sends the image, holes as holes. ERR_CONFLICT: the name is taken.
 * ERR_LIMIT: the pool has less free space. *out_created, also after an error: it stands there,
 * maybe unfinished. */
MUST_CHECK int volume_create(virStoragePoolPtr pool, const char *name,
                             const struct volume_source *source, bool *out_created,
                             struct error *err);
/* Where the volume is, as a domain names it. Caller frees. */
MUST_CHECK int volume_path(virStorageVolPtr volume, char **out, struct error *err);
/* 1: removed. 0: it was not there. */
MUST_CHECK int volume_delete(virConnectPtr connection, const char *pool, const char *name,
                             struct error *err);

#endif
