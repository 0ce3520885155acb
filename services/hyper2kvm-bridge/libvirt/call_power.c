/* See power.h. */
#include <libvirt/virterror.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "domain.h"
#include "power.h"

#define POLL_MS 100   /* of a state that is waited for */
#define WAIT_MS 60000 /* without a timeout in the spec */

#define BIT(state) (1U << (state))
#define RUNS       (BIT(VIR_DOMAIN_RUNNING) | BIT(VIR_DOMAIN_BLOCKED) | BIT(VIR_DOMAIN_NOSTATE))
#define OFF        BIT(VIR_DOMAIN_SHUTOFF)

static int do_start(virDomainPtr domain, const struct power_wish *wish)
{
    return virDomainCreateWithFlags(domain, wish->paused ? VIR_DOMAIN_START_PAUSED : 0);
}

static int do_shutdown(virDomainPtr domain, const struct power_wish *wish)
{
    (void)wish;
    return virDomainShutdown(domain);
}

static int do_destroy(virDomainPtr domain, const struct power_wish *wish)
{
    (void)wish;
    return virDomainDestroy(domain);
}

static int do_reboot(virDomainPtr domain, const struct power_wish *wish)
{
    return wish->force ? virDomainReset(domain, 0) : virDomainReboot(domain, 0);
}

static int do_pause(virDomainPtr domain, const struct power_wish *wish)
{
    (void)wish;
    return virDomainSuspend(domain);
}

static int do_resume(virDomainPtr domain, const struct power_wish *wish)
{
    (void)wish;
    return virDomainResume(domain);
}

static const struct power {
    const char *action;
    int (*act)(virDomainPtr domain, const struct power_wish *wish);
    unsigned int from;    /* states it works in */
    unsigned int already; /* states in which there is nothing to do */
    unsigned int target;  /* 0: nothing to wait for */
    bool once;            /* doing it twice is something else than doing it once */
    const char *done;
    const char *otherwise; /* what to do in another state */
} powers[] = {
    {"start", do_start, OFF | BIT(VIR_DOMAIN_CRASHED), RUNS, RUNS | BIT(VIR_DOMAIN_PAUSED), false,
     "is started", "resume it, or wait until it is off"},
    {"shutdown", do_shutdown, RUNS, OFF | BIT(VIR_DOMAIN_SHUTDOWN), OFF, false,
     "was asked to shut down", "its guest cannot react: resume it first, or destroy it"},
    {"destroy", do_destroy, ~OFF, OFF, OFF, false, "is off", "it is off already"},
    {"reboot", do_reboot, RUNS, 0, 0, true, "was asked to reboot", "start or resume it"},
    {"pause", do_pause, RUNS, BIT(VIR_DOMAIN_PAUSED), BIT(VIR_DOMAIN_PAUSED), false, "is paused",
     "only what runs can be paused"},
    {"resume", do_resume, BIT(VIR_DOMAIN_PAUSED), RUNS, RUNS, false, "runs again",
     "only what is paused can be resumed"},
};

static int read_state(virDomainPtr domain, unsigned int *out, struct error *err)
{
    int state = 0;

    if (virDomainGetState(domain, &state, NULL, 0) < 0) {
        /* a domain without a definition is gone when it is off */
        if (hv_error_number() != VIR_ERR_NO_DOMAIN)
            return hv_error(err, "domain '%.255s'", virDomainGetName(domain));
        state = VIR_DOMAIN_SHUTOFF;
    }
    *out = BIT(state);
    return 0;
}

static int wait_state(const struct hv_call *call, virDomainPtr domain, const struct power *power,
                      int64_t wait_ms, struct error *err)
{
    int64_t until_ms = clock_mono_ms() + wait_ms;
    unsigned int state = 0;

    for (;;) {
        if (read_state(domain, &state, err) < 0)
            return -1;
        if (power->target == 0 || (state & power->target) != 0)
            return 0;
        if (clock_mono_ms() >= until_ms)
            break;
        if (worker_task_check(call->task, err) < 0)
            return -1;
        clock_sleep_ms(POLL_MS);
    }
    return error_set(err, ERR_CONFLICT, "domain '%.255s' %s, but is '%s' after %lld ms still",
                     virDomainGetName(domain), power->done, domain_state(domain),
                     (long long)wait_ms);
}

