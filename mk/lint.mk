# Style and static checks (make lint; make test runs lint-quick). Each prints "ok <check>" or "FAILED <check>".
C_FILES := $(shell git ls-files '*.c' 2>/dev/null)
H_FILES := $(shell git ls-files '*.h' 2>/dev/null)
LINT := build/lint

.PHONY: lint lint-quick lint-format lint-style lint-headers lint-cppcheck lint-requirements lint-tidy \
        lint-analyzer format
lint: lint-quick lint-tidy lint-analyzer ## every style and static check (long at the first time)
lint-quick: lint-format lint-style lint-headers lint-cppcheck lint-requirements lint-models ## those that `make test` runs

format: ## bring all C files into shape
	@clang-format -i $(C_FILES) $(H_FILES)
lint-format:
	@clang-format --dry-run -Werror $(C_FILES) $(H_FILES) && echo "ok format" || \
	 { echo "FAILED format (make format)"; exit 1; }
lint-style:
	@/usr/bin/python3 tests/lint/style.py $(C_FILES) $(H_FILES)
lint-requirements:
	@/usr/bin/python3 tests/lint/requirements.py

# Each header compiles alone.
HEADER_OK := $(H_FILES:%=$(LINT)/%.ok)
$(LINT)/%.h.ok: %.h | $(GEN_H)
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS_ALL) $(WARN) -MF $(@:.ok=.d) -MT $@ -fsyntax-only -x c -include $< /dev/null && touch $@ || \
	 { echo "FAILED header $<"; exit 1; }
-include $(HEADER_OK:.ok=.d)
lint-headers: $(HEADER_OK)
	@echo "ok headers ($(words $(H_FILES)) compile alone)"

# cppcheck remembers unchanged files in its build directory.
lint-cppcheck: | $(GEN_H)
	@mkdir -p $(LINT)/cppcheck
	@cppcheck -q -j2 --std=c11 --enable=warning,performance,portability --inline-suppr \
	 --cppcheck-build-dir=$(LINT)/cppcheck --suppressions-list=tests/lint/cppcheck.txt \
	 --error-exitcode=1 -I. -D__GNUC__=12 $(filter-out tests/%,$(C_FILES)) && \
	 echo "ok cppcheck" || { echo "FAILED cppcheck"; exit 1; }

# The two long ones. A stamp per file: a second run looks only at what changed.
# clang-tidy: one file per process, state leaks between files otherwise.
PRODUCT_C := $(filter-out tests/%,$(C_FILES))
TIDY_OK := $(PRODUCT_C:%=$(LINT)/%.tidy.ok)
ANALYZER_OK := $(PRODUCT_C:%=$(LINT)/%.analyzer.ok)
$(LINT)/%.c.tidy.ok: %.c .clang-tidy | $(GEN_H)
	@mkdir -p $(@D)
	@clang-tidy --quiet $< -- $(filter-out -MMD -MP -ftrivial-auto-var-init=zero,$(CFLAGS_ALL)) > $(@:ok=log) 2>&1 && \
	 touch $@ || { cat $(@:ok=log); echo "FAILED clang-tidy $<"; exit 1; }
# gcc 12 takes compound literals and moved stores for uninitialised values; the warnings of the build
# and clang-tidy look for those. The .d file tells both which headers a file depends on.
$(LINT)/%.c.analyzer.ok: %.c | $(GEN_H)
	@mkdir -p $(@D)
	@gcc $(CFLAGS_ALL) $(WARN) -fanalyzer -Wno-analyzer-use-of-uninitialized-value \
	 -MF $(@:ok=d) -MT "$@ $(@:analyzer.ok=tidy.ok)" -c $< -o /dev/null && \
	 touch $@ || { echo "FAILED gcc -fanalyzer $<"; exit 1; }
-include $(ANALYZER_OK:ok=d)
lint-tidy: $(TIDY_OK) ## clang-tidy over everything (long)
	@echo "ok clang-tidy"
lint-analyzer: $(ANALYZER_OK) ## gcc -fanalyzer over everything (long)
	@echo "ok gcc -fanalyzer"
