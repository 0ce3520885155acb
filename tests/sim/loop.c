/* Coroutines, virtual time, chance; what the C library would have said about threads and clocks.
 *
 * The linker sends pthread_*, clock_gettime, nanosleep, getrandom, execv and _exit of the product
 * here (-Wl,--wrap, mk/sim.mk). Only one coroutine runs at a time and it runs until it waits, so a
 * seed decides everything. */
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "tests/sim/sim.h"
#include "tests/sim/switch.h"

#define STACK_BYTES  ((size_t)(256 * KIB))
#define WALL_BASE_US (INT64_C(1772000000) * SIM_S) /* some day in 2026 */
#define JITTER_US    60                            /* of a wake-up: who runs first is chance */
#define EVENTS_MAX   UINT64_C(40000000)            /* a seed that never ends is a failure, too */

struct co {
    struct sim_context context;
    void *stack;
    struct sim_proc *proc;
    uint32_t incarnation;
    void *(*fn)(void *);
    void *arg;
    uint64_t wait; /* rises with every wait: an older wake-up is void */
    const void *key;
    bool blocked;
    bool woken;
    bool done;
    struct co *prev, *next;                 /* all that live */
    struct co *blocked_prev, *blocked_next; /* those that wait, longest first */
};

struct event {
    int64_t at_us;
    uint64_t order;
    struct co *co; /* or fn */
    uint64_t wait;
    void (*fn)(void *arg);
    void *arg;
    struct sim_proc *proc;
    uint32_t incarnation;
};

int64_t sim_now_us;
bool sim_tracing;
struct sim_faults sim_faults;
enum sim_break sim_break;

static uint64_t random_state[2];
static struct event *heap;
static size_t heap_count, heap_room;
static uint64_t next_order;
static struct co *live_first, *blocked_first, *blocked_last;
static struct co *current;
static struct sim_context loop_context;
static void **free_stacks;
static size_t free_stack_count, free_stack_room;
static size_t mutex_waiters;
static uint64_t fingerprint = 1469598103934665603ULL;

/* ---- chance ---- */

static uint64_t split(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

void sim_seed(uint64_t seed)
{
    random_state[0] = split(&seed);
    random_state[1] = split(&seed);
}

uint64_t sim_random(void) /* xorshift128+ */
{
    uint64_t a = random_state[0];
    uint64_t b = random_state[1];

    random_state[0] = b;
    a ^= a << 23;
    random_state[1] = a ^ b ^ (a >> 18) ^ (b >> 5);
    return random_state[1] + b;
}

uint64_t sim_below(uint64_t below)
{
    return below == 0 ? 0 : (sim_random() >> 11) % below;
}

int64_t sim_between(int64_t from, int64_t to)
{
    return from + (int64_t)sim_below((uint64_t)(to - from + 1));
}

bool sim_chance(uint32_t per_million)
{
    return per_million > 0 && sim_below(1000000) < per_million;
}

/* ---- outcome ---- */

static void mix(uint64_t value)
{
    fingerprint = (fingerprint ^ value) * 1099511628211ULL;
}

uint64_t sim_fingerprint(void)
{
    return fingerprint;
}

static void print_line(FILE *to, const char *format, va_list args)
{
    (void)fprintf(to, "%10.3f %-12s ", (double)sim_now_us / 1e6,
                  current == NULL || current->proc == NULL ? "-" : current->proc->name);
    (void)vfprintf(to, format, args);
    (void)fputc('\n', to);
}

void sim_trace(const char *format, ...)
{
    va_list args;

    if (!sim_tracing)
        return;
    va_start(args, format);
    print_line(stdout, format, args);
    va_end(args);
}

void sim_fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)fflush(stdout);
    print_line(sim_tracing ? stdout : stderr, format, args);
    va_end(args);
    (void)fflush(NULL);
    _Exit(1);
}

/* ---- the queue of events ---- */

