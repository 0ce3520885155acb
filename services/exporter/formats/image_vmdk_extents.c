/* VMDKs whose descriptor is a text file of its own: monolithicFlat, twoGbMaxExtentFlat and -Sparse,
 * and vmfs (ESXi's "x.vmdk" with "x-flat.vmdk"). The extents are opened as images of their own.
 *
 * The text is a stranger's: extents must be regular files with plain names in its own directory
 * (no links), their sizes must be there, and all is bounded. */
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "common/parse.h"
#include "services/exporter/formats/image_impl.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/vmdk.h"

#define DESCRIPTOR_BYTES_MAX (64 * KIB) /* 500 extents take 30 KiB */
#define EXTENTS_MAX          512U       /* each is an open file; 1 TiB in extents of 2 GiB */
#define TOKEN_BYTES_MAX      512U

struct extent {
    uint64_t offset; /* on the disk */
    uint64_t bytes;
    struct image *image; /* NULL: zeros */
};

struct extents {
    struct extent *list;
    size_t count;
};

static void extents_close(struct image *image)
{
    struct extents *extents = image->data;

    if (extents == NULL)
        return;
    for (size_t i = 0; i < extents->count; i++)
        image_close(extents->list[i].image);
    free(extents->list);
    free(extents);
}

/* ---- the text ---- */

/* The next word of a line, quotes taken off; false at its end. */
static bool next_token(const char **at, char out[TOKEN_BYTES_MAX])
{
    const char *p = *at + strspn(*at, " \t");
    size_t length;

    if (*p == '"') {
        p++;
        length = strcspn(p, "\"");
        *at = p[length] == '"' ? p + length + 1 : p + length;
    } else {
        length = strcspn(p, " \t\r");
        *at = p + length;
        if (length == 0)
            return false;
    }
    if (length >= TOKEN_BYTES_MAX)
        return false;
    memcpy(out, p, length);
    out[length] = '\0';
    return true;
}

static bool is_access(const char *word)
{
    return strcmp(word, "RW") == 0 || strcmp(word, "RDONLY") == 0;
}

static char *beside(const struct image *image, const char *name)
{
    const char *slash = strrchr(image->path, '/');

    return slash == NULL ? xstrdup(name)
                         : xasprintf("%.*s/%s", (int)(slash - image->path), image->path, name);
}

static int open_extent(struct image *image, struct extent *extent, bool sparse, const char *name,
                       uint64_t offset, struct error *err)
{
    autofree char *path = NULL;
    struct image_part part = {.format = sparse ? "vmdk" : "raw"};

    if (!file_name_is_plain(name)) {
        return error_set(err, ERR_DENIED,
                         "its extent '%.200s' is not allowed: it must lie in the same directory",
                         name);
    }
    path = beside(image, name);
    part.path = path;
    if (!sparse) {
        part.offset = offset;
        part.length = extent->bytes;
    }
    if (image_open_file(&part, O_NOFOLLOW, image, NULL, &extent->image, err) < 0)
        return error_wrap(err, "extent");
    if (image_size_bytes(extent->image) < extent->bytes)
        return error_set(err, ERR_CORRUPT, "its extent '%.200s' is shorter than it says", name);
    return 0;
}

