/* An export that stands in a directory, read back in full and compared with what it says of itself:
 * export.json, the descriptor and its .mf, the leaves, every image. Of an OVF package of someone
 * else (no export.json) the descriptor and the digests of its .mf. */
#ifndef EXPORTER_EXPORT_CHECK_H
#define EXPORTER_EXPORT_CHECK_H

#include <jansson.h>
#include <stdatomic.h>

#include "common/crypt_file.h"
#include "services/exporter/engine/session.h"

#define EXPORT_PROBLEMS_MAX 200 /* in the list; more are counted */

struct export_check_options {
    const char *dir;
    unsigned int threads;               /* readers of one image */
    const struct exporter *exporter;    /* its evidence_key (NULL there: signatures are not checked)
                                           and key files of encrypted exports */
    const struct crypt_key *passphrase; /* of an encrypted export; NULL: none was given */
    const atomic_bool *stopped;
    /* Bytes read of bytes to be read, and the file that is next. May be NULL. */
    void (*progress)(void *arg, uint64_t done, uint64_t total, const char *file);
    void *arg;
};

/* The content of an encrypted export is checked when its key is there; else its encrypted files
 * are, and the result says so. What was found, as the result of a task "verify" (docs/tasks.md): a
 * new reference, also when the export is damaged (member "intact" is false then). ERR_NOT_FOUND: no
 * export stands in dir. ERR_CORRUPT: export.json itself is not to be believed. ERR_DENIED: wrong
 * passphrase. ERR_CANCELLED: *stopped. */
MUST_CHECK int export_check(const struct export_check_options *options, json_t **out,
                            struct error *err);
/* The first problem of a result in one line, or "" when it is intact. Borrowed from the result. */
const char *export_check_summary(const json_t *result);

#endif