static bool before(const struct event *a, const struct event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

static void push(struct event event)
{
    size_t i = heap_count++;

    if (heap_count > heap_room) {
        heap_room = heap_room == 0 ? 256 : heap_room * 2;
        heap = xreallocarray(heap, heap_room, sizeof *heap);
    }
    event.order = next_order++;
    for (; i > 0 && before(&event, &heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = event;
}

static struct event pop(void)
{
    struct event top = heap[0];
    struct event last = heap[--heap_count];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap_count)
            break;
        if (child + 1 < heap_count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &last))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

void sim_after(struct sim_proc *proc, int64_t delay_us, void (*fn)(void *), void *arg)
{
    push((struct event){.at_us = sim_now_us + delay_us,
                        .fn = fn,
                        .arg = arg,
                        .proc = proc,
                        .incarnation = proc == NULL ? 0 : proc->incarnation});
}

/* ---- coroutines ---- */

bool sim_is_alive(const struct sim_proc *proc, uint32_t incarnation)
{
    return proc == NULL || (proc->alive && proc->incarnation == incarnation);
}

struct sim_proc *sim_current(void)
{
    return current == NULL ? NULL : current->proc;
}

static void *stack_new(void)
{
    void *stack;

    if (free_stack_count > 0) {
        stack = free_stacks[--free_stack_count];
#ifdef __SANITIZE_ADDRESS__ /* frames of one that was killed in the middle */
        __asan_unpoison_memory_region(stack, STACK_BYTES);
#endif
        return stack;
    }
    stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert(stack != MAP_FAILED);
    return stack;
}

/* The coroutine is over: not to be called by itself. */
static void retire(struct co *co)
{
    if (co->stack == NULL)
        return;
    if (free_stack_count == free_stack_room) {
        free_stack_room = free_stack_room == 0 ? 64 : free_stack_room * 2;
        free_stacks = xreallocarray(free_stacks, free_stack_room, sizeof *free_stacks);
    }
    free_stacks[free_stack_count++] = co->stack;
    co->stack = NULL;
    if (co->prev != NULL) {
        co->prev->next = co->next;
    } else {
        live_first = co->next;
    }
    if (co->next != NULL)
        co->next->prev = co->prev;
}

static void unblock(struct co *co)
{
    if (!co->blocked)
        return;
    co->blocked = false;
    if (co->blocked_prev != NULL) {
        co->blocked_prev->blocked_next = co->blocked_next;
    } else {
        blocked_first = co->blocked_next;
    }
    if (co->blocked_next != NULL) {
        co->blocked_next->blocked_prev = co->blocked_prev;
    } else {
        blocked_last = co->blocked_prev;
    }
}

static _Noreturn void leave_for_ever(void)
{
    current->done = true;
    sim_context_switch(&current->context, &loop_context);
    abort();
}

static void entry(void)
{
    sim_context_entered(&loop_context);
    (void)current->fn(current->arg);
    sim_wake(current, true);
    leave_for_ever();
}

static void schedule(struct co *co, int64_t at_us)
{
    push((struct event){.at_us = at_us, .co = co, .wait = co->wait});
}

struct co *sim_spawn(struct sim_proc *proc, void *(*fn)(void *), void *arg)
{
    struct co *co = xcalloc(1, sizeof *co);

    co->proc = proc;
    co->incarnation = proc == NULL ? 0 : proc->incarnation;
    co->fn = fn;
    co->arg = arg;
    co->stack = stack_new();
    sim_context_new(&co->context, co->stack, STACK_BYTES, entry);
    co->next = live_first;
    if (live_first != NULL)
        live_first->prev = co;
    live_first = co;
    schedule(co, sim_now_us + sim_between(0, JITTER_US));
    return co;
}

bool sim_block(const void *key, int64_t until_us)
{
    struct co *co = current;

    assert(co != NULL);
    co->wait++;
    co->key = key;
    co->woken = false;
    co->blocked = true;
    co->blocked_prev = blocked_last;
    co->blocked_next = NULL;
    if (blocked_last != NULL) {
        blocked_last->blocked_next = co;
    } else {
        blocked_first = co;
    }
    blocked_last = co;
    if (until_us != INT64_MAX)
        schedule(co, until_us > sim_now_us ? until_us : sim_now_us);
    sim_context_switch(&co->context, &loop_context);
    return co->woken;
}

void sim_wake(const void *key, bool all)
{
    struct co *next;

    for (struct co *co = blocked_first; co != NULL; co = next) {
        next = co->blocked_next;
        if (co->key != key)
            continue;
        unblock(co);
        co->wait++;
        co->woken = true;
        schedule(co, sim_now_us + sim_between(0, JITTER_US));
        if (!all)
            return;
    }
}

void sim_sleep(int64_t us)
{
    (void)sim_block(NULL, sim_now_us + us);
}

void sim_join(struct co *co)
{
    while (!co->done)
        (void)sim_block(co, INT64_MAX);
}

static void *proc_main(void *arg)
{
    struct sim_proc *proc = arg;

    proc->main(proc);
    sim_proc_kill(proc); /* _exit at the end of main */
    return NULL;
}

void sim_proc_start(struct sim_proc *proc)
{
    proc->incarnation++;
    proc->alive = true;
    proc->stopping = false;
    proc->frozen_until_us = 0;
    proc->mono_offset_us = sim_between(1, 1000) * 1000 * SIM_S;
    (void)snprintf(proc->instance, sizeof proc->instance, "%s-%u", proc->name, proc->incarnation);
    sim_trace("starts as %s", proc->instance);
    (void)sim_spawn(proc, proc_main, proc);
}

void sim_proc_kill(struct sim_proc *proc)
{
    struct co *next;

    if (!proc->alive)
        return;
    sim_trace("%s is gone", proc->instance);
    proc->alive = false;
    for (struct co *co = live_first; co != NULL; co = next) {
        next = co->next;
        if (co->proc != proc || co == current)
            continue;
        unblock(co);
        co->done = true;
        retire(co);
    }
    net_proc_died(proc);
    if (current != NULL && current->proc == proc)
        leave_for_ever();
}

static void resume(struct co *co)
{
    current = co;
    mix((uint64_t)sim_now_us);
    mix(co->wait);
    sim_context_switch(&loop_context, &co->context);
    current = NULL;
    if (co->done)
        retire(co);
}

static void step(const struct event *event)
{
    struct sim_proc *proc = event->co != NULL ? event->co->proc : event->proc;
    uint32_t incarnation = event->co != NULL ? event->co->incarnation : event->incarnation;

    if (event->co != NULL && (event->co->done || event->wait != event->co->wait))
        return;
    if (!sim_is_alive(proc, incarnation))
        return;
    if (proc != NULL && proc->frozen_until_us > sim_now_us) {
        struct event later = *event;
        later.at_us = proc->frozen_until_us + sim_between(0, JITTER_US);
        push(later);
        return;
    }
    if (event->co == NULL) {
        event->fn(event->arg);
        return;
    }
    unblock(event->co); /* it is until_us, or it was woken */
    event->co->wait++;
    resume(event->co);
}

void sim_run(bool (*done)(void))
{
    uint64_t events = 0;

    while (heap_count > 0 && !done()) {
        struct event event = pop();
        if (event.at_us > sim_now_us)
            sim_now_us = event.at_us;
        step(&event);
        if (++events > EVENTS_MAX)
            sim_fail("more than %llu events: something runs in circles",
                     (unsigned long long)EVENTS_MAX);
    }
}

/* ---- instead of the C library ---- */

static struct sim_proc *own(void)
{
    struct sim_proc *proc = sim_current();

    assert(proc != NULL);
    return proc;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *out);
int __wrap_clock_gettime(clockid_t clock, struct timespec *out)
{
    const struct sim_proc *proc = sim_current();
    int64_t us = sim_now_us;

    if (clock == CLOCK_REALTIME) {
        us += WALL_BASE_US + (proc == NULL ? 0 : proc->wall_offset_us);
    } else {
        us += proc == NULL ? 0 : proc->mono_offset_us;
    }
    *out = (struct timespec){us / 1000000, us % 1000000 * 1000};
    return 0;
}

int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left);
int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left)
{
    sim_sleep(wanted->tv_sec * SIM_S + wanted->tv_nsec / 1000);
    *left = (struct timespec){0};
    return 0;
}

