# Tests and lint. Everything here works on what mk/build.mk declares.
# cmocka programs: tests/unit/<path>/test_x.c -> build/<variant>/unit/<path>/test_x
UNIT_SRC := $(shell find tests/unit -name 'test_*.c' 2>/dev/null)
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(B)/unit/%)
UNIT_LIBS = $(foreach d,$(LIB_DIRS),$(call lib_of,$(d)))
# Folders whose symbols would clash in one program (each binary has its own) are linked by path.
$(B)/unit/%: $(B)/obj/tests/unit/%.o $(UNIT_LIBS)
	@mkdir -p $(@D)
	@echo "ld $@"
	@$(CC) $(LINK) -o $@ $< -Wl,--start-group $(UNIT_LIBS) -Wl,--end-group $(PKG_LIBS) -lcmocka
.SECONDARY: $(UNIT_SRC:%.c=$(B)/obj/%.o)

# Programs that service tests drive: tests/helpers/x.c -> build/<variant>/helpers/x
HELPERS := $(patsubst tests/helpers/%.c,$(B)/helpers/%,$(wildcard tests/helpers/*.c))
$(B)/helpers/%: $(B)/obj/tests/helpers/%.o $(call lib_of,common)
	@mkdir -p $(@D)
	@echo "ld $@"
	@$(CC) $(LINK) -o $@ $< -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(PKG_LIBS)
$(B)/helpers/upload_driver: $(foreach d,targets targets/s3 targets/sftp formats engine,$(call lib_of,services/exporter/$(d)))
.SECONDARY: $(HELPERS:$(B)/helpers/%=$(B)/obj/tests/helpers/%.o)

# Each provider's vtable behind a small command loop, for tests of what providers promise.
DRIVERS := $(PROVIDER_KINDS:%=$(B)/contract/driver-%)
$(DRIVERS:$(B)/contract/%=$(B)/obj/tests/contract/%.o): \
		$(B)/obj/tests/contract/driver-%.o: tests/contract/driver.c | $(GEN_H)
	@mkdir -p $(@D)
	@echo "cc $< ($*)"
	@$(CC) $(CFLAGS_ALL) $(WARN) -DPROVIDER=provider_$* -c $< -o $@
define driver_rules
$(B)/contract/driver-$(1): $(B)/obj/tests/contract/driver-$(1).o \
		$(foreach d,$(exporter-$(1)_DIRS) common,$(call lib_of,$(d)))
	@mkdir -p $$(@D)
	@echo "ld $$@"
	@$$(CC) $$(LINK) -o $$@ $$< -Wl,--start-group $$(filter %.a,$$^) -Wl,--end-group $$(PKG_LIBS) $(exporter-$(1)_LIBS)
endef
$(foreach k,$(PROVIDER_KINDS),$(eval $(call driver_rules,$(k))))
.PHONY: drivers
drivers: $(DRIVERS)

.PHONY: test test-unit test-service test-build unit-programs
unit-programs: $(UNIT_BIN)
test-unit: $(UNIT_BIN) ## build and run the unit tests of this variant
	@/usr/bin/python3 tests/run.py unit:$(VARIANT)
# One part of `make test` at a time: make test-service, tests/run.py --help
test-service: all test-peers drivers $(HELPERS) ## contract, service and end-to-end tests with the binaries of this variant
	@/usr/bin/python3 tests/run.py contract service e2e
test-build: all test-peers drivers $(HELPERS)
	@$(MAKE) --no-print-directory SAN=asan unit-programs
test: ## install what tests need, build, run everything; ends with "N passed, N failed, N skipped"
	@deploy/local/packages.sh build run demo test
	@$(MAKE) --no-print-directory $(JOBS) test-build
	@/usr/bin/python3 tests/run.py

# The heavy proofs: a hundred kills, ten times as many simulated faults, services under ASan/UBSan, guests under UEFI, real virt-v2v, a minute of fuzzing per parser, all of lint.
FUZZ_NAMES = $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
.PHONY: test-full
test-full: test ## make test, then everything that takes long
	@$(MAKE) --no-print-directory $(JOBS) test-unit
	@HSDK_KILLS=100 $(B)/unit/exporter/engine/test_copy_crash
	@$(MAKE) --no-print-directory $(JOBS) SAN=asan test-build
	@$(MAKE) --no-print-directory SAN=asan sim SEEDS=500 SEED_START=1000000
	@$(MAKE) --no-print-directory sim SEEDS=20000 SEED_START=100000
	@VARIANT=asan /usr/bin/python3 tests/run.py service e2e
	@deploy/local/packages.sh full
	@HSDK_HEAVY=1 /usr/bin/python3 -m pytest -q -m heavy tests/service tests/e2e
	@HSDK_BOOTS=all /usr/bin/python3 -m pytest -q tests/e2e/test_boot.py tests/e2e/test_into_libvirt.py tests/heavy
	@for t in $(FUZZ_NAMES); do $(MAKE) --no-print-directory fuzz T=$$t TIME=60 || exit 1; done
	@$(MAKE) --no-print-directory $(JOBS) lint
