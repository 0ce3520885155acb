/* Digest lists of an export: the OVF manifest `<name>.mf` and checksums.txt. */
#ifndef EXPORTER_MF_H
#define EXPORTER_MF_H

#include "common/error.h"
#include "services/exporter/formats/digest.h"

#define MF_BYTES_MAX    ((size_t)MIB) /* 1000 files of 255-byte names need a third of it */
#define MF_ENTRIES_MAX  1000          /* as for OVA members */
#define MF_HEX_SIZE     129           /* SHA-512 */
#define MF_WARNINGS_MAX 32

struct mf_file {        /* to be written; borrowed */
    const char *name;   /* base name */
    const char *sha256; /* 64 lower hex */
};

/* "SHA256(name)= hex", in the given order. Caller frees *out. */
MUST_CHECK int mf_format(const struct mf_file *files, size_t count, char **out, struct error *err);
/* "hex  name" as sha256sum reads it, sorted by name. */
MUST_CHECK int checksums_format(const struct mf_file *files, size_t count, char **out,
                                struct error *err);

struct mf_entry {
    char algorithm[8];     /* SHA1, SHA256, SHA512 */
    char *name;            /* base name, nothing else gets in */
    char hex[MF_HEX_SIZE]; /* lower case */
};

struct mf {
    struct mf_entry *entries;
    size_t count;
    char *warnings[MF_WARNINGS_MAX]; /* unknown algorithms */
    size_t warning_count;
};

/* Tolerant: blanks around ( ) =, CR LF, upper-case hex, any order; an unknown algorithm is a
 * warning. ERR_CORRUPT names the line: no such form, a directory in a name, a name twice. */
MUST_CHECK int mf_parse(const char *text, size_t size, struct mf **out, struct error *err);
void mf_free(struct mf *mf); /* NULL-safe */
DEFINE_AUTO(mf, struct mf, mf_free)
#define auto_mf CLEANUP(mf_auto) struct mf
const struct mf_entry *mf_find(const struct mf *mf, const char *name);
/* May this be the name of a file of an export: no directory, no "..", nothing hidden in control
 * bytes, at most 255 bytes? */
bool file_name_is_plain(const char *name);

#endif
