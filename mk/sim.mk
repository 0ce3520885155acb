# The deterministic simulator: tests/sim/README.md.
#   make sim SEEDS=2000 SEED_START=1
# The scheduler and the workers as they are, without the modules that the simulator has its own of
# (the linker takes what is named first), and with the C library's threads and clocks wrapped.
SIM_SRC := $(wildcard tests/sim/*.c)
SIM_WRAPS := clock_gettime nanosleep getrandom execv pthread_create pthread_join pthread_detach \
             pthread_mutex_lock pthread_mutex_unlock pthread_cond_wait pthread_cond_timedwait \
             pthread_cond_signal pthread_cond_broadcast PQcmdTuples PQgetvalue log_write \
             job_decide job_store_apply job_store_apply_all workflow_decide
# A process that is killed leaves what it had; its frames have no fake stack.
SIM_ENV := ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
SEEDS ?= 2000
SEED_START ?= 1

$(B)/sim: $(SIM_SRC:%.c=$(B)/obj/%.o) $(call lib_of,services/scheduler) $(call lib_of,common)
	@echo "ld $@"
	@$(CC) $(LINK) $(SIM_WRAPS:%=-Wl,--wrap=%) -o $@ $(filter %.o,$^) \
	 -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(PKG_LIBS)
.SECONDARY: $(SIM_SRC:%.c=$(B)/obj/%.o)

.PHONY: sim
sim: $(B)/sim ## run the simulator: make sim SEEDS=2000 SEED_START=1
	@$(SIM_ENV) $(B)/sim --seeds $(SEEDS) --start $(SEED_START)
# What `make test` runs: the seeds, a replay, and every protection taken away once.
.PHONY: sim-check
sim-check: $(B)/sim
	@$(SIM_ENV) /usr/bin/python3 tests/sim/run.py $(B)/sim $(SEEDS) $(SEED_START)
test-build: $(B)/sim
# Quick enough for every change: a statement without its model shows at once.
.PHONY: lint-models
lint-models: $(B)/sim
	@$(SIM_ENV) $(B)/sim --seeds 24 || { echo "FAILED models (tests/sim/README.md)"; exit 1; }
