/* exporter-vsphere: the exporter engine with vSphere as its source. */
#include <libxml/parser.h>

#include "services/exporter/engine/exporter.h"
#include "services/exporter/providers/vsphere/vsphere.h"

int main(int argc, char **argv)
{
    xmlInitParser(); /* before any thread: libxml2's globals are made here */
    return exporter_main(argc, argv, &provider_vsphere);
}
