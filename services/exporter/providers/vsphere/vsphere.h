/* VMware vSphere (vCenter and ESXi) as a source: SOAP for inventory and snapshots, HTTPS range
 * reads of flat disk files below /folder for the bytes. */
#ifndef PROVIDER_VSPHERE_H
#define PROVIDER_VSPHERE_H

#include "services/exporter/engine/provider.h"

extern const struct provider provider_vsphere;

#endif
