/* See local.h. Renaming and sweeping are in local_files.c. */
#include "services/exporter/targets/local.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/paths.h"

#define LOCK_POLL_MS 100

/* Content of a one-line file without its newline. */
static int read_line_file(const char *path, char **out, struct error *err)
{
    size_t size = 0;

    if (file_read(path, LOCAL_MARK_MAX, out, &size, err) < 0)
        return -1;
    (*out)[strcspn(*out, "\n")] = '\0';
    return 0;
}

static bool is_inside(const char *base, const char *path)
{
    size_t length = strlen(base);

    return strncmp(base, path, length) == 0 &&
           (path[length] == '\0' || path[length] == '/' || strcmp(base, "/") == 0);
}

int local_volume(const struct config_list *bases, const char *path, char out[UUID_SIZE],
                 struct error *err)
{
    for (size_t i = 0; i < bases->count; i++) {
        autofree char *base = realpath(bases->items[i], NULL);
        autofree char *file = NULL;
        autofree char *uuid = NULL;
        struct error none = ERROR_NONE;
        if (base == NULL || !is_inside(base, path))
            continue;
        file = xasprintf("%s/%s", base, LOCAL_VOLUME_NAME);
        if (read_line_file(file, &uuid, &none) < 0 || strlen(uuid) != UUID_SIZE - 1) {
            return error_set(err, ERR_UNAVAILABLE,
                             "'%.200s' has no %s: is its volume mounted? Nothing is written there",
                             base, LOCAL_VOLUME_NAME);
        }
        memcpy(out, uuid, UUID_SIZE);
        return 0;
    }
    return error_set(err, ERR_UNAVAILABLE, "no base directory for '%.200s' exists", path);
}

int local_dir_is_free(const char *dir, const char *export_id, bool *out, struct error *err)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;

    if (stream == NULL && errno == ENOENT) {
        *out = true;
        return 0;
    }
    if (stream == NULL)
        return error_set_errno(err, errno, "directory '%.200s' cannot be read", dir);
    *out = true;
    while (*out && (entry = readdir(stream)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
            strcmp(name, LOCAL_VOLUME_NAME) == 0 || strcmp(name, "lost+found") == 0)
            continue;
        *out = strcmp(name, LOCAL_MARK_NAME) == 0 && local_is_claimed_by(dir, export_id);
    }
    return 0;
}

bool local_is_claimed_by(const char *dir, const char *export_id)
{
    autofree char *path = xasprintf("%s/%s", dir, LOCAL_MARK_NAME);
    autofree char *id = NULL;
    struct error none = ERROR_NONE;

    return read_line_file(path, &id, &none) == 0 && strcmp(id, export_id) == 0;
}

/* The mark appears with its content or not at all: a half-written one would belong to nobody. */
static int write_mark(const char *path, const char *export_id, struct error *err)
{
    autofree char *temp = xasprintf("%s.tmp-%s", path, export_id);
    autofree char *line = xasprintf("%s\n", export_id);
    autoclose int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, LOCAL_FILE_MODE);
    int result;

    if (fd < 0 || write_all(fd, line, strlen(line)) < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot be written", temp);
    result = local_rename_new(temp, path, err);
    if (result < 0)
        (void)unlink(temp);
    return result;
}

int local_claim(const char *dir, const char *export_id, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", dir, LOCAL_MARK_NAME);
    struct error write_error = ERROR_NONE;

    if (path_make_dirs(dir, err) < 0)
        return -1;
    if (local_is_claimed_by(dir, export_id))
        return 0;
    if (write_mark(path, export_id, &write_error) < 0) {
        if (write_error.code == ERR_CONFLICT) {
            return error_set(err, ERR_CONFLICT, "directory '%.200s' belongs to another export",
                             dir);
        }
        *err = write_error;
        return -1;
    }
    if (local_sync_dir(dir, err) < 0)
        return -1;
    return dir_sync_parent(dir, err);
}

bool local_is_used_by_domain(const char *dir)
{
    autofree char *path = xasprintf("%s/" LOCAL_DOMAIN_MARK, dir);
    struct stat st;

    return lstat(path, &st) == 0;
}

char *local_lock_path(const char *dir, uint64_t generation)
{
    return generation == 0 ? xasprintf("%s/%s", dir, LOCAL_MARK_NAME)
                           : xasprintf("%s/%s.e%" PRIu64, dir, LOCAL_MARK_NAME, generation);
}

static bool lock_is_unsupported(int sys_errno)
{
    return sys_errno == EINVAL || sys_errno == ENOLCK || sys_errno == ENOSYS ||
           sys_errno == EOPNOTSUPP;
}

int local_lock(const char *path, int64_t wait_ms, const atomic_bool *stopped, int *out_fd,
               struct error *err)
{
    autoclose int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, LOCAL_FILE_MODE);
    int64_t deadline_ms = clock_mono_ms() + wait_ms;

    if (fd < 0)
        return error_set_errno(err, errno, "lock '%.200s' cannot be opened", path);
    for (;;) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        if (fcntl(fd, F_OFD_SETLK, &lock) == 0) {
            *out_fd = fd_steal(&fd);
            return 0;
        }
        if (lock_is_unsupported(errno)) {
            return error_set(err, ERR_NOT_AVAILABLE, "the file system of '%.200s' has no locks",
                             path);
        }
        if (errno != EAGAIN && errno != EACCES && errno != EINTR)
            return error_set_errno(err, errno, "'%.200s' cannot be locked", path);
        if (stopped != NULL && atomic_load(stopped))
            return error_set(err, ERR_CANCELLED, "stopped while waiting for '%.200s'", path);
        if (clock_mono_ms() >= deadline_ms)
            return error_set(err, ERR_TIMEOUT, "'%.200s' is held by another process", path);
        clock_sleep_ms(LOCK_POLL_MS);
    }
}

int local_check_space(const char *path, uint64_t needed, struct error *err)
{
    autofree char *at = xstrdup(path);
    struct statvfs fs;
    uint64_t available = 0;

    while (statvfs(at, &fs) < 0) {
        char *slash = strrchr(at, '/');
        if (errno != ENOENT || slash == NULL || slash == at)
            return error_set_errno(err, errno, "free space of '%.200s' is unknown", path);
        *slash = '\0';
    }
    if (!checked_mul_u64(fs.f_bavail, fs.f_frsize, &available))
        available = UINT64_MAX;
    if (needed <= available)
        return 0;
    return error_set(
        err, ERR_LIMIT,
        "not enough space for '%.200s': %.1f GiB needed (%" PRIu64
        " bytes), %.1f GiB free (%" PRIu64 " bytes); free some, or choose another place",
        path, (double)needed / (double)GIB, needed, (double)available / (double)GIB, available);
}
