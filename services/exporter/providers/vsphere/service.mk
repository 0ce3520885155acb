BINARIES += exporter-vsphere
exporter-vsphere_DIRS := services/exporter/providers/vsphere services/exporter/engine \
                         services/exporter/formats services/exporter/targets \
                         services/exporter/targets/s3 services/exporter/targets/sftp