static int act(struct hv_call *call, virDomainPtr domain, const struct power *power,
               const struct power_wish *wish, struct error *err)
{
    struct error why = ERROR_NONE;
    struct error ignored = ERROR_NONE;
    unsigned int state = 0;

    if (call_may_act(call, err) < 0 ||
        (power->once && call_note(call, wish->index, 0, "", err) < 0))
        return -1;
    if (power->act(domain, wish) == 0)
        return 0;
    (void)hv_error_of(&why, "domain '%.255s': %s", virDomainGetName(domain), power->action);
    /* someone else may have been quicker */
    if (why.code == ERR_CONFLICT && read_state(domain, &state, &ignored) == 0 &&
        (state & power->already) != 0)
        return 0;
    *err = why;
    return -1;
}

static void say(json_t *answer, virDomainPtr domain, const struct power *power, bool changed)
{
    const char *name = virDomainGetName(domain);
    const char *state = domain_state(domain);
    autofree char *message = changed ? xasprintf("domain '%s' %s", name, power->done)
                                     : xasprintf("domain '%s' is '%s' already", name, state);

    json_set_text(answer, "status", "success");
    json_set_text(answer, "domain", name);
    json_set_text(answer, "message", message);
    json_set_text(answer, "state", state);
    json_put(answer, "changed", json_boolean(changed));
}

static int apply(struct hv_call *call, virDomainPtr domain, const struct power *power,
                 const struct power_wish *wish, json_t *answer, struct error *err)
{
    unsigned int state = 0;
    bool begun = power->once && call_noted(call, wish->index, 0) != NULL;
    bool changed;

    if (read_state(domain, &state, err) < 0)
        return -1;
    /* started paused is what was asked for */
    if (wish->paused && state == BIT(VIR_DOMAIN_PAUSED))
        state = BIT(VIR_DOMAIN_RUNNING);
    changed = (state & power->already) == 0;
    if (changed && !begun && (state & power->from) == 0) {
        return error_set(err, ERR_CONFLICT, "domain '%.255s' is '%s': %s", virDomainGetName(domain),
                         domain_state(domain), power->otherwise);
    }
    if (changed && !begun && act(call, domain, power, wish, err) < 0)
        return -1;
    if (wish->wait_ms > 0 && wait_state(call, domain, power, wish->wait_ms, err) < 0)
        return -1;
    say(answer, domain, power, changed);
    return 0;
}

int power_apply(struct hv_call *call, virDomainPtr domain, const struct power_wish *wish,
                json_t *answer, struct error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(powers); i++) {
        if (strcmp(powers[i].action, wish->action) == 0)
            return apply(call, domain, &powers[i], wish, answer, err);
    }
    return error_set(err, ERR_INVALID, "there is no action '%.32s'", wish->action);
}

int call_power(struct hv_call *call, json_t *answer, struct error *err)
{
    const json_t *spec = call->spec;
    const json_t *timeout = json_object_get(spec, "timeout");
    int64_t wait_ms = timeout == NULL ? WAIT_MS : (int64_t)json_integer_value(timeout);
    const struct power_wish wish = {
        .action = json_str(spec, "action"),
        .wait_ms = json_is_true(json_object_get(spec, "wait")) ? wait_ms : 0,
    };
    auto_domain domain = NULL;

    if (call_find(call, json_str(spec, "name"), &domain, err) < 0)
        return -1;
    return power_apply(call, domain, &wish, answer, err);
}

int call_autostart(struct hv_call *call, json_t *answer, struct error *err)
{
    bool wanted = json_is_true(json_object_get(call->spec, "autostart"));
    auto_domain domain = NULL;
    int is = 0;

    if (call_find(call, json_str(call->spec, "name"), &domain, err) < 0)
        return -1;
    if (virDomainGetAutostart(domain, &is) < 0)
        return hv_error(err, "domain '%.255s'", virDomainGetName(domain));
    if ((is != 0) != wanted) {
        if (call_may_act(call, err) < 0)
            return -1;
        if (virDomainSetAutostart(domain, wanted ? 1 : 0) < 0)
            return hv_error_of(err, "autostart of domain '%.255s'", virDomainGetName(domain));
    }
    json_set_text(answer, "status", "success");
    json_set_text(answer, "domain", virDomainGetName(domain));
    json_set_text(answer, "message",
                  wanted ? "the domain starts with its host"
                         : "the domain does not start by itself");
    json_put(answer, "autostart", json_boolean(wanted));
    json_put(answer, "changed", json_boolean((is != 0) != wanted));
    return 0;
}
