/* metrics-exporter: the suite's figures from PostgreSQL for Prometheus. */
#include "exporter.h"

int main(int argc, char **argv)
{
    static const struct service_description description = {
        .name = "metrics-exporter",
        .purpose = "serves the suite's figures to Prometheus",
        .admin_key = "metrics_exporter",
        .configure = exporter_configure,
        .run = exporter_run,
    };

    return service_main(argc, argv, &description);
}
