/* Backing files of images: where they may lie, how deep a chain may be. The names come out of
 * files that strangers may have made. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "services/exporter/formats/image_impl.h"
#include "services/exporter/formats/mf.h"

#define PARTS_MAX 3 /* "../dir/name" */

struct parts {
    char *text; /* the name, cut at its slashes */
    const char *items[PARTS_MAX];
    size_t count;
};

static void parts_release(struct parts *parts)
{
    free(parts->text);
}

/* "./" in front means nothing. false: more parts than there may be. */
static bool split(const char *name, struct parts *out)
{
    char *rest = NULL;

    while (name[0] == '.' && name[1] == '/')
        name += 2;
    out->text = xstrdup(name);
    if (name[0] == '/' || name[0] == '\0')
        return false;
    for (char *part = strtok_r(out->text, "/", &rest); part != NULL;
         part = strtok_r(NULL, "/", &rest)) {
        if (out->count == PARTS_MAX)
            return false;
        out->items[out->count++] = part;
    }
    return true;
}

static char *real_dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    autofree char *dir = slash == NULL ? xstrdup(".") : xstrndup(path, (size_t)(slash - path) + 1);

    return realpath(dir, NULL);
}

static bool is_parent(const char *parent, const char *dir)
{
    const char *slash = strrchr(dir, '/');

    return slash != NULL && strncmp(parent, dir, (size_t)(slash - dir)) == 0 &&
           strlen(parent) == (size_t)(slash - dir);
}

static bool is_directory(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The path that `name`, found in an image of directory `dir`, means; NULL: it is not allowed. */
static char *resolve(const char *dir, const char *root, const struct parts *parts)
{
    bool up = strcmp(parts->items[0], "..") == 0;
    const char *name = parts->items[parts->count - 1];
    autofree char *below = NULL;

    if (strchr(parts->items[0], ':') != NULL || !file_name_is_plain(name) ||
        (parts->count == 1) == up)
        return NULL;
    if (!up)
        return parts->count == 1 ? xasprintf("%s/%s", dir, name) : NULL;
    if (root == NULL || !is_parent(root, dir))
        return NULL;
    if (parts->count == 2)
        return xasprintf("%s/%s", root, name);
    below = xasprintf("%s/%s", root, parts->items[1]);
    if (!file_name_is_plain(parts->items[1]) || !is_directory(below))
        return NULL;
    return xasprintf("%s/%s", below, name);
}

int image_root_check(const struct image *image, struct error *err)
{
    autofree char *dir = NULL;

    if (image->root == NULL)
        return 0;
    dir = real_dir_of(image->path);
    if (dir != NULL && (strcmp(dir, image->root) == 0 || is_parent(image->root, dir)))
        return 0;
    return error_set(err, ERR_DENIED, "it does not lie in '%.200s' or directly below", image->root);
}

static int check_chain(const struct image *image, const struct image *backing, struct error *err)
{
    const struct image *above = image;

    for (size_t depth = 1; above != NULL; above = above->above) {
        if (above->device == backing->device && above->inode == backing->inode)
            return error_set(err, ERR_CORRUPT, "its chain of backing files is a circle");
        if (++depth > IMAGE_CHAIN_MAX)
            return error_set(err, ERR_LIMIT, "its chain is longer than %d images", IMAGE_CHAIN_MAX);
    }
    return 0;
}

int image_open_backing(struct image *image, const char *name, const char *format, struct error *err)
{
    CLEANUP(parts_release) struct parts parts = {0};
    autofree char *dir = real_dir_of(image->path);
    autofree char *path = NULL;

    if (dir == NULL)
        return error_set_errno(err, errno, "its directory cannot be found");
    if (split(name, &parts) && parts.count > 0)
        path = resolve(dir, image->root, &parts);
    if (path == NULL) {
        return error_set(err, ERR_DENIED,
                         "its backing file '%.200s' is not allowed: it must lie in the same "
                         "directory%s",
                         name, image->root == NULL ? "" : ", or beside it");
    }
    image->backing_name = xstrdup(name);
    const struct image_part whole = {.path = path, .format = format, .root = image->root};
    return image_open_file(&whole, O_NOFOLLOW, image, check_chain, &image->backing, err);
}
