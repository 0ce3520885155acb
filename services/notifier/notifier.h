/* The notifier process: one expander (the main thread) turns outbox rows into deliveries, several
 * senders each claim one delivery at a time and POST it. Any number of notifiers may run: rows are
 * claimed with SKIP LOCKED and a time limit. A killed notifier's delivery is sent again when its
 * claim is over, so a receiver may see one twice; delivery_id is the same then. */
#ifndef NOTIFIER_NOTIFIER_H
#define NOTIFIER_NOTIFIER_H

#include <stdatomic.h>

#include "common/config_schema.h"
#include "common/service.h"

#define NOTIFIER_SENDERS_MAX 16

struct notifier_config {
    struct database_config database;
    struct bus_config bus;
    struct secrets_config secrets;
    struct webhooks_config webhooks;
};

/* Wakes sleeping threads; every wait also ends by itself (a lost message costs a poll). */
struct wake {
    pthread_mutex_t mutex; /* guards count */
    pthread_cond_t changed;
    uint64_t count;
};
void wake_init(struct wake *wake);
void wake_all(struct wake *wake);
/* Until wake_all was called after *seen, or ms are over; *seen is brought up to date. */
void wake_wait(struct wake *wake, uint64_t *seen, int64_t ms);

struct notifier {
    struct service *service;
    const struct notifier_config *config;
    struct wake outbox;     /* something happened: expand */
    struct wake deliveries; /* there may be something to send */
    atomic_bool abandon;    /* the drain is over: running attempts stop */
    atomic_size_t senders;  /* running */
};

int notifier_configure(const struct config_file *file, struct strbuf *problems, struct error *err);
int notifier_run(struct service *service, struct error *err);
/* A sender thread; arg is the struct notifier. */
void *notifier_sender(void *arg);

#endif
