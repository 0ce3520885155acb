/* Listing of OVA packages; see ova.h. Nothing is believed: a header counts when its checksum is
 * right, a member when all of its bytes are there. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/parse.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ova.h"
#include "services/exporter/formats/tar.h"

#define EXTENSION_BYTES_MAX (64 * KIB) /* pax headers and long names; real ones have some 100 */
#define EXTENSIONS_MAX      (4U * OVA_MEMBERS_MAX)

struct reader {
    int fd;
    uint64_t file_bytes;
    uint64_t at;
    struct ova *ova;
    size_t extensions;
    /* What extension headers said about the next member. */
    char *long_name;
    uint64_t long_size; /* UINT64_MAX: nothing */
};

void ova_free(struct ova *ova)
{
    if (ova == NULL)
        return;
    for (size_t i = 0; i < ova->count; i++)
        free(ova->members[i].name);
    free(ova->members);
    free(ova);
}

const struct ova_member *ova_find(const struct ova *ova, const char *name)
{
    for (size_t i = 0; i < ova->count; i++) {
        if (strcmp(ova->members[i].name, name) == 0)
            return &ova->members[i];
    }
    return NULL;
}

/* ---- fields ---- */

static int parse_base256(const uint8_t *field, uint64_t *out, struct error *err)
{
    uint64_t value = 0;

    for (size_t i = 1; i < TAR_SIZE_BYTES; i++) {
        if (value > (uint64_t)INT64_MAX >> 8)
            return error_set(err, ERR_CORRUPT, "a size is beyond all bounds");
        value = value << 8 | field[i];
    }
    if (field[0] != TAR_BASE256)
        return error_set(err, ERR_CORRUPT, "a size is negative or beyond all bounds");
    *out = value;
    return 0;
}

/* Octal, with blanks before and blank or NUL behind. */
static int parse_octal(const uint8_t *field, size_t size, uint64_t *out, struct error *err)
{
    uint64_t value = 0;
    size_t digits = 0;
    size_t i = 0;

    while (i < size && field[i] == ' ')
        i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++, digits++)
        value = value << 3 | (uint64_t)(field[i] - '0');
    for (; i < size; i++) {
        if (field[i] != ' ' && field[i] != '\0')
            return error_set(err, ERR_CORRUPT, "a number in a header is not octal");
    }
    if (digits == 0)
        return error_set(err, ERR_CORRUPT, "a number in a header is missing");
    *out = value;
    return 0;
}

static int parse_size(const uint8_t *header, uint64_t *out, struct error *err)
{
    const uint8_t *field = header + TAR_AT_SIZE;

    return (field[0] & TAR_BASE256) != 0 ? parse_base256(field, out, err)
                                         : parse_octal(field, TAR_SIZE_BYTES, out, err);
}

static int check_header(const struct reader *reader, const uint8_t *header, struct error *err)
{
    uint64_t sum = 0;

    if (parse_octal(header + TAR_AT_CHECKSUM, TAR_CHECKSUM_BYTES, &sum, err) < 0 ||
        sum != tar_checksum(header, OVA_BLOCK)) {
        error_clear(err);
        if (reader->at == 0 && header[0] == 0x1f && header[1] == 0x8b) {
            return error_set(err, ERR_NOT_AVAILABLE,
                             "it is compressed as a whole: unpack it with gunzip first");
        }
        return error_set(err, ERR_CORRUPT, "no valid tar header at offset %" PRIu64, reader->at);
    }
    return 0;
}

/* ---- extension headers ---- */

/* One "<length> key=value\n"; *at moves behind it. */
static int pax_record(char *text, size_t size, size_t *at, char **out_key, char **out_value,
                      struct error *err)
{
    size_t length = 0;
    size_t i = *at;
    char *equals;

    for (; i < size && i < *at + 6 && text[i] >= '0' && text[i] <= '9'; i++)
        length = length * 10 + (size_t)(text[i] - '0');
    if (i == *at || i >= size || text[i] != ' ' || length < i - *at + 3 || length > size - *at ||
        text[*at + length - 1] != '\n')
        return error_set(err, ERR_CORRUPT, "a pax header is malformed");
    text[*at + length - 1] = '\0';
    *out_key = text + i + 1;
    equals = memchr(*out_key, '=', *at + length - 1 - (i + 1));
    if (equals == NULL || strlen(*out_key) != *at + length - 1 - (i + 1))
        return error_set(err, ERR_CORRUPT, "a pax header is malformed");
    *equals = '\0';
    *out_value = equals + 1;
    *at += length;
    return 0;
}

