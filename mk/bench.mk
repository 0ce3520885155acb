# Figures, not tests: every tests/bench/bench_*.c is a program that prints lines
#   name value unit reference ratio goal
# and tests/bench/run.py runs them all, adds what needs the whole suite, and writes build/bench.json.
BENCH_SRC := $(wildcard tests/bench/bench_*.c)
BENCH_BIN := $(BENCH_SRC:tests/bench/%.c=$(B)/bench/%)
$(B)/bench/%: $(B)/obj/tests/bench/%.o $(UNIT_LIBS)
	@mkdir -p $(@D)
	@echo "ld $@"
	@$(CC) $(LINK) -o $@ $< -Wl,--start-group $(UNIT_LIBS) -Wl,--end-group $(PKG_LIBS)
.SECONDARY: $(BENCH_SRC:%.c=$(B)/obj/%.o)

.PHONY: bench
bench: all $(BENCH_BIN) $(B)/helpers/queue_load test-peers ## figures with their references and goals; build/bench.json
	@/usr/bin/python3 tests/bench/run.py $(BENCH_BIN)
# They are no tests, but `make test` compiles them: nothing else would notice when they do not.
test-build: $(BENCH_BIN)
