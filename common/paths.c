/* See paths.h. */
#include "common/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/id.h"

#define DIR_MODE            0750
#define FILE_NAME_BYTES_MAX 200 /* leaves room for "-disk12.vmdk.partial" below 255 */

/* The first part that does not exist may still be a symlink to nowhere: creating it would write
 * there. length: of the part of path that exists. */
static int refuse_dangling(const char *path, size_t length, struct error *err)
{
    size_t start = length + strspn(path + length, "/");
    autofree char *next = xstrndup(path, start + strcspn(path + start, "/"));
    struct stat st;

    if (path[start] != '\0' && lstat(next, &st) == 0)
        return error_set(err, ERR_DENIED, "path '%.200s' is a symlink to nothing", next);
    return 0;
}

/* realpath of the longest existing prefix of an absolute clean path, with the rest appended. */
static int resolve_existing(const char *path, char **out, struct error *err)
{
    autofree char *head = xstrdup(path);
    size_t length = strlen(head);

    for (;;) {
        autofree char *real = realpath(head, NULL);
        char *slash;
        if (real != NULL) {
            const char *rest = path + length;
            bool root = strcmp(real, "/") == 0;
            if (refuse_dangling(path, length, err) < 0)
                return -1;
            while (root && *rest == '/')
                rest++;
            *out = xasprintf("%s%s", real, rest);
            return 0;
        }
        if (errno != ENOENT)
            return error_set_errno(err, errno, "path '%.200s'", head);
        slash = strrchr(head, '/');
        assert(slash != NULL); /* "/" always exists */
        length = slash == head ? 1 : (size_t)(slash - head);
        head[length] = '\0';
    }
}

static bool is_below(const char *base, const char *path)
{
    size_t n = strlen(base);

    while (n > 1 && base[n - 1] == '/')
        n--;
    if (n == 1 && base[0] == '/')
        return path[0] == '/';
    return strncmp(base, path, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

/* Collapses "//" and "/./"; refuses "..", control bytes and over-long parts. */
static int clean(const char *path, char **out, struct error *err)
{
    auto_strbuf sb;
    const char *p = path;

    strbuf_init(&sb, PATH_BYTES_MAX - 1);
    for (const char *c = path; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return error_set(err, ERR_INVALID, "path holds a control character");
    }
    while (*p != '\0') {
        size_t n;
        while (*p == '/')
            p++;
        n = strcspn(p, "/");
        if (n == 2 && strncmp(p, "..", 2) == 0)
            return error_set(err, ERR_DENIED, "path '%.200s' holds '..'", path);
        if (n > NAME_MAX) {
            return error_set(err, ERR_INVALID, "path '%.200s': a part is longer than %d bytes",
                             path, NAME_MAX);
        }
        if (n > 0 && !(n == 1 && *p == '.')) {
            strbuf_addc(&sb, '/');
            strbuf_add_bytes(&sb, p, n);
        }
        p += n;
    }
    if (sb.length == 0)
        strbuf_addc(&sb, '/');
    return strbuf_finish(&sb, out, err);
}

int path_confine(const struct config_list *bases, const char *path, char **out, struct error *err)
{
    autofree char *joined = NULL;
    autofree char *cleaned = NULL;
    autofree char *real = NULL;
    auto_strbuf allowed;

    strbuf_init(&allowed, 300);
    assert(bases->count > 0);
    joined = path[0] == '/' ? xstrdup(path) : xasprintf("%s/%s", bases->items[0], path);
    if (clean(joined, &cleaned, err) < 0 || resolve_existing(cleaned, &real, err) < 0)
        return -1;
    for (size_t i = 0; i < bases->count; i++) {
        autofree char *base = NULL;
        autofree char *base_clean = NULL;
        if (bases->items[i][0] != '/') {
            return error_set(err, ERR_INVALID,
                             "base directory '%.200s' is not absolute (export.base_path, "
                             "export.allowed_paths)",
                             bases->items[i]);
        }
        if (clean(bases->items[i], &base_clean, err) < 0 ||
            resolve_existing(base_clean, &base, err) < 0)
            return -1;
        if (is_below(base, real)) {
            *out = STEAL(real);
            return 0;
        }
        strbuf_addf(&allowed, "%s%s", i == 0 ? "" : ", ", bases->items[i]);
    }
    return error_set(err, ERR_DENIED,
                     "path '%.120s' is outside the allowed directories (%.280s): set "
                     "export.base_path or export.allowed_paths",
                     path, allowed.data);
}

int path_make_dirs(const char *path, struct error *err)
{
    autofree char *copy = xstrdup(path);

    for (char *p = copy + 1; *p != '\0'; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(copy, DIR_MODE) < 0 && errno != EEXIST)
            return error_set_errno(err, errno, "directory '%.200s' cannot be made", copy);
        *p = '/';
    }
    if (mkdir(copy, DIR_MODE) < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "directory '%.200s' cannot be made", copy);
    return 0;
}

int file_read(const char *path, size_t size_max, char **out, size_t *out_size, struct error *err)
{
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    autofree char *data = NULL;
    struct stat st;
    size_t size = 0;

    if (fd < 0)
        return error_set_errno(err, errno, "file '%.200s' cannot be read", path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, ERR_INVALID, "'%.200s' is not a regular file", path);
    if ((uint64_t)st.st_size > size_max)
        return error_set(err, ERR_LIMIT, "file '%.200s' is over %zu bytes", path, size_max);
    data = xmalloc((size_t)st.st_size + 1);
    while (size < (size_t)st.st_size) {
        ssize_t n = read(fd, data + size, (size_t)st.st_size - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "file '%.200s' cannot be read", path);
        if (n == 0)
            break; /* it shrank meanwhile */
        size += (size_t)n;
    }
    data[size] = '\0';
    *out = STEAL(data);
    *out_size = size;
    return 0;
}

int dir_sync_parent(const char *path, struct error *err)
{
    const char *slash = strrchr(path, '/');
    autofree char *dir = slash == NULL   ? xstrdup(".")
                         : slash == path ? xstrdup("/")
                                         : xstrndup(path, (size_t)(slash - path));
    autoclose int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "directory '%.200s' cannot be synced", dir);
    return 0;
}

