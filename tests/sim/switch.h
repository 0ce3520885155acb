/* From one stack to another. ucontext asks the kernel for the signal mask each time, and there are
 * tens of thousands of switches in a seed; on the two machines that count it is done by hand. */
#ifndef SIM_SWITCH_H
#define SIM_SWITCH_H

#include <stddef.h>

#if defined(__x86_64__) || defined(__aarch64__)
#define SIM_MACHINE void *
#else
#include <ucontext.h>
#define SIM_MACHINE ucontext_t
#endif

struct sim_context {
    SIM_MACHINE machine; /* the stack pointer, where it is done by hand */
    const void *bottom;  /* of its stack, for ASan */
    size_t size;
};

/* entry must not return; the first that it does is sim_context_entered(). */
void sim_context_new(struct sim_context *out, void *stack, size_t size, void (*entry)(void));
/* from: who switched to this new one. */
void sim_context_entered(struct sim_context *from);
void sim_context_switch(struct sim_context *from, struct sim_context *to);

#endif
