# Style and static checks (make lint). Each prints "ok <check>" or "FAILED <check>".
C_FILES := $(shell git ls-files '*.c' 2>/dev/null)
H_FILES := $(shell git ls-files '*.h' 2>/dev/null)
LINT := build/lint

.PHONY: lint lint-format lint-style lint-headers lint-cppcheck lint-requirements lint-tidy format
lint: lint-format lint-style lint-headers lint-cppcheck lint-requirements ## style and static checks

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

# One file per process: state leaks between files otherwise. Part of test-full.
TIDY_OK := $(patsubst %,$(LINT)/%.tidy,$(filter-out tests/%,$(C_FILES)))
$(LINT)/%.c.tidy: %.c | $(GEN_H)
	@mkdir -p $(@D)
	@clang-tidy --quiet $< -- $(filter-out -MMD -MP -ftrivial-auto-var-init=zero,$(CFLAGS_ALL)) > $@.log 2>/dev/null && touch $@ || \
	 { cat $@.log; echo "FAILED clang-tidy $<"; exit 1; }
lint-tidy: $(TIDY_OK) ## clang-tidy over everything (long)
	@echo "ok clang-tidy"