#define TEMP_MARK  ".tmp-"
#define TEMP_BYTES 4 /* random, as hex behind the mark */

bool file_name_is_temp(const char *base_name, size_t *out_length)
{
    size_t tail = sizeof TEMP_MARK - 1 + (size_t)(2 * TEMP_BYTES);
    size_t length = strlen(base_name);
    uint8_t raw[TEMP_BYTES];

    if (length <= tail ||
        strncmp(base_name + length - tail, TEMP_MARK, sizeof TEMP_MARK - 1) != 0 ||
        !hex_decode(base_name + length - (size_t)(2 * TEMP_BYTES), raw, sizeof raw))
        return false;
    *out_length = length - tail;
    return true;
}

int file_write_atomic(const char *path, const void *data, size_t size, unsigned int mode,
                      struct error *err)
{
    unsigned char raw[TEMP_BYTES];
    char suffix[2 * sizeof raw + 1];
    autofree char *temp = NULL;
    autoclose int fd = -1;

    random_bytes(raw, sizeof raw);
    hex_encode(raw, sizeof raw, suffix);
    temp = xasprintf("%s" TEMP_MARK "%s", path, suffix);
    fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, (mode_t)mode);
    if (fd < 0)
        return error_set_errno(err, errno, "file '%.200s' cannot be made", temp);
    if (write_all(fd, data, size) < 0 || fsync(fd) < 0 || rename(temp, path) < 0) {
        (void)error_set_errno(err, errno, "file '%.200s' cannot be written", path);
        (void)unlink(temp);
        return -1;
    }
    return dir_sync_parent(path, err);
}

static bool is_unsafe(unsigned char c)
{
    return c < 0x20 || c == 0x7f || strchr("/\\:*?\"<>|", c) != NULL;
}

/* Longest prefix of at most max bytes that does not end inside a UTF-8 character. */
static size_t cut_length(const char *text, size_t length, size_t max)
{
    if (length <= max)
        return length;
    while (max > 0 && ((unsigned char)text[max] & 0xc0U) == 0x80U)
        max--;
    return max;
}

char *path_parent(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash == NULL ? xstrdup("") : xstrndup(path, (size_t)(slash - path));
}

const char *path_last(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash == NULL || slash[1] == '\0' ? path : slash + 1;
}

bool path_has_suffix(const char *text, const char *suffix)
{
    size_t length = strlen(text);
    size_t end = strlen(suffix);

    return length > end && strcmp(text + length - end, suffix) == 0;
}

char *vm_file_name(const char *name)
{
    size_t start = strspn(name, ". ");
    char *text = xstrdup(name + start);
    size_t length = cut_length(text, strlen(text), FILE_NAME_BYTES_MAX);

    while (length > 0 && (text[length - 1] == '.' || text[length - 1] == ' '))
        length--;
    text[length] = '\0';
    for (char *p = text; *p != '\0'; p++) {
        if (is_unsafe((unsigned char)*p))
            *p = '_';
    }
    if (length == 0) {
        free(text);
        return xstrdup("vm");
    }
    return text;
}
