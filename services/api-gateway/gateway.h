/* The api-gateway process: what all its parts share. Built once in gateway.c, read-only while
 * requests run, except for what is marked with its lock. */
#ifndef GATEWAY_GATEWAY_H
#define GATEWAY_GATEWAY_H

#include <jansson.h>

#include "common/bus.h"
#include "common/config_schema.h"
#include "common/db.h"
#include "common/redis.h"
#include "common/seal.h"
#include "common/service.h"

struct hub; /* live events: hub.h */

struct gateway {
    struct service *service;
    struct daemon_config daemon;
    struct database_config database;
    struct redis_config redis;
    struct bus_config bus;
    struct export_config export;
    struct config_list bases; /* base_path, then allowed_paths */
    struct hyper2kvm_config hyper2kvm;
    struct libvirt_config libvirt;
    struct hooks_config hooks;
    struct templates_config templates;
    struct security_config security;
    struct secrets_config secrets;
    struct retry_config retry;
    struct scheduler_config scheduler; /* its maintenance_windows */
    json_t *roles;             /* section "roles": role -> permissions, over the table's; or null */
    struct bus_pusher *pusher; /* JobsChanged; thread-safe */
    struct seal_master
        *master; /* sealing keys are derived from it; NULL: secrets.master_key unset */
    struct hub *hub;
    int64_t started_ms; /* monotonic */
};

extern const struct service_description gateway_description; /* for main.c */

#define GATEWAY_DB_ROLE "hypersdk_gateway"
/* A connection for a thread of one's own; request handlers have call->db. */
struct db *gateway_db_new(const struct gateway *gateway, const char *purpose);

/* Wakes the scheduler; may be lost, it polls as well. job_id may be NULL. */
void gateway_poke(struct gateway *gateway, const char *job_id);

#endif
