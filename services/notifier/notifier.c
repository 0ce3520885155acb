/* See notifier.h. */
#include "services/notifier/notifier.h"

#include "common/bus.h"
#include "common/clock.h"
#include "common/db.h"
#include "common/log.h"
#include "common/service_heartbeat.h"
#include "services/notifier/store.h"

#define ROLE           "hypersdk_notifier"
#define POLL_MS        1500 /* a lost announcement costs this much */
#define POLL_JITTER_MS 500
#define SWEEP_MS       3600000
#define STEP_MS        20

static struct notifier_config config;

int notifier_configure(const struct config_file *file, struct strbuf *problems, struct error *err)
{
    const struct {
        const char *name;
        void *out;
    } sections[] = {
        {"database", &config.database},
        {"bus", &config.bus},
        {"secrets", &config.secrets},
        {"webhooks", &config.webhooks},
    };
    int rv = 0;

    for (size_t i = 0; i < ARRAY_LEN(sections); i++) {
        struct error why = ERROR_NONE;
        if (config_section(file, sections[i].name, sections[i].out, problems, &why) == 0)
            continue;
        if (rv == 0)
            *err = why;
        rv = -1;
    }
    return rv;
}

static void on_announcement(void *arg, const bus_envelope *envelope)
{
    struct notifier *notifier = arg;

    (void)envelope; /* which job does not matter: the outbox tells */
    wake_all(&notifier->outbox);
}

static void on_gap(void *arg)
{
    struct notifier *notifier = arg;

    wake_all(&notifier->outbox);
}

/* Everything that waits in the outbox. */
static int expand_all(const struct notifier *notifier, struct db *db, size_t *out_rows,
                      struct error *err)
{
    size_t rows = STORE_EXPAND_MAX;

    *out_rows = 0;
    while (rows == STORE_EXPAND_MAX && !service_stopping(notifier->service)) {
        if (store_expand(db, notifier->config->webhooks.enabled, &rows, err) < 0)
            return -1;
        *out_rows += rows;
    }
    return 0;
}

static void expand_until_stopped(struct notifier *notifier, struct db *db)
{
    struct log_throttle throttle = {0};
    int64_t sweep_ms = clock_mono_ms();
    uint64_t seen = 0;

    while (!service_stopping(notifier->service)) {
        struct error err = ERROR_NONE;
        uint64_t suppressed = 0;
        size_t rows = 0;
        int rv = expand_all(notifier, db, &rows, &err);

        if (rv == 0 && clock_mono_ms() >= sweep_ms) {
            rv = store_sweep(db, &err);
            sweep_ms = clock_mono_ms() + SWEEP_MS;
        }
        if (rows > 0)
            wake_all(&notifier->deliveries);
        if (rv < 0 && log_throttle_pass(&throttle, err.message, &suppressed))
            LOG(WARN, "outbox_unavailable", F_ERR(&err), F_U64("suppressed", suppressed));
        wake_wait(&notifier->outbox, &seen,
                  POLL_MS + clock_backoff_ms(0, POLL_JITTER_MS, POLL_JITTER_MS));
    }
}

/* Sleeping threads look at the clock only once per poll: stopping wakes them. */
static void *on_stop_thread(void *arg)
{
    struct notifier *notifier = arg;

    while (!service_wait(notifier->service, INT32_MAX)) {
    }
    wake_all(&notifier->outbox);
    wake_all(&notifier->deliveries);
    return NULL;
}

static int start_thread(void *(*fn)(void *), struct notifier *notifier, struct error *err)
{
    pthread_t thread;
    int rv = pthread_create(&thread, NULL, fn, notifier);

    if (rv != 0)
        return error_set_errno(err, rv, "thread cannot be started");
    (void)pthread_detach(thread);
    return 0;
}

static int start_senders(struct notifier *notifier, struct error *err)
{
    size_t count = notifier->config->database.pool_size;

    if (count > NOTIFIER_SENDERS_MAX)
        count = NOTIFIER_SENDERS_MAX;
    for (size_t i = 0; notifier->config->webhooks.enabled && i < count; i++) {
        (void)atomic_fetch_add(&notifier->senders, 1);
        if (start_thread(notifier_sender, notifier, err) < 0)
            return -1;
    }
    return start_thread(on_stop_thread, notifier, err);
}

/* Running attempts may finish until the drain is over; then they are handed back. */
static void drain(struct notifier *notifier)
{
    int64_t deadline_ms = clock_mono_ms() + service_drain_ms(notifier->service);

    while (atomic_load(&notifier->senders) > 0) {
        if (clock_mono_ms() >= deadline_ms)
            atomic_store(&notifier->abandon, true);
        clock_sleep_ms(STEP_MS);
    }
}

int notifier_run(struct service *service, struct error *err)
{
    static const char *const topics[] = {"job", NULL};
    static struct notifier notifier; /* bus threads hold it until the end */
    auto_db *db = db_new(&config.database, ROLE, service_instance(service));

    notifier.service = service;
    notifier.config = &config;
    wake_init(&notifier.outbox);
    wake_init(&notifier.deliveries);
    if (service_heartbeat_start(service, &config.database, ROLE, err) < 0 ||
        bus_subscriber_start(&config.bus, topics, on_announcement, on_gap, &notifier, err) < 0)
        return -1;
    if (!service_wait_schema(service, db))
        return 0;
    if (start_senders(&notifier, err) < 0)
        return -1;
    if (!config.webhooks.enabled)
        LOG(INFO, "webhooks_off");
    expand_until_stopped(&notifier, db);
    drain(&notifier);
    return 0;
}
