/* See connection.h. */
#include "connection.h"

#include <errno.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"

#define KEEPALIVE_COUNT 5 /* unanswered in a row: the connection is dead */
#define EVENT_PAUSE_MS  1000
#define REASON_BYTES    360 /* of libvirt's words: the rest of an error is ours */

/* ---- libvirt's own machinery ---- */

static void say_nothing(void *arg, virErrorPtr error)
{
    (void)arg;
    (void)error; /* hv_error puts it where it belongs; by default it goes to stderr */
}

/* Timers of the keepalives need an event loop. */
static void *event_main(void *arg)
{
    (void)arg;
    for (;;) {
        if (virEventRunDefaultImpl() < 0)
            clock_sleep_ms(EVENT_PAUSE_MS);
    }
    return NULL;
}

static void start_libvirt(void)
{
    pthread_t thread;

    virSetErrorFunc(NULL, say_nothing);
    if (virInitialize() < 0 || virEventRegisterDefaultImpl() < 0 ||
        pthread_create(&thread, NULL, event_main, NULL) != 0) {
        LOG(ERROR, "libvirt_events_missing"); /* it works, but hung calls are not noticed */
        return;
    }
    (void)pthread_detach(thread);
}

/* ---- errors ---- */

int hv_error_number(void)
{
    const virError *last = virGetLastError();

    return last == NULL ? VIR_ERR_OK : last->code;
}

static _Thread_local struct {
    int code;
    int domain;
    char message[REASON_BYTES];
} kept;

void hv_error_keep(void)
{
    const virError *last = virGetLastError();
    const char *message = last == NULL || last->message == NULL ? "" : last->message;

    kept.code = last == NULL ? VIR_ERR_OK : last->code;
    kept.domain = last == NULL ? VIR_FROM_NONE : last->domain;
    (void)snprintf(kept.message, sizeof kept.message, "%s",
                   message[0] == '\0' ? "libvirt gives no reason" : message);
}

/* What the transport says means the daemon is away; from the daemon itself come other domains. */
static bool is_transport(int domain)
{
    return domain == VIR_FROM_RPC || domain == VIR_FROM_REMOTE;
}

static enum error_code kept_code(void)
{
    switch (kept.code) {
    case VIR_ERR_NO_DOMAIN:
    case VIR_ERR_NO_STORAGE_POOL:
    case VIR_ERR_NO_STORAGE_VOL:
    case VIR_ERR_NO_NETWORK:
    case VIR_ERR_NO_DOMAIN_SNAPSHOT:
        return ERR_NOT_FOUND;
    case VIR_ERR_DOM_EXIST:
    case VIR_ERR_STORAGE_VOL_EXIST:
    case VIR_ERR_OPERATION_INVALID:
    case VIR_ERR_SNAPSHOT_REVERT_RISKY:
    case VIR_ERR_RESOURCE_BUSY:
    case VIR_ERR_AGENT_UNRESPONSIVE:
    case VIR_ERR_AGENT_UNSYNCED:
        return ERR_CONFLICT;
    case VIR_ERR_AUTH_FAILED:
    case VIR_ERR_AUTH_CANCELLED:
    case VIR_ERR_AUTH_UNAVAILABLE:
    case VIR_ERR_ACCESS_DENIED:
    case VIR_ERR_OPERATION_DENIED:
        return ERR_DENIED;
    case VIR_ERR_OPERATION_TIMEOUT:
        return ERR_TIMEOUT;
    case VIR_ERR_NO_SUPPORT:
    case VIR_ERR_CONFIG_UNSUPPORTED:
    case VIR_ERR_ARGUMENT_UNSUPPORTED:
        return ERR_NOT_AVAILABLE;
    case VIR_ERR_XML_ERROR:
    case VIR_ERR_XML_DETAIL:
    case VIR_ERR_INVALID_ARG:
        return ERR_INVALID;
    case VIR_ERR_NO_CONNECT:
        return ERR_UNAVAILABLE;
    default:
        return is_transport(kept.domain) ? ERR_UNAVAILABLE : ERR_INTERNAL;
    }
}

int hv_error_say(struct error *err, const char *format, ...)
{
    char text[ERROR_MESSAGE_MAX];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return error_set(err, kept_code(), "%s: %s", text, kept.message);
}

int hv_error_say_of(struct error *err, const char *format, ...)
{
    bool is_gone = kept.code == VIR_ERR_NO_DOMAIN || kept.code == VIR_ERR_NO_DOMAIN_SNAPSHOT;
    enum error_code code = kept_code();
    char text[ERROR_MESSAGE_MAX];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return error_set(err, code == ERR_NOT_FOUND && !is_gone ? ERR_CONFLICT : code, "%s: %s", text,
                     kept.message);
}

/* ---- opening ---- */

struct opening { /* owned by whoever comes last: the opener, or the caller that waits for it */
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    bool done;
    bool left; /* nobody waits any more */
    char *uri;
    virConnectPtr connection;
    struct error err;
};

