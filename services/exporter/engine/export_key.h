/* The key of encrypted exports: a file of the exporter's export.encryption_key_dir, or a passphrase
 * that a task carries sealed for the audience SEAL_EXPORTS. */
#ifndef EXPORTER_EXPORT_KEY_H
#define EXPORTER_EXPORT_KEY_H

#include "common/crypt_file.h"
#include "services/exporter/engine/session.h"

/* Member of a task's spec: hex. The name makes json_mask_secrets leave it out of every record. */
#define EXPORT_SPEC_PASSPHRASE "sealed_passphrase"

/* <name>.key. ERR_NOT_AVAILABLE: no directory is configured; ERR_NOT_FOUND, ERR_DENIED (mode),
 * ERR_INVALID (no plain name, too short). */
MUST_CHECK int export_key_load(const struct exporter *exporter, const char *name,
                               struct crypt_key **out, struct error *err);
/* ERR_DENIED: sealed for another key; ERR_NOT_FOUND: this process has none; ERR_INVALID. */
MUST_CHECK int export_key_unseal(const struct exporter *exporter, const char *sealed_hex,
                                 struct crypt_key **out, struct error *err);

#endif
