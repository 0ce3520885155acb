/* See volume.h. */
#include "volume.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/strbuf.h"

#define SEND_BYTES    ((size_t)(256 * KIB)) /* libvirt cuts streams at this size */
#define XML_BYTES_MAX ((size_t)(16 * KIB))

DEFINE_HV_AUTO(stream, virStreamPtr, virStreamFree)
#define auto_stream CLEANUP(hv_stream_auto) virStreamPtr

static int source_size(int fd, const char *file, uint64_t *out, struct error *err)
{
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "image '%.256s'", file);
    *out = (uint64_t)st.st_size;
    return 0;
}

int volume_source_size(const struct volume_source *source, uint64_t *out, struct error *err)
{
    autoclose int fd = open(source->file, O_RDONLY | O_CLOEXEC);

    return source_size(fd, source->file, out, err);
}

int volume_pool(virConnectPtr connection, const char *name, virStoragePoolPtr *out,
                struct error *err)
{
    auto_pool pool = virStoragePoolLookupByName(connection, name);
    int active;

    if (pool == NULL)
        return hv_error(err, "storage pool '%.128s'", name);
    active = virStoragePoolIsActive(pool);
    if (active < 0)
        return hv_error(err, "storage pool '%.128s'", name);
    if (active == 0) {
        return error_set(err, ERR_CONFLICT,
                         "storage pool '%.128s' does not run: start it (virsh pool-start)", name);
    }
    *out = STEAL(pool);
    return 0;
}

int volume_find(virStoragePoolPtr pool, const char *name, virStorageVolPtr *out, struct error *err)
{
    virStorageVolPtr volume = virStorageVolLookupByName(pool, name);

    if (volume != NULL) {
        *out = volume;
        return 1;
    }
    if (hv_error_number() == VIR_ERR_NO_STORAGE_VOL)
        return 0;
    return hv_error(err, "volume '%.128s'", name);
}

int volume_path(virStorageVolPtr volume, char **out, struct error *err)
{
    char *path = virStorageVolGetPath(volume);

    if (path == NULL)
        return hv_error(err, "volume '%.128s'", virStorageVolGetName(volume));
    *out = path;
    return 0;
}

/* ---- creating ---- */

/* Raw and as long as the file: it gets the file's bytes, whatever is in them. With format qcow2
 * libvirt would write an image of its own below ours. */
static int make(virStoragePoolPtr pool, const char *name, uint64_t size, virStorageVolPtr *out,
                struct error *err)
{
    autofree char *xml = NULL;
    auto_strbuf sb;

    strbuf_init(&sb, XML_BYTES_MAX);
    strbuf_add(&sb, "<volume><name>");
    strbuf_add_xml(&sb, name);
    strbuf_addf(&sb,
                "</name><capacity unit='bytes'>%" PRIu64
                "</capacity><allocation unit='bytes'>0</allocation>"
                "<target><format type='raw'/></target></volume>",
                size);
    if (strbuf_finish(&sb, &xml, err) < 0)
        return -1;
    *out = virStorageVolCreateXML(pool, xml, 0);
    return *out != NULL ? 0 : hv_error(err, "creating volume '%.128s'", name);
}

static int send_bytes(virStreamPtr stream, const char *data, size_t size, struct error *err)
{
    while (size > 0) {
        int sent = virStreamSend(stream, data, size);
        if (sent <= 0)
            return hv_error(err, "sending to libvirt");
        data += sent;
        size -= (size_t)sent;
    }
    return 0;
}

/* [offset, end) holds data. */
static int send_data(virStreamPtr stream, int fd, uint64_t offset, uint64_t end,
                     const struct volume_source *source, struct error *err)
{
    autofree char *buffer = xmalloc(SEND_BYTES);

    while (offset < end) {
        size_t want = (size_t)min_u64(SEND_BYTES, end - offset);
        ssize_t got = pread(fd, buffer, want, (off_t)offset);
        if (got < 0)
            return error_set_errno(err, errno, "reading '%.256s'", source->file);
        if (got == 0) {
            return error_set(err, ERR_SOURCE_CHANGED, "'%.256s' became shorter while it was read",
                             source->file);
        }
        if (send_bytes(stream, buffer, (size_t)got, err) < 0)
            return -1;
        offset += (uint64_t)got;
        if (source->progress(source->arg, offset, err) < 0)
            return -1;
    }
    return 0;
}

