/* Names and texts of datastore files: URLs, paths, descriptors. No traffic. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/parse.h"
#include "services/exporter/providers/vsphere/folder.h"

#define SECTOR_BYTES 512

int folder_path_split(const char *source_path, char **out_datastore, char **out_path,
                      struct error *err)
{
    const char *end = source_path[0] == '[' ? strstr(source_path, "] ") : NULL;

    if (end == NULL || end == source_path + 1 || end[2] == '\0' || end[2] == '/' ||
        strlen(source_path) > FOLDER_URL_BYTES_MAX / 4) {
        return error_set(err, ERR_PROTOCOL,
                         "'%.128s' is not a datastore path like '[ds] dir/x.vmdk'", source_path);
    }
    for (const char *p = end + 2; *p != '\0';) {
        size_t length = strcspn(p, "/");
        if (length == 0 || (length == 1 && p[0] == '.') ||
            (length == 2 && p[0] == '.' && p[1] == '.')) {
            return error_set(err, ERR_PROTOCOL,
                             "datastore path '%.128s' has a part that is no name", source_path);
        }
        p += length;
        p += *p == '/';
    }
    *out_datastore = xstrndup(source_path + 1, (size_t)(end - source_path - 1));
    *out_path = xstrdup(end + 2);
    return 0;
}

static void add_encoded(struct strbuf *sb, const char *text, int times)
{
    autofree char *encoded = xstrdup(text);

    for (int i = 1; i < times; i++) {
        auto_strbuf once;
        strbuf_init(&once, FOLDER_URL_BYTES_MAX);
        strbuf_add_url(&once, encoded);
        free(STEAL(encoded));
        encoded = xstrdup(once.data);
    }
    strbuf_add_url(sb, encoded);
}

int folder_url(const struct folder_place *place, const char *path, int encodings, char **out,
               struct error *err)
{
    auto_strbuf url;

    strbuf_init(&url, FOLDER_URL_BYTES_MAX);
    strbuf_addf(&url, "%s/folder", place->origin);
    for (const char *p = path; *p != '\0';) {
        size_t length = strcspn(p, "/");
        autofree char *segment = xstrndup(p, length);
        strbuf_add(&url, "/");
        strbuf_add_url(&url, segment);
        p += length;
        p += *p == '/';
    }
    strbuf_add(&url, "?");
    if (place->datacenter_path[0] != '\0') {
        strbuf_add(&url, "dcPath=");
        add_encoded(&url, place->datacenter_path, encodings);
        strbuf_add(&url, "&");
    }
    strbuf_add(&url, "dsName=");
    add_encoded(&url, place->datastore, encodings);
    return strbuf_finish(&url, out, err);
}

char *folder_flat_path(const char *path)
{
    size_t length = strlen(path);
    const char *dash;

    if (length <= 5 || strcmp(path + length - 5, ".vmdk") != 0)
        return NULL;
    dash = length > 12 ? path + length - 12 : NULL;
    if (dash != NULL && *dash == '-' && strspn(dash + 1, "0123456789") == 6)
        return NULL;
    return xasprintf("%.*s-flat.vmdk", (int)(length - 5), path);
}

/* ---- Content-Range ---- */

static bool digits(const char **p, uint64_t *out)
{
    struct error ignored = ERROR_NONE;
    char text[24];
    size_t length = strspn(*p, "0123456789");

    if (length == 0 || length >= sizeof text)
        return false;
    memcpy(text, *p, length);
    text[length] = '\0';
    *p += length;
    return parse_u64("range", text, 0, UINT64_MAX, out, &ignored) == 0;
}

bool folder_range_parse(const char *text, struct folder_range *out)
{
    struct folder_range range = {0};

    if (strncmp(text, "bytes ", 6) != 0)
        return false;
    text += 6;
    if (!digits(&text, &range.first) || *text++ != '-' || !digits(&text, &range.last) ||
        *text++ != '/')
        return false;
    if (*text == '*') {
        text++;
    } else if (!digits(&text, &range.total) || range.last >= range.total) {
        return false;
    }
    text += strspn(text, " \t");
    if (*text != '\0' || range.first > range.last)
        return false;
    *out = range;
    return true;
}

