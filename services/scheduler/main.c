/* scheduler: leases tasks to workers and keeps the truth about jobs. */
#include "scheduler.h"

int main(int argc, char **argv)
{
    static const struct service_description description = {
        .name = "scheduler",
        .purpose = "turns jobs into leases for workers; one leads, others stand by",
        .admin_key = "scheduler",
        .configure = scheduler_configure,
        .run = scheduler_run,
    };

    return service_main(argc, argv, &description);
}
