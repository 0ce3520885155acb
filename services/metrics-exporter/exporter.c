/* See exporter.h. */
#include "exporter.h"

#include <string.h>

#include "common/clock.h"
#include "common/db.h"
#include "common/log.h"
#include "common/service_heartbeat.h"
#include "common/small_http.h"
#include "page.h"

#define ROLE         "hypersdk_metrics"
#define FRESH_MS     1000
#define STOP_POLL_MS INT32_MAX

struct exporter {
    pthread_mutex_t mutex; /* guards all below: one scrape reads, the others take its page */
    struct db *db;
    struct strbuf page;
    int64_t read_ms; /* monotonic; 0: never */
    struct log_throttle throttle;
};

static struct database_config database;
static struct metrics_config metrics;

int exporter_configure(const struct config_file *file, struct strbuf *problems, struct error *err)
{
    struct error second = ERROR_NONE;
    int rv = config_section(file, "database", &database, problems, err);

    if (config_section(file, "metrics", &metrics, problems, &second) == 0)
        return rv;
    if (rv == 0)
        *err = second;
    return -1;
}

static int refresh(struct exporter *exporter, struct error *err)
{
    if (exporter->read_ms != 0 && clock_mono_ms() - exporter->read_ms < FRESH_MS)
        return 0;
    strbuf_reset(&exporter->page);
    exporter->read_ms = 0;
    if (db_check(exporter->db, err) < 0 || page_render(exporter->db, &exporter->page, err) < 0)
        return -1;
    exporter->read_ms = clock_mono_ms();
    return 0;
}

static bool on_page(void *arg, const char *path, struct small_http_answer *answer)
{
    struct exporter *exporter = arg;
    struct error err = ERROR_NONE;
    uint64_t suppressed = 0;

    if (strcmp(path, "/metrics") != 0) {
        if (strcmp(path, "/") != 0)
            return false;
        strbuf_add(&answer->body, "hypersdk metrics: /metrics\n");
        return true;
    }
    LOCK_SCOPE(&exporter->mutex);
    if (refresh(exporter, &err) < 0) {
        answer->status = 503;
        strbuf_addf(&answer->body, "%s\n", err.message);
        if (log_throttle_pass(&exporter->throttle, err.message, &suppressed))
            LOG(WARN, "scrape_failed", F_ERR(&err), F_U64("suppressed", suppressed));
        return true;
    }
    answer->content_type = SMALL_HTTP_METRICS;
    strbuf_add_bytes(&answer->body, exporter->page.data, exporter->page.length);
    return true;
}

int exporter_run(struct service *service, struct error *err)
{
    static struct exporter exporter; /* the server's threads hold it until the end */
    uint16_t port = 0;

    (void)pthread_mutex_init(&exporter.mutex, NULL);
    exporter.db = db_new(&database, ROLE, service_instance(service));
    strbuf_init(&exporter.page, SMALL_HTTP_BODY_BYTES_MAX);
    if (service_heartbeat_start(service, &database, ROLE, err) < 0 ||
        small_http_start("metrics.address", metrics.address, on_page, &exporter, &port, err) < 0)
        return -1;
    LOG(INFO, "metrics_listening", F_STR("address", metrics.address), F_U64("port", port));
    while (!service_wait(service, STOP_POLL_MS)) {
    }
    return 0;
}
