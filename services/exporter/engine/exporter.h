/* An exporter process: the worker loop around one provider. Its task kinds are in docs/tasks.md. */
#ifndef EXPORTER_EXPORTER_H
#define EXPORTER_EXPORTER_H

#include "services/exporter/engine/provider.h"

int exporter_main(int argc, char **argv, const struct provider *provider);

#endif
