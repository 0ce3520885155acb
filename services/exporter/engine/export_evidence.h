/* Signed evidence of an export (docs/evidence.md): evidence.json says what was read from where,
 * when, by which tool, and what every file holds; evidence.sig is the Ed25519 signature of its
 * bytes. */
#ifndef EXPORTER_EXPORT_EVIDENCE_H
#define EXPORTER_EXPORT_EVIDENCE_H

#include "common/seal.h"
#include "services/exporter/engine/export_record.h"

#define EVIDENCE_NAME      "evidence.json"
#define EVIDENCE_SIGNATURE "evidence.sig"
#define EVIDENCE_VERSION   1

struct export_run;

/* Writes both as partial files; the last files before the plan. Nothing without a key. */
MUST_CHECK int export_evidence_write(struct export_run *run, struct error *err);
/* Of an export in dir whose files were changed since: writes both anew and brings document's
 * "files" up to date; without a key they are removed. Nothing when the document names no evidence.
 */
MUST_CHECK int export_evidence_renew(const char *dir, json_t *document, const struct seal_key *key,
                                     struct error *err);
/* The evidence in dir against its signature and against the record: ERR_CORRUPT says what does not
 * fit. ERR_NOT_FOUND: the record names no evidence. */
MUST_CHECK int export_evidence_check(const struct export_record *record, const char *dir,
                                     const struct seal_key *key, struct error *err);

#endif
