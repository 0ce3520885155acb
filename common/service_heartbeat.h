/* The row of a process in table `services`, which /status reads: processes without a lease
 * (gateway, scheduler, notifier, metrics-exporter) have no other sign of life there. */
#ifndef COMMON_SERVICE_HEARTBEAT_H
#define COMMON_SERVICE_HEARTBEAT_H

#include "common/config_schema.h"
#include "common/service.h"

struct db;

#define SERVICE_HEARTBEAT_MS      5000
#define SERVICE_HEARTBEAT_GONE_MS 15000 /* three missed: the process counts as gone */

/* Starts a thread with a connection of its own that stores (name, instance, now()) every
 * SERVICE_HEARTBEAT_MS. It owns the readiness condition "database": true while the server answers
 * and the schema is the build's. role as in db_new; config is copied. */
MUST_CHECK int service_heartbeat_start(struct service *service,
                                       const struct database_config *config, const char *role,
                                       struct error *err);

/* Until that is so for db's server; false: the process stops first. Silent: the condition tells
 * why. For loops that would only fail, each in its own words, while the scheduler is still to come.
 */
MUST_CHECK bool service_wait_schema(const struct service *service, struct db *db);

#endif
