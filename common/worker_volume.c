/* Volumes: each base directory carries a uuid in .hypersdk-volume, so that tasks on existing files
 * go to workers that reach them, under whatever path they are mounted. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "common/id.h"
#include "common/paths.h"
#include "common/worker_internal.h"

#define VOLUME_FILE      ".hypersdk-volume"
#define VOLUME_BYTES_MAX 64
#define VOLUMES_MAX      32

/* Two workers may meet here: the first complete file wins, link() does not replace. */
static int make_file(const char *path, struct error *err)
{
    autofree char *partial = NULL;
    char uuid[UUID_SIZE];
    char text[UUID_SIZE + 1];
    int rc;

    uuid_new(uuid);
    partial = xasprintf("%s.%s", path, uuid); /* a pid may be the same on two hosts */
    (void)snprintf(text, sizeof text, "%s\n", uuid);
    if (file_write_atomic(partial, text, strlen(text), 0644, err) < 0)
        return -1;
    rc = link(partial, path);
    if (rc < 0 && (errno == EPERM || errno == ENOTSUP || errno == ENOSYS))
        rc = renameat2(AT_FDCWD, partial, AT_FDCWD, path, RENAME_NOREPLACE); /* no hard links */
    if (rc < 0 && errno != EEXIST)
        (void)error_set_errno(err, errno, "'%s'", path);
    (void)unlink(partial);
    return err->code == ERR_NONE ? dir_sync_parent(path, err) : -1;
}

static int read_id(const char *path, char out[UUID_SIZE], struct error *err)
{
    autofree char *text = NULL;
    size_t size = 0;

    if (file_read(path, VOLUME_BYTES_MAX, &text, &size, err) < 0)
        return -1;
    text[strcspn(text, "\r\n")] = '\0';
    if (strlen(text) != UUID_SIZE - 1 || strspn(text, "0123456789abcdef-") != UUID_SIZE - 1)
        return error_set(err, ERR_INVALID, "'%s' holds no volume id", path);
    (void)snprintf(out, UUID_SIZE, "%.36s", text);
    return 0;
}

static int probe(const char *base, char id[UUID_SIZE], uint64_t *out_free, struct error *err)
{
    autofree char *path = xasprintf("%s/" VOLUME_FILE, base);
    struct statvfs fs;
    struct stat st;

    if (stat(base, &st) < 0 && path_make_dirs(base, err) < 0)
        return -1;
    if (stat(path, &st) < 0 && make_file(path, err) < 0)
        return -1;
    if (read_id(path, id, err) < 0)
        return -1;
    if (statvfs(base, &fs) < 0)
        return error_set_errno(err, errno, "'%s'", base);
    *out_free = (uint64_t)fs.f_bavail * fs.f_frsize;
    return 0;
}

static void add(struct worker_volumes *volumes, const char *base, const char *id, uint64_t free_now)
{
    Hypersdk__V1__Volume *volume = xmalloc(sizeof *volume);

    hypersdk__v1__volume__init(volume);
    volume->id = xstrdup(id);
    volume->path = xstrdup(base);
    volume->free_bytes = free_now;
    volumes->items = xreallocarray(volumes->items, volumes->count + 1, sizeof *volumes->items);
    volumes->items[volumes->count++] = volume;
}

void worker_volumes_probe(const struct config_list *bases, struct worker_volumes *out)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards throttle */
    static struct log_throttle throttle;

    *out = (struct worker_volumes){0};
    for (size_t i = 0; bases != NULL && i < bases->count && i < VOLUMES_MAX; i++) {
        struct error err = ERROR_NONE;
        char id[UUID_SIZE];
        uint64_t free_now = 0;
        uint64_t held = 0;
        if (probe(bases->items[i], id, &free_now, &err) == 0) {
            add(out, bases->items[i], id, free_now);
            continue;
        }
        LOCK_SCOPE(&mutex);
        if (log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "volume_unusable", F_STR("path", bases->items[i]), F_ERR(&err));
    }
}

void worker_volumes_release(struct worker_volumes *volumes)
{
    for (size_t i = 0; i < volumes->count; i++) {
        free(volumes->items[i]->id);
        free(volumes->items[i]->path);
        free(volumes->items[i]);
    }
    free(volumes->items);
    *volumes = (struct worker_volumes){0};
}