ssize_t __wrap_getrandom(void *out, size_t size, unsigned int flags);
ssize_t __wrap_getrandom(void *out, size_t size, unsigned int flags)
{
    unsigned char *p = out;

    (void)flags;
    for (size_t i = 0; i < size; i++)
        p[i] = (unsigned char)sim_random();
    return (ssize_t)size;
}

int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*fn)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*fn)(void *),
                          void *arg)
{
    (void)attributes;
    *out = (pthread_t)(uintptr_t)sim_spawn(sim_current(), fn, arg);
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **out);
int __wrap_pthread_join(pthread_t thread, void **out)
{
    (void)out;
    sim_join((struct co *)(uintptr_t)thread);
    return 0;
}

int __wrap_pthread_detach(pthread_t thread);
int __wrap_pthread_detach(pthread_t thread)
{
    (void)thread;
    return 0;
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    while (pthread_mutex_trylock(mutex) == EBUSY) {
        mutex_waiters++; /* one that is killed stays counted: that costs time only */
        (void)sim_block(mutex, INT64_MAX);
        mutex_waiters--;
    }
    return 0;
}

int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    (void)__real_pthread_mutex_unlock(mutex);
    if (mutex_waiters > 0)
        sim_wake(mutex, false);
    return 0;
}

int __wrap_pthread_cond_signal(pthread_cond_t *condition);
int __wrap_pthread_cond_signal(pthread_cond_t *condition)
{
    sim_wake(condition, false);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *condition);
int __wrap_pthread_cond_broadcast(pthread_cond_t *condition)
{
    sim_wake(condition, true);
    return 0;
}

int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex);
int __wrap_pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
{
    (void)__wrap_pthread_mutex_unlock(mutex);
    (void)sim_block(condition, INT64_MAX);
    return __wrap_pthread_mutex_lock(mutex);
}

/* All conditions of the product that wait with a deadline are on the monotonic clock. */
int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                                  const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                                  const struct timespec *until)
{
    int64_t us = until->tv_sec * SIM_S + until->tv_nsec / 1000 - own()->mono_offset_us;
    bool woken;

    (void)__wrap_pthread_mutex_unlock(mutex);
    woken = sim_block(condition, us);
    (void)__wrap_pthread_mutex_lock(mutex);
    return woken ? 0 : ETIMEDOUT;
}

/* A scheduler that lost its row starts itself anew; the world starts what is not alive. */
int __wrap_execv(const char *path, char *const argv[]);
int __wrap_execv(const char *path, char *const argv[])
{
    (void)path;
    (void)argv;
    sim_proc_kill(own());
    return -1;
}
