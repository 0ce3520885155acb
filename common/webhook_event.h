/* Which webhooks want an event: the same for who writes the outbox and for who makes deliveries of
 * it. What nobody wants when it happens is in no outbox. */
#ifndef COMMON_WEBHOOK_EVENT_H
#define COMMON_WEBHOOK_EVENT_H

/* SQL condition on a row of webhooks w. event: an expression; NULL: nobody wants it. */
#define WEBHOOK_WANTS(event)                                                             \
    "w.enabled AND (" event " = ANY (w.events) OR (" event " IS NOT NULL AND '*' = ANY " \
    "(w.events)))"

#endif
