/* From one stack to another. ucontext asks the kernel for the signal mask each time, and there are
 * tens of thousands of switches in a seed; on the two machines that count it is done by hand. */
#ifndef SIM_SWITCH_H
#define SIM_SWITCH_H

#include <stddef.h>

#if defined(__x86_64__) || defined(__aarch64__)
struct sim_context {
    void *stack_pointer;
};
#else
#include <ucontext.h>
struct sim_context {
    ucontext_t context;
};
#endif

/* entry must not return. */
void sim_context_new(struct sim_context *out, void *stack, size_t size, void (*entry)(void));
void sim_context_switch(struct sim_context *from, struct sim_context *to);

#endif