static atomic_int openings;

static void opening_free(struct opening *o)
{
    (void)pthread_cond_destroy(&o->changed);
    (void)pthread_mutex_destroy(&o->mutex);
    free(o->uri);
    free(o);
}

static void *opening_main(void *arg)
{
    struct opening *o = arg;
    struct error why = ERROR_NONE;
    virConnectPtr connection = virConnectOpen(o->uri);
    bool left;

    if (connection == NULL)
        (void)hv_error(&why, "libvirt at '%.128s'", o->uri);
    (void)pthread_mutex_lock(&o->mutex);
    left = o->left;
    o->done = true;
    o->connection = connection;
    o->err = why;
    (void)pthread_cond_signal(&o->changed);
    (void)pthread_mutex_unlock(&o->mutex);
    (void)atomic_fetch_sub(&openings, 1);
    if (left) {
        hv_close(connection);
        opening_free(o);
    }
    return NULL;
}

static struct opening *opening_new(const char *uri)
{
    struct opening *o = xcalloc(1, sizeof *o);
    pthread_condattr_t attributes;

    (void)pthread_mutex_init(&o->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&o->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    o->uri = xstrdup(uri);
    return o;
}

/* Did the opener come back in time? If not, the opening is its own from now on. */
static bool wait_opened(struct opening *o, int64_t timeout_ms)
{
    int64_t until_ms = clock_mono_ms() + timeout_ms;
    const struct timespec until = {.tv_sec = until_ms / 1000,
                                   .tv_nsec = (long)(until_ms % 1000) * 1000000L};
    bool done;

    (void)pthread_mutex_lock(&o->mutex);
    while (!o->done && clock_mono_ms() < until_ms)
        (void)pthread_cond_timedwait(&o->changed, &o->mutex, &until);
    done = o->done;
    o->left = !done;
    (void)pthread_mutex_unlock(&o->mutex);
    return done;
}

static int open_in_time(const char *uri, int64_t timeout_ms, virConnectPtr *out, struct error *err)
{
    struct opening *o;
    pthread_t thread;

    if (atomic_fetch_add(&openings, 1) >= HV_OPENING_MAX) {
        (void)atomic_fetch_sub(&openings, 1);
        return error_set(err, ERR_UNAVAILABLE, "libvirt at '%.128s' hangs: %d attempts wait for it",
                         uri, HV_OPENING_MAX);
    }
    o = opening_new(uri);
    if (pthread_create(&thread, NULL, opening_main, o) != 0) {
        (void)atomic_fetch_sub(&openings, 1);
        opening_free(o);
        return error_set(err, ERR_UNAVAILABLE, "no thread to open libvirt with");
    }
    (void)pthread_detach(thread);
    if (!wait_opened(o, timeout_ms)) {
        return error_set(err, ERR_TIMEOUT, "libvirt at '%.128s' does not answer within %lld ms",
                         uri, (long long)timeout_ms);
    }
    *out = o->connection;
    if (o->connection == NULL)
        *err = o->err;
    opening_free(o);
    return *out == NULL ? -1 : 0;
}

int hv_open(const char *uri, int64_t timeout_ms, virConnectPtr *out, struct error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int64_t interval_s = timeout_ms / 1000 / KEEPALIVE_COUNT;

    (void)pthread_once(&once, start_libvirt);
    if (open_in_time(uri, timeout_ms, out, err) < 0)
        return -1;
    /* Not every driver has them: those without run in this process. */
    (void)virConnectSetKeepAlive(*out, interval_s < 1 ? 1 : (int)interval_s, KEEPALIVE_COUNT);
    return 0;
}

void hv_close(virConnectPtr connection)
{
    if (connection != NULL)
        (void)virConnectClose(connection);
}

int hv_domain_type(virConnectPtr connection, const char *wanted, const char **out,
                   struct error *err)
{
    const char *driver = virConnectGetType(connection);
    char *capabilities;

    if (driver == NULL)
        return hv_error(err, "type of the hypervisor");
    if (strcmp(driver, "TEST") == 0 || strcmp(driver, "Test") == 0) {
        *out = "test";
        return 0;
    }
    if (strcmp(driver, "QEMU") != 0) {
        return error_set(err, ERR_NOT_AVAILABLE, "libvirt's driver '%.32s' is not QEMU/KVM",
                         driver);
    }
    if (strcmp(wanted, "auto") != 0) {
        *out = wanted;
        return 0;
    }
    capabilities = virConnectGetDomainCapabilities(connection, NULL, "x86_64", NULL, "kvm", 0);
    if (capabilities == NULL && virConnectIsAlive(connection) != 1)
        return error_set(err, ERR_UNAVAILABLE, "libvirt went away");
    *out = capabilities != NULL ? "kvm" : "qemu";
    free(capabilities);
    return 0;
}
