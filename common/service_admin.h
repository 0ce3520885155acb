/* The admin port of a process: /healthz, /readyz, /metrics. Used by service.c only. */
#ifndef COMMON_SERVICE_ADMIN_H
#define COMMON_SERVICE_ADMIN_H

#include "common/service.h"

struct service_admin; /* never freed: it lives as long as the process */

/* admin_address: host:port. */
MUST_CHECK int service_admin_start(struct service *service, const char *admin_address,
                                   struct service_admin **out, struct error *err);
uint16_t service_admin_listening_port(const struct service_admin *admin);
/* See service_set_ready. */
struct readiness;
struct readiness *readiness_new(void);
void readiness_set(struct readiness *readiness, const char *condition, bool ready,
                   const char *reason);
struct readiness *service_readiness(const struct service *service);
/* JSON of the conditions; *out_ready is the AND. */
void readiness_render(struct readiness *readiness, bool stopping, struct strbuf *out,
                      bool *out_ready);

#endif
