/* See switch.h. */
#include "tests/sim/switch.h"

#include <stdint.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) || defined(__aarch64__)

#define REGISTERS 20 /* room for those that a callee keeps, on either machine */

#if defined(__x86_64__)
__asm__(".text\n"
        ".globl sim_machine_switch\n"
        ".type sim_machine_switch, @function\n"
        "sim_machine_switch:\n"
        "    endbr64\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq (%rsi), %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size sim_machine_switch, . - sim_machine_switch\n");
void sim_machine_switch(void **from, void **to);
#define SAVED    6 /* and then the address to go on from */
#define ENTRY_AT SAVED
#define FRAME    (SAVED + 2) /* the stack is 16n + 8 when a function starts */
#else
__asm__(".text\n"
        ".globl sim_machine_switch\n"
        ".type sim_machine_switch, %function\n"
        "sim_machine_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    ldr x9, [x1]\n"
        "    mov sp, x9\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size sim_machine_switch, . - sim_machine_switch\n");
void sim_machine_switch(void **from, void **to);
#define ENTRY_AT 11 /* x30 */
#define FRAME    REGISTERS
#endif

void sim_context_new(struct sim_context *out, void *stack, size_t size, void (*entry)(void))
{
    uintptr_t *top = (uintptr_t *)(void *)((char *)stack + size) - FRAME;

    for (int i = 0; i < FRAME; i++)
        top[i] = 0;
    top[ENTRY_AT] = (uintptr_t)entry;
    out->machine = top;
    out->bottom = stack;
    out->size = size;
}

#else

void sim_context_new(struct sim_context *out, void *stack, size_t size, void (*entry)(void))
{
    (void)getcontext(&out->machine);
    out->machine.uc_stack.ss_sp = stack;
    out->machine.uc_stack.ss_size = size;
    out->machine.uc_link = NULL;
    makecontext(&out->machine, entry, 0);
    out->bottom = stack;
    out->size = size;
}

static void sim_machine_switch(ucontext_t *from, ucontext_t *to)
{
    (void)swapcontext(from, to);
}

#endif

void sim_context_entered(struct sim_context *from)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, &from->bottom, &from->size);
#else
    (void)from;
#endif
}

void sim_context_switch(struct sim_context *from, struct sim_context *to)
{
#ifdef __SANITIZE_ADDRESS__
    void *fake = NULL;

    __sanitizer_start_switch_fiber(&fake, to->bottom, to->size);
    sim_machine_switch(&from->machine, &to->machine);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
    sim_machine_switch(&from->machine, &to->machine);
#endif
}
