/* See service_admin.h. */
#include "common/service_admin.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/small_http.h"

struct service_admin { /* lives as long as the process */
    struct service *service;
    int64_t started_ms;
};

static void answer_health(const struct service_admin *admin, struct small_http_answer *answer)
{
    struct strbuf *body = &answer->body;

    answer->content_type = SMALL_HTTP_JSON;
    strbuf_addf(body, "{\"status\":\"ok\",\"service\":\"%s\",\"version\":\"%s\",\"instance\":\"",
                service_name(admin->service), HYPERSDK_VERSION);
    strbuf_add_json(body, service_instance(admin->service));
    strbuf_addf(body, "\",\"uptime_seconds\":%lld}\n",
                (long long)((clock_mono_ms() - admin->started_ms) / 1000));
}

static void answer_ready(const struct service_admin *admin, struct small_http_answer *answer)
{
    bool ready = false;

    answer->content_type = SMALL_HTTP_JSON;
    readiness_render(service_readiness(admin->service), service_stopping(admin->service),
                     &answer->body, &ready);
    if (!ready)
        answer->status = 503;
}

static bool on_page(void *arg, const char *path, struct small_http_answer *answer)
{
    const struct service_admin *admin = arg;

    if (strcmp(path, "/healthz") == 0) {
        answer_health(admin, answer);
    } else if (strcmp(path, "/readyz") == 0) {
        answer_ready(admin, answer);
    } else if (strcmp(path, "/metrics") == 0) {
        answer->content_type = SMALL_HTTP_METRICS;
        metrics_render(&answer->body);
    } else {
        return false;
    }
    return true;
}

int service_admin_start(struct service *service, const char *admin_address, uint16_t *out_port,
                        struct error *err)
{
    struct service_admin *admin = xcalloc(1, sizeof *admin);

    admin->service = service;
    admin->started_ms = clock_mono_ms();
    if (small_http_start("admin", admin_address, on_page, admin, out_port, err) < 0) {
        free(admin);
        return -1;
    }
    LOG(INFO, "admin_listening", F_STR("address", admin_address), F_U64("port", *out_port));
    return 0;
}