/* ---- descriptors ---- */

struct extent_line {
    uint64_t sectors;
    char type[16];
    char name[256];
};

/* `RW 1048576 VMFS "x-flat.vmdk"`; false when the line is not an extent. */
static bool extent_parse(const char *line, struct extent_line *out)
{
    const char *p = line;
    size_t length;

    if (strncmp(p, "RW ", 3) != 0)
        return false;
    p += 3 + strspn(p + 3, " \t");
    if (!digits(&p, &out->sectors) || *p++ != ' ')
        return false;
    p += strspn(p, " \t");
    length = strcspn(p, " \t\"");
    if (length == 0 || length >= sizeof out->type)
        return false;
    (void)snprintf(out->type, sizeof out->type, "%.*s", (int)length, p);
    p += length;
    p += strspn(p, " \t");
    if (*p++ != '"')
        return false;
    length = strcspn(p, "\"");
    if (p[length] != '"' || length == 0 || length >= sizeof out->name)
        return false;
    (void)snprintf(out->name, sizeof out->name, "%.*s", (int)length, p);
    p += length + 1;
    p += strspn(p, " \t");
    return *p == '\0' || strcmp(p, "0") == 0; /* an offset into the file, if any, must be none */
}

static bool is_extent_word(const char *line)
{
    return strncmp(line, "RW ", 3) == 0 || strncmp(line, "RDONLY ", 7) == 0 ||
           strncmp(line, "NOACCESS ", 9) == 0;
}

struct descriptor_facts {
    bool signature;
    bool has_parent;
    size_t extent_count;
    bool extent_ok;
    struct extent_line extent;
};

static void descriptor_line(char *line, struct descriptor_facts *facts)
{
    size_t length = strlen(line);

    while (length > 0 && isspace((unsigned char)line[length - 1]))
        line[--length] = '\0';
    if (strcasecmp(line, "# Disk DescriptorFile") == 0) {
        facts->signature = true;
    } else if (strncasecmp(line, "parentCID=", 10) == 0) {
        facts->has_parent = strcasecmp(line + 10, "ffffffff") != 0;
    } else if (is_extent_word(line)) {
        facts->extent_count++;
        facts->extent_ok = extent_parse(line, &facts->extent);
    }
}

static int descriptor_judge(const struct descriptor_facts *facts, struct folder_descriptor *out,
                            struct error *err)
{
    const struct extent_line *extent = &facts->extent;

    if (facts->has_parent)
        return error_set(err, ERR_NOT_AVAILABLE, "its descriptor names a parent disk");
    if (facts->extent_count != 1 || !facts->extent_ok) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "its descriptor has %zu extents, not one flat file", facts->extent_count);
    }
    if (strstr(extent->name, "://") != NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "its datastore keeps objects (vSAN, vVol), not flat files: move the disk "
                         "to a VMFS or NFS datastore");
    }
    if (strcmp(extent->type, "VMFS") != 0 && strcmp(extent->type, "FLAT") != 0) {
        return error_set(err, ERR_NOT_AVAILABLE, "its extent is of type %s, not flat",
                         extent->type);
    }
    if (strchr(extent->name, '/') != NULL || extent->name[0] == '.') {
        return error_set(err, ERR_NOT_AVAILABLE, "its extent '%.64s' is in another folder",
                         extent->name);
    }
    if (!checked_mul_u64(extent->sectors, SECTOR_BYTES, &out->size_bytes))
        return error_set(err, ERR_PROTOCOL, "its descriptor's size is not sane");
    (void)snprintf(out->flat_name, sizeof out->flat_name, "%s", extent->name);
    return 1;
}

int folder_descriptor_parse(const char *text, size_t size, struct folder_descriptor *out,
                            struct error *err)
{
    struct descriptor_facts facts = {0};
    const char *end = text + size;

    while (text < end) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        size_t length = (size_t)((stop == NULL ? end : stop) - text);
        autofree char *line = xstrndup(text, length);
        descriptor_line(line, &facts);
        text += length + (stop != NULL);
    }
    return facts.signature ? descriptor_judge(&facts, out, err) : 0;
}
