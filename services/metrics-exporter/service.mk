BINARIES += metrics-exporter
metrics-exporter_DIRS := services/metrics-exporter
