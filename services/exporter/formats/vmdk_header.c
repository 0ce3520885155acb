/* See vmdk.h: what reader and stream decoder check alike. */
#include <inttypes.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image_impl.h"
#include "services/exporter/formats/vmdk.h"

int vmdk_header_check(const uint8_t *header, const char *what, struct error *err)
{
    uint32_t version = get_le32(header + VMDK_AT_VERSION);
    uint64_t grain = get_le64(header + VMDK_AT_GRAIN_SIZE);
    uint32_t entries = get_le32(header + VMDK_AT_TABLE_ENTRIES);

    if (get_le32(header) != VMDK_MAGIC)
        return error_set(err, ERR_CORRUPT, "its %s is not that of a sparse VMDK", what);
    if (version < 1 || version > 3)
        return error_set(err, ERR_NOT_AVAILABLE, "VMDK version %" PRIu32 " is unknown", version);
    if (grain < VMDK_GRAIN_SECTORS_MIN || grain > VMDK_GRAIN_SECTORS_MAX ||
        (grain & (grain - 1)) != 0)
        return error_set(err, ERR_CORRUPT, "its grains have %" PRIu64 " sectors", grain);
    if (entries == 0 || entries > VMDK_TABLE_ENTRIES_MAX)
        return error_set(err, ERR_CORRUPT, "its tables have %" PRIu32 " entries", entries);
    if (get_le64(header + VMDK_AT_CAPACITY) > IMAGE_DISK_BYTES_MAX / VMDK_SECTOR) {
        return error_set(err, ERR_LIMIT,
                         "a disk of %" PRIu64 " sectors is over the limit of 64 TiB",
                         get_le64(header + VMDK_AT_CAPACITY));
    }
    return 0;
}

/* The value behind `key=` at the start of a line. */
static bool descriptor_value_is(const char *text, const char *key, const char *value)
{
    size_t key_length = strlen(key);
    size_t value_length = strlen(value);

    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, key, key_length) == 0 && line[key_length] == '=') {
            const char *at = line + key_length + 1;
            return strncmp(at, value, value_length) == 0 &&
                   strchr("\r\n ", at[value_length]) != NULL;
        }
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }
    return false;
}

int vmdk_descriptor_check(const char *text, struct error *err)
{
    if (!descriptor_value_is(text, "parentCID", VMDK_NO_PARENT))
        return error_set(err, ERR_NOT_AVAILABLE, "it is a delta and cannot be read alone");
    return 0;
}
