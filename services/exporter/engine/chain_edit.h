/* Changing a chain of restore points (chain.h): pruning and flattening. The caller holds the
 * exclusive lock of the VM's points.
 *
 * Both are journalled (<root>/.hypersdk-chain.<vm>.journal) and may be ended at any moment: every
 * point but the one that is being removed reads right all the time, and chain_recover() goes on.
 *
 * prune: the oldest point is merged into the next one, in its own file (qcow2_merge), which then
 * takes the place of the next one's file: nothing that stands on that needs to be changed. Then the
 * next one's records are brought up to date and the oldest is removed.
 * flatten: a point's images are rewritten without backing file, beside the old ones, and renamed
 * over them. */
#ifndef EXPORTER_CHAIN_EDIT_H
#define EXPORTER_CHAIN_EDIT_H

#include "common/seal.h"
#include "services/exporter/engine/chain.h"

struct chain_edit { /* borrowed */
    const char *root;
    const char *vm_id;
    const struct seal_key *evidence_key; /* NULL: changed points lose their evidence */
    /* Asked before writing. */
    int (*go_on)(void *arg, struct error *err);
    /* A point is about to go, for good. May be NULL. */
    int (*removing)(void *arg, const char *export_id, struct error *err);
    void *arg;
};

/* Finishes what was begun. */
MUST_CHECK int chain_recover(const struct chain_edit *edit, struct error *err);
/* Merges the oldest of at least two points into the next. */
MUST_CHECK int chain_prune_oldest(const struct chain_edit *edit, const struct chain *chain,
                                  struct error *err);
/* Makes the youngest point of the chain stand on nothing. */
MUST_CHECK int chain_flatten(const struct chain_edit *edit, const struct chain *chain,
                             struct error *err);

#endif
