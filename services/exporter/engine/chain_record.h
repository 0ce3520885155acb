/* Bringing the records of a restore point up to date after its images were changed. */
#ifndef EXPORTER_CHAIN_RECORD_H
#define EXPORTER_CHAIN_RECORD_H

#include "common/seal.h"
#include "services/exporter/engine/export_record.h"

/* The images in dir stand on nothing any more: sizes and digests of the images (read in full),
 * manifests, checksums.txt, evidence, and export.json, last. Repeatable. key NULL: evidence, which
 * would not fit any more, is removed. */
MUST_CHECK int chain_record_refresh(const char *dir, const struct seal_key *key, struct error *err);

#endif