/* 'RW 4192256 FLAT "x-f001.vmdk" 0', 'RW 2048 ZERO' */
static int parse_extent(struct image *image, const char *line, struct error *err)
{
    struct extents *extents = image->data;
    struct extent *extent;
    char word[TOKEN_BYTES_MAX];
    char type[TOKEN_BYTES_MAX];
    char name[TOKEN_BYTES_MAX] = "";
    uint64_t sectors = 0;
    uint64_t offset = 0;
    bool sparse;

    (void)next_token(&line, word); /* the access, known already */
    if (!next_token(&line, word) || !next_token(&line, type))
        return error_set(err, ERR_CORRUPT, "its descriptor has an extent without size or type");
    if (parse_u64("extent size", word, 1, IMAGE_DISK_BYTES_MAX / VMDK_SECTOR, &sectors, err) < 0)
        return -1;
    sparse = strcmp(type, "SPARSE") == 0;
    if (!sparse && strcmp(type, "FLAT") != 0 && strcmp(type, "VMFS") != 0 &&
        strcmp(type, "ZERO") != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "extents of type '%.32s' cannot be read", type);
    if (extents->count == EXTENTS_MAX)
        return error_set(err, ERR_LIMIT, "it has more than %u extents", EXTENTS_MAX);
    extents->list = xreallocarray(extents->list, extents->count + 1, sizeof *extents->list);
    extent = &extents->list[extents->count++];
    *extent = (struct extent){.offset = image->size_bytes, .bytes = sectors * VMDK_SECTOR};
    image->size_bytes += extent->bytes;
    if (image->size_bytes > IMAGE_DISK_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "its extents are over the limit of 64 TiB");
    if (strcmp(type, "ZERO") == 0)
        return 0;
    if (!next_token(&line, name))
        return error_set(err, ERR_CORRUPT, "its descriptor has an extent without a file");
    if (next_token(&line, word) &&
        parse_u64("extent offset", word, 0, IMAGE_DISK_BYTES_MAX / VMDK_SECTOR, &offset, err) < 0)
        return -1;
    return open_extent(image, extent, sparse, name, offset * VMDK_SECTOR, err);
}

static int parse_lines(struct image *image, char *text, struct error *err)
{
    bool alone = false;
    char *rest = NULL;

    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        const char *at = line;
        char word[TOKEN_BYTES_MAX];
        if (!next_token(&at, word))
            continue;
        if (strncmp(word, "parentCID=", strlen("parentCID=")) == 0) {
            alone = strcmp(word, "parentCID=" VMDK_NO_PARENT) == 0;
        } else if (strcmp(word, "NOACCESS") == 0) {
            return error_set(err, ERR_NOT_AVAILABLE, "it has an extent without access");
        } else if (is_access(word) && parse_extent(image, line, err) < 0) {
            return -1;
        }
    }
    if (!alone)
        return error_set(err, ERR_NOT_AVAILABLE, "it is a delta and cannot be read alone");
    if (image->size_bytes == 0)
        return error_set(err, ERR_CORRUPT, "its descriptor names no extents");
    return 0;
}

static int extents_open(struct image *image, struct error *err)
{
    autofree char *text = NULL;

    if (image->above != NULL)
        return error_set(err, ERR_CORRUPT, "an extent is another descriptor");
    if (image->file_bytes > DESCRIPTOR_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "its descriptor has %" PRIu64 " bytes", image->file_bytes);
    text = xcalloc(1, (size_t)image->file_bytes + 1);
    if (image_file_read(image, text, (size_t)image->file_bytes, 0, err) < 0)
        return -1;
    image->data = xcalloc(1, sizeof(struct extents));
    return parse_lines(image, text, err);
}

/* ---- reading ---- */

/* The extent that holds this byte of the disk. */
static const struct extent *find(const struct image *image, uint64_t offset)
{
    const struct extents *extents = image->data;
    size_t low = 0;
    size_t high = extents->count - 1;

    while (low < high) {
        size_t middle = (low + high + 1) / 2;
        if (extents->list[middle].offset <= offset) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return &extents->list[low];
}

static int extents_read(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                        struct error *err)
{
    while (length > 0) {
        const struct extent *extent = find(image, offset);
        uint64_t inside = offset - extent->offset;
        size_t n = (size_t)min_u64(length, extent->bytes - inside);
        if (extent->image == NULL) {
            memset(out, 0, n);
        } else if (image_read(extent->image, out, n, inside, err) < 0) {
            return -1;
        }
        out += n;
        offset += n;
        length -= n;
    }
    return 0;
}

static bool extents_is_hole(struct image *image, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        const struct extent *extent = find(image, offset);
        uint64_t inside = offset - extent->offset;
        uint64_t n = min_u64(length, extent->bytes - inside);
        if (extent->image != NULL && !image_is_hole(extent->image, inside, n))
            return false;
        offset += n;
        length -= n;
    }
    return true;
}

const struct image_ops image_vmdk_extents = {
    .format = "vmdk",
    .open = extents_open,
    .read = extents_read,
    .is_hole = extents_is_hole,
    .close = extents_close,
};
