/* Datastore files over HTTPS: https://HOST/folder/<path>?dcPath=&dsName=, read by byte ranges.
 *
 * Nothing the server says is taken on trust: the status, the range, the total size and the
 * validators (ETag, Last-Modified) are compared on every answer. */
#ifndef VSPHERE_FOLDER_H
#define VSPHERE_FOLDER_H

#include "services/exporter/providers/vsphere/session.h"

#define FOLDER_URL_BYTES_MAX        8192
#define FOLDER_DESCRIPTOR_BYTES_MAX ((size_t)(64 * KIB)) /* real ones are below 2 KiB */
#define FOLDER_VALIDATOR_BYTES_MAX  128

/* One flat disk file as it was found; immutable afterwards, so readers may share it. */
struct folder_file {
    char *url;
    char *path; /* "[ds] dir/x-flat.vmdk", for messages */
    uint64_t size_bytes;
    char etag[FOLDER_VALIDATOR_BYTES_MAX];
    char last_modified[FOLDER_VALIDATOR_BYTES_MAX];
};
void folder_file_release(struct folder_file *file);

/* Finds the flat file of a disk whose descriptor is `source_path` ("[ds] dir/x.vmdk"), and checks
 * that it is one whole flat disk of `capacity` bytes. out is zeroed here.
 * ERR_NOT_AVAILABLE: a delta, or a datastore without flat files. */
MUST_CHECK int folder_locate(struct provider_session *session, const char *datacenter_path,
                             const char *source_path, uint64_t capacity, struct folder_file *out,
                             struct error *err);
/* Is the file still the one that was located? ERR_SOURCE_CHANGED. */
MUST_CHECK int folder_compare(struct provider_session *session, const struct folder_file *file,
                              struct error *err);

/* One connection. file must outlive it. */
struct folder_reader;
MUST_CHECK int folder_reader_new(struct provider_session *session, const struct folder_file *file,
                                 struct folder_reader **out, struct error *err);
MUST_CHECK int folder_reader_read(struct folder_reader *reader, void *buffer, size_t length,
                                  uint64_t offset, struct error *err);
/* The same in one request, handed over as it comes (provider.h, disk_stream). */
MUST_CHECK int folder_reader_stream(struct folder_reader *reader, uint64_t length, uint64_t offset,
                                    int (*take)(void *arg, const void *data, size_t length,
                                                struct error *err),
                                    void *arg, struct error *err);
void folder_reader_free(struct folder_reader *reader); /* NULL-safe */

/* Parts, for tests and fuzzing. */
/* What a descriptor says about its bytes. */
struct folder_descriptor {
    uint64_t size_bytes;
    char flat_name[256]; /* beside the descriptor */
};
/* 1: it is one whole flat disk, *out filled. 0: the text is not a descriptor. -1: it is one, of a
 * disk that is not a flat file (ERR_NOT_AVAILABLE). */
MUST_CHECK int folder_descriptor_parse(const char *text, size_t size, struct folder_descriptor *out,
                                       struct error *err);
/* `encodings`: how often dcPath and dsName are percent-encoded (vCenter wants 2, ESXi 1). */
struct folder_place {
    const char *origin;
    const char *datacenter_path; /* "": the server finds it by the datastore */
    const char *datastore;
};
MUST_CHECK int folder_url(const struct folder_place *place, const char *path, int encodings,
                          char **out, struct error *err);
/* "[ds] dir/x.vmdk" to "ds" and "dir/x.vmdk". ERR_PROTOCOL: anything else, or a path with "..". */
MUST_CHECK int folder_path_split(const char *source_path, char **out_datastore, char **out_path,
                                 struct error *err);
/* "dir/x.vmdk" to "dir/x-flat.vmdk"; NULL for a delta's name (x-000001.vmdk) or another suffix. */
char *folder_flat_path(const char *path);

struct folder_range {
    uint64_t first, last;
    uint64_t total; /* 0: the server does not tell */
};
/* Value of a Content-Range header. */
MUST_CHECK bool folder_range_parse(const char *text, struct folder_range *out);

#endif
