/* Files of an unfinished export: their names, renaming without replacing, sweeping. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "services/exporter/targets/local.h"

/* Besides "<stem>...": files with names of their own. */
static const char *const fixed_names[] = {
    "export.json.",   "manifest.yaml.", "artifact-manifest.json.",
    "checksums.txt.", "evidence.json.", "evidence.sig."};

/* "" or ".e7" */
static void generation_text(uint64_t generation, char *out, size_t size)
{
    if (generation == 0) {
        out[0] = '\0';
    } else {
        (void)snprintf(out, size, ".e%" PRIu64, generation);
    }
}

char *local_partial_path(const char *dir, const char *name, uint64_t generation)
{
    char text[32];

    generation_text(generation, text, sizeof text);
    return xasprintf("%s/%s%s%s", dir, name, text, LOCAL_PARTIAL);
}

char *local_note_path(const char *dir, const char *name, const char *what, uint64_t generation)
{
    char text[32];

    generation_text(generation, text, sizeof text);
    return xasprintf("%s/.%s%s.%s", dir, name, text, what);
}

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text);
    size_t m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* "<name>.partial", "<name>.partial.index", "<name>.partial.tmp-1a2b3c4d" */
static bool has_partial_suffix(const char *name)
{
    return ends_with(name, LOCAL_PARTIAL) || strstr(name, LOCAL_PARTIAL ".") != NULL;
}

/* "<stem>-disk1.vmdk.partial", "<stem>.ovf.partial", ".<stem>-disk1.journal" ... */
static bool is_unfinished(const char *name, const char *stem)
{
    size_t length = strlen(stem);

    if (name[0] == '.' && strncmp(name + 1, stem, length) == 0 && name[1 + length] == '-')
        return strstr(name, ".journal") != NULL || strstr(name, ".done") != NULL;
    if (!has_partial_suffix(name))
        return false;
    if (strncmp(name, stem, length) == 0 && (name[length] == '-' || name[length] == '.'))
        return true;
    for (size_t i = 0; i < ARRAY_LEN(fixed_names); i++) {
        if (starts_with(name, fixed_names[i]))
            return true;
    }
    return false;
}

static bool ends_a_generation(const char *text)
{
    return starts_with(text, ".partial") || starts_with(text, ".journal") ||
           starts_with(text, ".done");
}

/* The epoch in an unfinished file's name, ".e7" before what says that it is unfinished; 0 when
 * there is none. (A VM may well be called "db.e7".) */
static uint64_t generation_of(const char *name)
{
    uint64_t found = 0;

    for (const char *p = strstr(name, ".e"); p != NULL; p = strstr(p + 1, ".e")) {
        const char *digit = p + 2;
        uint64_t value = 0;
        while (isdigit((unsigned char)*digit) && value < UINT64_MAX / 100)
            value = value * 10 + (uint64_t)(*digit++ - '0');
        if (digit > p + 2 && ends_a_generation(digit))
            found = value;
    }
    return found;
}

uint64_t local_partial_bytes(const char *dir, const char *stem)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;
    uint64_t sum = 0;

    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        struct stat st;
        if (is_unfinished(entry->d_name, stem) &&
            fstatat(dirfd(stream), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            sum += (uint64_t)st.st_blocks * 512;
    }
    return sum;
}

int local_sweep(const char *dir, const char *stem, const uint64_t *keep_generation,
                struct error *err)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;

    if (stream == NULL) {
        return errno == ENOENT
                   ? 0
                   : error_set_errno(err, errno, "directory '%.200s' cannot be read", dir);
    }
    while ((entry = readdir(stream)) != NULL) {
        if (!is_unfinished(entry->d_name, stem) ||
            (keep_generation != NULL && generation_of(entry->d_name) == *keep_generation))
            continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) < 0 && errno != ENOENT) {
            return error_set_errno(err, errno, "'%.200s/%.255s' cannot be removed", dir,
                                   entry->d_name);
        }
    }
    return 0;
}

int local_unclaim(const char *dir, bool remove_dir, struct error *err)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;

    if (stream == NULL) {
        return errno == ENOENT
                   ? 0
                   : error_set_errno(err, errno, "directory '%.200s' cannot be read", dir);
    }
    while ((entry = readdir(stream)) != NULL) {
        const char *rest = entry->d_name + strlen(LOCAL_MARK_NAME);
        if (!starts_with(entry->d_name, LOCAL_MARK_NAME) || (*rest != '\0' && *rest != '.'))
            continue;
        if (unlinkat(dirfd(stream), entry->d_name, 0) < 0 && errno != ENOENT) {
            return error_set_errno(err, errno, "'%.200s/%.255s' cannot be removed", dir,
                                   entry->d_name);
        }
    }
    if (remove_dir)
        (void)rmdir(dir); /* not empty: it holds what is not ours */
    return 0;
}

static int rename_failed(const char *from, const char *to, struct error *err)
{
    if (errno == EEXIST)
        return error_set(err, ERR_CONFLICT, "'%.200s' exists already and is not replaced", to);
    return error_set_errno(err, errno, "'%.200s' cannot become '%.200s'", from, to);
}

int local_rename_by_link(const char *from, const char *to, struct error *err)
{
    struct stat st;

    if (link(from, to) == 0) {
        if (unlink(from) < 0)
            return error_set_errno(err, errno, "'%.200s' cannot be removed", from);
        return 0;
    }
    if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS && errno != EMLINK)
        return rename_failed(from, to, err);
    /* Neither of the two safe ways exists here. The directory is claimed by one export and written
     * by one process, so a look before is as good as it gets. */
    if (lstat(to, &st) == 0) {
        errno = EEXIST;
        return rename_failed(from, to, err);
    }
    return rename(from, to) < 0 ? rename_failed(from, to, err) : 0;
}

int local_rename_new(const char *from, const char *to, struct error *err)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
        return local_rename_by_link(from, to, err);
    return rename_failed(from, to, err);
}

int local_sync_dir(const char *dir, struct error *err)
{
    autoclose int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "directory '%.200s' cannot be synced", dir);
    return 0;
}
