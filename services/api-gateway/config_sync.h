/* What the configuration file says about providers and webhooks, brought into their tables at start
 * and at SIGHUP (origin 'config'). Secrets are sealed before they are stored. A section that is
 * absent leaves its rows alone: gateways may run from files without it. */
#ifndef GATEWAY_CONFIG_SYNC_H
#define GATEWAY_CONFIG_SYNC_H

#include "common/config_schema.h"
#include "common/db.h"
#include "common/seal.h"

/* Appends what is wrong with the sections; for --check-config and the start. */
void config_sync_check(const struct config_file *file, struct strbuf *problems);
/* Both sections in one transaction; logs "providers_synced" and "webhooks_synced" when something
 * changed. master NULL: the sections must not hold secrets (ERR_INVALID). */
MUST_CHECK int config_sync(const struct config_file *file, const struct seal_master *master,
                           struct db *db, struct error *err);

/* provider_config.c, webhook_config.c: the two halves, inside the caller's transaction. */
void provider_config_check(const json_t *section, struct strbuf *problems);
MUST_CHECK int provider_config_sync(const json_t *section, const struct seal_master *master,
                                    struct db *db, struct error *err);
/* template_files.c: templates of files, all anew. */
MUST_CHECK int template_files_sync(const struct templates_config *config, struct db *db,
                                   struct error *err);
void webhook_config_check(const json_t *section, struct strbuf *problems);
MUST_CHECK int webhook_config_sync(const json_t *section, const struct seal_master *master,
                                   struct db *db, struct error *err);

#endif
