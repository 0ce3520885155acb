# Fuzzing. Every tests/fuzz/fuzz_<name>.c defines LLVMFuzzerTestOneInput, its committed corpus is
# tests/fuzz/corpus/<name>/. A crash becomes a corpus file.
#   make fuzz-replay          all corpora, and damaged copies of them, with gcc and ASan/UBSan
#   make fuzz T=name TIME=60  libFuzzer (clang); what it finds new stays in build/fuzz/corpus/<name>
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_NAMES := $(FUZZ_SRC:tests/fuzz/fuzz_%.c=%)
FUZZ_CC ?= clang-14
TIME ?= 60

ifeq ($(VARIANT),fuzz)
FUZZ_LINK := -fsanitize=fuzzer
else
FUZZ_LINK := $(B)/obj/tests/fuzz/replay.o
endif
$(B)/fuzz/fuzz_%: $(B)/obj/tests/fuzz/fuzz_%.o $(UNIT_LIBS) $(filter %.o,$(FUZZ_LINK))
	@mkdir -p $(@D)
	@echo "ld $@"
	@$(CC) $(LINK) -o $@ $< $(FUZZ_LINK) -Wl,--start-group $(UNIT_LIBS) -Wl,--end-group $(PKG_LIBS)
.SECONDARY: $(FUZZ_SRC:%.c=$(B)/obj/%.o) $(B)/obj/tests/fuzz/replay.o

# Inside of the asan variant.
REPLAYS := $(FUZZ_NAMES:%=replay-%)
.PHONY: fuzz fuzz-replay fuzz-programs $(REPLAYS)
fuzz-programs: $(FUZZ_NAMES:%=$(B)/fuzz/fuzz_%)
$(REPLAYS): replay-%: $(B)/fuzz/fuzz_%
	@if $< tests/fuzz/corpus/$* > $<.log 2>&1; then echo "ok fuzz_$*: $$(tail -n 1 $<.log)"; \
	 else tail -n 60 $<.log; echo "FAILED fuzz_$*"; exit 1; fi

fuzz-replay: ## run the fuzz corpora, and damaged copies of them, under ASan/UBSan
	@$(MAKE) --no-print-directory SAN=asan $(REPLAYS)
fuzz: ## fuzz one parser with libFuzzer: make fuzz T=ovf TIME=60
	@test -n "$(T)" || { echo "make fuzz T=<one of: $(FUZZ_NAMES)>"; exit 64; }
	@$(MAKE) --no-print-directory VARIANT=fuzz CC=$(FUZZ_CC) WARN= build/fuzz/fuzz/fuzz_$(T)
	@mkdir -p build/fuzz/corpus/$(T) build/fuzz/crashes
	@build/fuzz/fuzz/fuzz_$(T) -max_total_time=$(TIME) -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
	 -artifact_prefix=build/fuzz/crashes/$(T)- build/fuzz/corpus/$(T) tests/fuzz/corpus/$(T)
