/* Headers of OVA members; see ova.h. */
#include <inttypes.h>
#include <stdio.h>

#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ova.h"
#include "services/exporter/formats/tar.h"

#define MODE 0644U

uint64_t ova_padded(uint64_t bytes)
{
    return round_up_u64(bytes, OVA_BLOCK);
}

uint64_t ova_total(uint64_t end)
{
    return round_up_u64(end + 2 * OVA_BLOCK, OVA_RECORD); /* two blocks of zeros end a tar */
}

/* Octal digits and a NUL, filling the field. */
static void put_octal(uint8_t *field, size_t size, uint64_t value)
{
    char text[32];

    (void)snprintf(text, sizeof text, "%0*" PRIo64, (int)size - 1, value);
    assert(strlen(text) == size - 1);
    memcpy(field, text, size);
}

static void put_size(uint8_t *field, uint64_t value)
{
    if (value <= TAR_OCTAL_MAX) {
        put_octal(field, TAR_SIZE_BYTES, value);
        return;
    }
    for (size_t i = TAR_SIZE_BYTES; i > 1; i--) {
        field[i - 1] = (uint8_t)value;
        value >>= 8;
    }
    field[0] = TAR_BASE256;
}

int ova_header(const char *name, uint64_t bytes, int64_t mtime_s, uint8_t out[OVA_BLOCK],
               struct error *err)
{
    if (!file_name_is_plain(name) || strlen(name) > OVA_NAME_BYTES_MAX)
        return error_set(err, ERR_INVALID, "'%.255s' cannot be the name of an OVA's member", name);
    memset(out, 0, OVA_BLOCK);
    memcpy(out + TAR_AT_NAME, name, strlen(name));
    put_octal(out + TAR_AT_MODE, TAR_ID_BYTES, MODE);
    put_octal(out + TAR_AT_UID, TAR_ID_BYTES, 0);
    put_octal(out + TAR_AT_GID, TAR_ID_BYTES, 0);
    put_size(out + TAR_AT_SIZE, bytes);
    put_octal(out + TAR_AT_MTIME, TAR_SIZE_BYTES,
              min_u64(mtime_s > 0 ? (uint64_t)mtime_s : 0, TAR_OCTAL_MAX));
    out[TAR_AT_TYPE] = '0';
    memcpy(out + TAR_AT_MAGIC, "ustar\00000", 8);
    put_octal(out + TAR_AT_CHECKSUM, TAR_CHECKSUM_BYTES - 1, tar_checksum(out, OVA_BLOCK));
    out[TAR_AT_CHECKSUM + TAR_CHECKSUM_BYTES - 1] = ' ';
    return 0;
}
