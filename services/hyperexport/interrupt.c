/* SIGINT and SIGTERM; see command.h. */
#include "command.h"

#include <signal.h>
#include <unistd.h>

#define STATUS_OF_SIGNAL 128 /* as a shell reports it: 130 and 143 */

static atomic_bool interrupted;
static atomic_int signal_number;

/* Only what may be done in a handler: atomics and _exit. */
static void on_signal(int number)
{
    if (atomic_exchange(&interrupted, true))
        _exit(STATUS_OF_SIGNAL + number);
    atomic_store(&signal_number, number);
}

void interrupt_start(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
}

const atomic_bool *interrupt_flag(void)
{
    return &interrupted;
}

int interrupt_exit_status(void)
{
    return atomic_load(&interrupted) ? STATUS_OF_SIGNAL + atomic_load(&signal_number) : 0;
}
