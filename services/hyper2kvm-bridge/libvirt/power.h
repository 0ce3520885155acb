/* Switching domains. Whatever is already so is no error; what cannot be so from here is. */
#ifndef BRIDGE_LIBVIRT_POWER_H
#define BRIDGE_LIBVIRT_POWER_H

#include "call.h"

struct power_wish {
    const char *action; /* start, shutdown, destroy, reboot, pause, resume */
    bool paused;        /* start: with its CPUs stopped */
    bool force;         /* reboot: reset instead of asking the guest */
    int64_t wait_ms;    /* > 0: until the domain is in the state that was asked for */
    size_t index;       /* of the domain in the call */
};

/* Puts domain, message, state and changed into answer. ERR_CONFLICT: the state does not allow it,
 * or the guest did not react within wait_ms. ERR_INVALID: there is no such action. */
MUST_CHECK int power_apply(struct hv_call *call, virDomainPtr domain, const struct power_wish *wish,
                           json_t *answer, struct error *err);

#endif
