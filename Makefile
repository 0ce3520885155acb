# The whole suite with plain make. `make help` lists the targets.
#   make            build every binary into build/release/bin
#   make demo       install what is missing, start everything, export a VM end to end
#   make test       install what tests need, build, run unit, service and end-to-end tests
SHELL := /bin/bash
.DEFAULT_GOAL := all
VARIANT ?= $(if $(SAN),$(SAN),release)
B := build/$(VARIANT)

include mk/flags.mk
include mk/build.mk
include mk/peers.mk
include mk/check.mk
include mk/sim.mk
include mk/bench.mk
include mk/lint.mk
include mk/run.mk
-include mk/fuzz.mk

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 20
