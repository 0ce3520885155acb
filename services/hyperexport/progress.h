/* One line that tells how far a job is, from the gateway's progress object (rest-api.md 3.5). */
#ifndef HYPEREXPORT_PROGRESS_H
#define HYPEREXPORT_PROGRESS_H

#include <jansson.h>

#include "common/strbuf.h"

#define PROGRESS_LINE_BYTES_MAX 1024
#define PROGRESS_BAR_CELLS      16 /* all of the line fits into 80 columns */

/* With a bar, for terminals: "exporting  [#####.....]  45.0% 24.1 MB of 512.0 MB  31.5 MB/s
 * ETA 8s": bytes that came from the source, of the disks' size; cut at columns. */
void progress_bar(struct strbuf *out, const json_t *progress, size_t columns, bool utf8);
/* Without, for logs: the same facts as words. */
void progress_words(struct strbuf *out, const json_t *progress);

/* What limits the transfer, in words: "source", "disk", "cpu", "rate limit"; "" = not told. */
const char *progress_limit(const json_t *progress);

#endif
