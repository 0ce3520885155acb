/* notifier: sends webhooks for what happened to jobs. */
#include "services/notifier/notifier.h"

int main(int argc, char **argv)
{
    static const struct service_description description = {
        .name = "notifier",
        .purpose = "sends webhooks from the outbox of job events",
        .admin_key = "notifier",
        .configure = notifier_configure,
        .run = notifier_run,
    };

    return service_main(argc, argv, &description);
}