static int send_image(virStreamPtr stream, int fd, uint64_t size,
                      const struct volume_source *source, struct error *err)
{
    uint64_t offset = 0;

    while (offset < size) {
        off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
        off_t hole;
        if (data < 0 && errno != ENXIO)
            return error_set_errno(err, errno, "reading '%.256s'", source->file);
        if (data < 0 || (uint64_t)data > size) /* the rest is a hole */
            data = (off_t)size;
        if ((uint64_t)data > offset &&
            virStreamSendHole(stream, (long long)((uint64_t)data - offset), 0) < 0)
            return hv_error(err, "sending to libvirt");
        offset = (uint64_t)data;
        if (offset >= size)
            return 0;
        hole = lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            return error_set_errno(err, errno, "reading '%.256s'", source->file);
        if (send_data(stream, fd, offset, min_u64((uint64_t)hole, size), source, err) < 0)
            return -1;
        offset = min_u64((uint64_t)hole, size);
    }
    return 0;
}

static int upload(virStoragePoolPtr pool, virStorageVolPtr volume, int fd, uint64_t size,
                  const struct volume_source *source, struct error *err)
{
    auto_stream stream = virStreamNew(virStoragePoolGetConnect(pool), 0);

    if (stream == NULL ||
        virStorageVolUpload(volume, stream, 0, size, VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM) < 0)
        return hv_error(err, "sending the image to volume '%.128s'", virStorageVolGetName(volume));
    if (send_image(stream, fd, size, source, err) < 0) {
        (void)virStreamAbort(stream);
        return -1;
    }
    if (virStreamFinish(stream) < 0)
        return hv_error(err, "finishing volume '%.128s'", virStorageVolGetName(volume));
    return 0;
}

static int check_space(virStoragePoolPtr pool, int fd, const char *file, struct error *err)
{
    virStoragePoolInfo info;
    uint64_t need;
    struct stat st;

    if (fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "image '%.256s'", file);
    if (virStoragePoolGetInfo(pool, &info) < 0)
        return hv_error(err, "storage pool '%.128s'", virStoragePoolGetName(pool));
    need = (uint64_t)st.st_blocks * 512;
    if (info.available < need) {
        return error_set(err, ERR_LIMIT,
                         "storage pool '%.128s' has %llu bytes free, '%.200s' needs %" PRIu64,
                         virStoragePoolGetName(pool), info.available, file, need);
    }
    return 0;
}

int volume_create(virStoragePoolPtr pool, const char *name, const struct volume_source *source,
                  bool *out_created, struct error *err)
{
    autoclose int fd = open(source->file, O_RDONLY | O_CLOEXEC);
    auto_volume volume = NULL;
    uint64_t size = 0;

    if (source_size(fd, source->file, &size, err) < 0 ||
        check_space(pool, fd, source->file, err) < 0 || make(pool, name, size, &volume, err) < 0)
        return -1;
    *out_created = true;
    return upload(pool, volume, fd, size, source, err);
}

int volume_delete(virConnectPtr connection, const char *pool_name, const char *name,
                  struct error *err)
{
    auto_pool pool = virStoragePoolLookupByName(connection, pool_name);
    auto_volume volume = NULL;
    int rc;

    if (pool == NULL) {
        return hv_error_number() == VIR_ERR_NO_STORAGE_POOL
                   ? 0
                   : hv_error(err, "storage pool '%.128s'", pool_name);
    }
    rc = volume_find(pool, name, &volume, err);
    if (rc <= 0)
        return rc;
    if (virStorageVolDelete(volume, 0) < 0 && hv_error_number() != VIR_ERR_NO_STORAGE_VOL)
        return hv_error(err, "removing volume '%.128s'", name);
    return 1;
}
