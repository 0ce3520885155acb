/* Is libvirt there? Asked now and then, so that /capabilities tells the truth. The connection stays
 * open: the mock driver (test:///default) forgets all domains when its last one is closed. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "connection.h"
#include "import.h"

#define PROBE_MS 10000

static struct {
    pthread_mutex_t mutex; /* guards known, error */
    const struct libvirt_config *config;
    bool known;
    bool available;
    char error[ERROR_MESSAGE_MAX];
} probe = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void note(const struct error *why)
{
    bool available = why->code == ERR_NONE;
    bool changed;

    (void)pthread_mutex_lock(&probe.mutex);
    changed = !probe.known || probe.available != available;
    probe.known = true;
    probe.available = available;
    (void)snprintf(probe.error, sizeof probe.error, "%s", why->message);
    (void)pthread_mutex_unlock(&probe.mutex);
    if (!changed)
        return;
    if (available) {
        LOG(INFO, "libvirt_reachable", F_STR("uri", probe.config->uri));
    } else {
        LOG(WARN, "libvirt_unreachable", F_STR("uri", probe.config->uri), F_ERR(why));
    }
}

static void *probe_main(void *arg)
{
    virConnectPtr connection = NULL;

    (void)arg;
    for (;;) {
        struct error why = ERROR_NONE;
        if (connection != NULL && virConnectIsAlive(connection) != 1) {
            hv_close(connection);
            connection = NULL;
        }
        if (connection == NULL &&
            hv_open(probe.config->uri, probe.config->timeout_ms, &connection, &why) < 0)
            connection = NULL;
        note(&why);
        clock_sleep_ms(PROBE_MS);
    }
    return NULL;
}

void import_probe_start(const struct libvirt_config *config)
{
    pthread_t thread;

    probe.config = config;
    if (pthread_create(&thread, NULL, probe_main, NULL) == 0)
        (void)pthread_detach(thread);
}

json_t *import_probe_record(void)
{
    json_t *record = json_object();

    LOCK_SCOPE(&probe.mutex);
    json_set_text(record, "uri", probe.config->uri);
    json_put(record, "available", json_boolean(probe.available));
    json_set_text(record, "error", probe.known ? probe.error : "libvirt was not asked yet");
    return record;
}
