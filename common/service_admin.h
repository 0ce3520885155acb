/* The admin port of a process: /healthz, /readyz, /metrics. Used by service.c only. */
#ifndef COMMON_SERVICE_ADMIN_H
#define COMMON_SERVICE_ADMIN_H

#include "common/service.h"

/* admin_address: host:port; *out_port: the actual port. */
MUST_CHECK int service_admin_start(struct service *service, const char *admin_address,
                                   uint16_t *out_port, struct error *err);

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
