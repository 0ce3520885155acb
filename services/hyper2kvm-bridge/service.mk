BINARIES += hyper2kvm-bridge
# formats: the manifest and the domain XML are written by the same code that exports use.
hyper2kvm-bridge_DIRS := services/hyper2kvm-bridge services/hyper2kvm-bridge/libvirt services/exporter/formats \
                         services/exporter/targets services/exporter/engine
