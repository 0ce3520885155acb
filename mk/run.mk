# The suite on this machine; see deploy/local and deploy/demo.
PACKAGES := deploy/local/packages.sh
JOBS := -j$(shell nproc 2>/dev/null || echo 2)

.PHONY: run demo stop status packages
# Built by a make of its own: before the packages are there, this one knows no library.
packages: ## install the Debian packages that build, runner and demo need
	@$(PACKAGES) build run demo
run: packages ## start everything on 127.0.0.1:8080 (AUTH=1: with login, PORT=n)
	@$(MAKE) --no-print-directory $(JOBS) all peers
	@AUTH=$(AUTH) PORT=$(PORT) VARIANT=$(VARIANT) deploy/local/run.sh
demo: packages ## export a VM end to end and check what was written
	@$(MAKE) --no-print-directory $(JOBS) all peers
	@AUTH=$(AUTH) PORT=$(PORT) VARIANT=$(VARIANT) deploy/demo/demo.sh
stop: ## end what run or demo started; data stays in ./run
	@VARIANT=$(VARIANT) deploy/local/down.sh
status: ## what runs, and what it is doing
	@VARIANT=$(VARIANT) deploy/local/status.sh
