# Peers of tests and of the demo, from Debian packages only.
GO := $(firstword $(wildcard /usr/lib/go-1.19/bin/go) go)
VSPHERE_SIM := build/peers/vsphere-sim
OVF_READER := build/peers/ovf-reader
# Debian's Go libraries are laid out for the GOPATH mode.
$(VSPHERE_SIM) $(OVF_READER): build/peers/%: tests/peers/%/main.go
	@mkdir -p build/peers/gopath/src
	@ln -sfn $(CURDIR)/tests/peers/$* build/peers/gopath/src/$*
	@echo "go $<"
	@GO111MODULE=off GOPATH=$(CURDIR)/build/peers/gopath:/usr/share/gocode GOFLAGS= \
	 GOCACHE=$(CURDIR)/build/peers/gocache $(GO) build -o $@ $*
.PHONY: peers test-peers
peers: $(VSPHERE_SIM) ## build the vSphere simulator of demo and tests
test-peers: peers $(OVF_READER) ## and the programs that only tests use
