# One static library per folder, one binary per service.mk. A service.mk says:
#   BINARIES += exporter-vsphere
#   exporter-vsphere_DIRS := services/exporter/providers/vsphere services/exporter/engine ...
# Every *.c of those folders but main.c goes into the library of its folder; the first folder
# holds main.c. Archives are linked in a group, so their order does not matter.
BINARIES :=
include $(wildcard services/*/service.mk services/exporter/providers/*/service.mk)

PROTOS := $(wildcard proto/*.proto)
GEN_C := $(PROTOS:proto/%.proto=$(B)/gen/proto/%.pb-c.c)
GEN_H := $(GEN_C:.c=.h)
LIB_DIRS := $(sort common $(foreach b,$(BINARIES),$($(b)_DIRS)))

lib_of = $(B)/lib/$(subst /,-,$(1)).a
objs_of = $(patsubst %.c,$(B)/obj/%.o,$(filter-out %/main.c,$(wildcard $(1)/*.c)))

# The schema's SQL files become one C array, so that a binary carries its migrations.
SCHEMA_SQL := $(sort $(wildcard common/schema/*.sql))
# Their names as well: one that is renamed is no newer than what was made of it.
ifneq ($(file <$(B)/gen/schema_files.list),$(SCHEMA_SQL))
.PHONY: schema-renamed
$(B)/gen/schema_files.c: schema-renamed
endif
$(B)/gen/schema_files.c: $(SCHEMA_SQL) mk/embed-schema.sh
	@mkdir -p $(@D)
	@printf '%s' '$(SCHEMA_SQL)' > $(B)/gen/schema_files.list
	@bash mk/embed-schema.sh $(SCHEMA_SQL) > $@.tmp && mv $@.tmp $@
$(B)/obj/gen/schema_files.o: $(B)/gen/schema_files.c
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS_ALL) -c $< -o $@

# What the gateway carries: its OpenAPI document, and which providers are built.
$(B)/gen/openapi.c: services/api-gateway/openapi.json mk/embed-text.sh
	@mkdir -p $(@D)
	@bash mk/embed-text.sh openapi_json $< > $@.tmp && mv $@.tmp $@
PROVIDER_KINDS := $(patsubst exporter-%,%,$(filter exporter-%,$(BINARIES)))
$(B)/gen/provider_kinds.c: $(wildcard services/exporter/providers/*/service.mk)
	@mkdir -p $(@D)
	@printf 'extern const char *const provider_kinds[];\nconst char *const provider_kinds[] = {%s 0};\n' \
		'$(foreach k,$(PROVIDER_KINDS),"$(k)",)' > $@
$(B)/obj/gen/openapi.o $(B)/obj/gen/provider_kinds.o: $(B)/obj/gen/%.o: $(B)/gen/%.c
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS_ALL) -c $< -o $@
GATEWAY_O := $(B)/obj/gen/openapi.o $(B)/obj/gen/provider_kinds.o

$(B)/gen/proto/%.pb-c.c $(B)/gen/proto/%.pb-c.h: proto/%.proto
	@mkdir -p $(B)/gen/proto
	@protoc-c --proto_path=. --c_out=$(B)/gen $<
.SECONDARY: $(GEN_C) $(GEN_H)
$(B)/obj/gen/%.pb-c.o: $(B)/gen/proto/%.pb-c.c
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS_ALL) -w -c $< -o $@
GEN_O := $(patsubst $(B)/gen/proto/%.c,$(B)/obj/gen/%.o,$(GEN_C)) $(B)/obj/gen/schema_files.o

$(B)/obj/%.o: %.c | $(GEN_H)
	@mkdir -p $(@D)
	@echo "cc $<"
	@$(CC) $(CFLAGS_ALL) $(WARN) -c $< -o $@

define dir_rules
$(call lib_of,$(1)): $(call objs_of,$(1)) $(if $(filter common,$(1)),$(GEN_O)) \
		$(if $(filter services/api-gateway,$(1)),$(GATEWAY_O))
	@mkdir -p $$(@D)
	@rm -f $$@ && ar rcs $$@ $$^
endef
$(foreach d,$(LIB_DIRS),$(eval $(call dir_rules,$(d))))

define binary_rules
$(B)/bin/$(1): $(B)/obj/$(firstword $($(1)_DIRS))/main.o $(foreach d,$($(1)_DIRS) common,$(call lib_of,$(d)))
	@mkdir -p $$(@D)
	@echo "ld $(1)"
	@$$(CC) $$(LINK) -o $$@ $$< -Wl,--start-group $$(filter %.a,$$^) -Wl,--end-group $$(PKG_LIBS) $($(1)_LIBS)
endef
$(foreach b,$(BINARIES),$(eval $(call binary_rules,$(b))))

.PHONY: all clean
all: $(BINARIES:%=$(B)/bin/%) ## build every binary
clean: ## remove everything that was built
	rm -rf build
-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