static int pax_apply(struct reader *reader, bool global, const char *key, const char *value,
                     struct error *err)
{
    bool path = strcmp(key, "path") == 0;
    bool size = strcmp(key, "size") == 0;

    if (strncmp(key, "GNU.sparse", strlen("GNU.sparse")) == 0)
        return error_set(err, ERR_NOT_AVAILABLE, "sparse members are not read: pack it without");
    if (global && (path || size))
        return error_set(err, ERR_CORRUPT, "a pax header gives one %s to all members", key);
    if (path) {
        free(reader->long_name);
        reader->long_name = xstrdup(value);
    } else if (size) {
        return parse_u64("size", value, 0, (uint64_t)INT64_MAX, &reader->long_size, err);
    }
    return 0; /* times, owners, comments */
}

static int read_extension(struct reader *reader, char type, uint64_t bytes, struct error *err)
{
    autofree char *text = NULL;
    size_t at = 0;

    if (bytes == 0 || bytes > EXTENSION_BYTES_MAX || ++reader->extensions > EXTENSIONS_MAX) {
        return error_set(err, ERR_LIMIT, "an extension header of %" PRIu64 " bytes, or too many",
                         bytes);
    }
    text = xcalloc(1, (size_t)bytes + 1);
    if (pread_all(reader->fd, text, (size_t)bytes, reader->at) < 0)
        return error_set_errno(err, errno, "cannot read at %" PRIu64, reader->at);
    if (type == 'L') {
        free(reader->long_name);
        reader->long_name = STEAL(text);
        return 0;
    }
    while (at < bytes) {
        char *key = NULL;
        char *value = NULL;
        if (pax_record(text, (size_t)bytes, &at, &key, &value, err) < 0 ||
            pax_apply(reader, type == 'g', key, value, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- members ---- */

static char *header_name(const uint8_t *header)
{
    const char *name = (const char *)header + TAR_AT_NAME;
    const char *prefix = (const char *)header + TAR_AT_PREFIX;

    /* GNU's magic is "ustar  ": times stand there instead of a prefix. */
    if (memcmp(header + TAR_AT_MAGIC, "ustar", 6) == 0 && prefix[0] != '\0')
        return xasprintf("%.*s/%.*s", (int)TAR_PREFIX_BYTES, prefix, (int)TAR_NAME_BYTES, name);
    return xstrndup(name, TAR_NAME_BYTES);
}

static bool is_descriptor(const char *name)
{
    size_t length = strlen(name);

    return length > 4 && strcasecmp(name + length - 4, ".ovf") == 0;
}

static int check_name(const struct ova *ova, const char *name, struct error *err)
{
    if (!file_name_is_plain(name))
        return error_set(err, ERR_CORRUPT, "member '%.255s' is no plain file name", name);
    if (ova_find(ova, name) != NULL)
        return error_set(err, ERR_CORRUPT, "member '%.255s' stands there twice", name);
    if (ova->count == 0 && !is_descriptor(name))
        return error_set(err, ERR_CORRUPT, "its first member is '%.255s', not a descriptor", name);
    if (ova->count == OVA_MEMBERS_MAX)
        return error_set(err, ERR_LIMIT, "it has more than %u members", OVA_MEMBERS_MAX);
    return 0;
}

static int check_type(char type, const char *name, struct error *err)
{
    static const char *const words[] = {"a hard link",    "a symbolic link", "a character device",
                                        "a block device", "a directory",     "a FIFO"};

    if (type == '0' || type == '\0')
        return 0;
    if (type == 'S' || type == 'M' || type == 'D')
        return error_set(err, ERR_NOT_AVAILABLE, "member '%.255s' is sparse or in parts", name);
    if (type >= '1' && type <= '6') {
        return error_set(err, ERR_CORRUPT,
                         "member '%.255s' is %s: an OVA holds nothing but regular files", name,
                         words[type - '1']);
    }
    return error_set(err, ERR_CORRUPT, "member '%.255s' is of unknown type %d", name, type);
}

static int add_member(struct reader *reader, const uint8_t *header, uint64_t bytes,
                      struct error *err)
{
    struct ova *ova = reader->ova;
    autofree char *own = reader->long_name != NULL ? STEAL(reader->long_name) : header_name(header);
    const char *name = own;

    if (strncmp(name, "./", 2) == 0) /* "tar cf x.ova ./a.ovf" */
        name += 2;
    if (check_type((char)header[TAR_AT_TYPE], name, err) < 0 || check_name(ova, name, err) < 0)
        return -1;
    ova->members = xreallocarray(ova->members, ova->count + 1, sizeof *ova->members);
    ova->members[ova->count++] =
        (struct ova_member){.name = xstrdup(name), .offset = reader->at, .bytes = bytes};
    reader->long_size = UINT64_MAX;
    return 0;
}

/* One header and what belongs to it; *out_end: the end mark was reached. */
static int read_entry(struct reader *reader, bool *out_end, struct error *err)
{
    uint8_t header[OVA_BLOCK];
    char type;
    bool extension;
    uint64_t bytes = 0;

    if (!range_is_inside(reader->at, OVA_BLOCK, reader->file_bytes)) {
        return error_set(err, ERR_CORRUPT, "it ends at %" PRIu64 " without an end mark: it is cut",
                         reader->file_bytes);
    }
    if (pread_all(reader->fd, header, sizeof header, reader->at) < 0)
        return error_set_errno(err, errno, "cannot read at %" PRIu64, reader->at);
    *out_end = mem_is_zero(header, sizeof header);
    if (*out_end)
        return 0;
    if (check_header(reader, header, err) < 0 || parse_size(header, &bytes, err) < 0)
        return -1;
    type = (char)header[TAR_AT_TYPE];
    extension = type == 'L' || type == 'x' || type == 'g';
    if (!extension && reader->long_size != UINT64_MAX)
        bytes = reader->long_size;
    reader->at += OVA_BLOCK;
    if (!range_is_inside(reader->at, bytes, reader->file_bytes)) {
        return error_set(err, ERR_CORRUPT, "a member of %" PRIu64 " bytes at %" PRIu64 " is cut",
                         bytes, reader->at);
    }
    if (extension ? read_extension(reader, type, bytes, err) < 0
                  : add_member(reader, header, bytes, err) < 0)
        return -1;
    reader->at += ova_padded(bytes);
    return 0;
}

static int open_file(const char *path, uint64_t *out_bytes, int *out_fd, struct error *err)
{
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "cannot open '%.256s'", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERR_INVALID, "'%.256s' is not a regular file", path);
    *out_bytes = (uint64_t)st.st_size;
    *out_fd = fd_steal(&fd);
    return 0;
}

static int read_all(struct reader *reader, struct error *err)
{
    bool end = false;

    while (!end) {
        if (read_entry(reader, &end, err) < 0)
            return -1;
    }
    if (reader->ova->count == 0)
        return error_set(err, ERR_CORRUPT, "it is empty");
    return 0;
}

int ova_read(const char *path, struct ova **out, struct error *err)
{
    auto_ova *ova = NULL;
    autoclose int fd = -1;
    struct reader reader = {.long_size = UINT64_MAX};
    int rc;

    if (open_file(path, &reader.file_bytes, &fd, err) < 0)
        return -1;
    ova = xcalloc(1, sizeof *ova);
    reader.fd = fd;
    reader.ova = ova;
    rc = read_all(&reader, err);
    free(reader.long_name);
    if (rc < 0)
        return error_wrap(err, "'%.200s'", path);
    *out = STEAL(ova);
    return 0;
}

int ova_find_part(const char *name, struct image_part *out, struct error *err)
{
    const struct ova_member *member;
    auto_ova *ova = NULL;

    if (ova_read(out->path, &ova, err) < 0)
        return -1;
    member = ova_find(ova, name);
    if (member == NULL || member->bytes == 0)
        return error_set(err, ERR_CORRUPT, "it has no member '%.255s'", name);
    out->offset = member->offset;
    out->length = member->bytes;
    return 0;
}

int ova_member_read(const char *path, const struct ova_member *member, size_t size_max, char **out,
                    struct error *err)
{
    autofree char *text = NULL;
    autoclose int fd = -1;
    uint64_t file_bytes = 0;

    if (member->bytes > size_max) {
        return error_set(err, ERR_LIMIT, "'%.255s' has %" PRIu64 " bytes, at most %zu are read",
                         member->name, member->bytes, size_max);
    }
    if (open_file(path, &file_bytes, &fd, err) < 0)
        return -1;
    text = xcalloc(1, (size_t)member->bytes + 1);
    if (pread_all(fd, text, (size_t)member->bytes, member->offset) < 0)
        return error_set_errno(err, errno, "cannot read '%.255s'", member->name);
    *out = STEAL(text);
    return 0;
}
