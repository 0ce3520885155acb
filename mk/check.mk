# Tests, lint, fuzzing. Everything here works on what mk/build.mk declares.
# cmocka programs: tests/unit/<path>/test_x.c -> build/<variant>/unit/<path>/test_x
UNIT_SRC := $(shell find tests/unit -name 'test_*.c' 2>/dev/null)
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(B)/unit/%)
UNIT_LIBS = $(foreach d,$(LIB_DIRS),$(call lib_of,$(d)))
# Folders whose symbols would clash in one program (each binary has its own) are linked by path.
$(B)/unit/%: $(B)/obj/tests/unit/%.o $(UNIT_LIBS)
	@mkdir -p $(@D)
	@echo "ld $@"
	@$(CC) $(LINK) -o $@ $< -Wl,--start-group $(UNIT_LIBS) -Wl,--end-group $(PKG_LIBS) -lcmocka
.PRECIOUS: $(B)/obj/tests/unit/%.o

.PHONY: test-unit
test-unit: $(UNIT_BIN) ## build and run the unit tests of this variant
	@for t in $(UNIT_BIN); do echo "== $$t"; $$t || exit 1; done
