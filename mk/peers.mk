# Peers of tests and of the demo, from Debian packages only.
GO := $(firstword $(wildcard /usr/lib/go-1.19/bin/go) go)
VSPHERE_SIM := build/peers/vsphere-sim
# Debian's Go libraries are laid out for the GOPATH mode.
$(VSPHERE_SIM): tests/peers/vsphere-sim/main.go
	@mkdir -p build/peers/gopath/src
	@ln -sfn $(CURDIR)/tests/peers/vsphere-sim build/peers/gopath/src/vsphere-sim
	@echo "go $<"
	@GO111MODULE=off GOPATH=$(CURDIR)/build/peers/gopath:/usr/share/gocode GOFLAGS= \
	 GOCACHE=$(CURDIR)/build/peers/gocache $(GO) build -o $@ vsphere-sim
.PHONY: peers
peers: $(VSPHERE_SIM) ## build the vSphere simulator of demo and tests
