/* The list of output formats. */
#include "services/exporter/formats/sink.h"

#include <string.h>

static const struct sink_format *const formats[] = {&sink_raw, &sink_qcow2, &sink_vmdk, &sink_zst};

const struct sink_format *sink_format_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (strcmp(formats[i]->name, name) == 0)
            return formats[i];
    }
    return NULL;
}
