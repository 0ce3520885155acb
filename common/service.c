/* See service.h.
 *
 * Design notes. One thread (on_signal_thread) waits for the signals; nothing of ours runs in signal
 * context. It also is the clock of the drain: it ends the process when run() does not. */
#include "common/service.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "common/clock.h"
#include "common/http_client.h"
#include "common/id.h"
#include "common/log.h"
#include "common/seal.h"
#include "common/service_admin.h"

#define FLAGS_MAX      16
#define HOST_BYTES_MAX 64
#define EXIT_FORCED    1
#define HELP_BYTES_MAX ((size_t)64 * KIB)
#define EXIT_USAGE     64 /* sysexits EX_USAGE: also what a wrong configuration ends with */

#if defined(__SANITIZE_ADDRESS__)
void __lsan_do_leak_check(void);
#endif

struct service {
    const struct service_description *description;
    char instance[160];
    const char *config_path; /* NULL: default */
    const char *values[FLAGS_MAX];
    bool check_config;
    bool once;
    int stop_fd;
    atomic_bool stopping;
    atomic_bool reload;
    struct readiness *readiness;
    uint16_t admin_port;
    struct daemon_config daemon;
    struct admin_config admin_config;
};

const char *service_name(const struct service *service)
{
    return service->description->name;
}

const char *service_instance(const struct service *service)
{
    return service->instance;
}

const char *service_config_path(const struct service *service)
{
    return service->config_path;
}

bool service_stopping(const struct service *service)
{
    return atomic_load(&service->stopping);
}

bool service_reload_requested(struct service *service)
{
    return atomic_exchange(&service->reload, false);
}

bool service_wait(const struct service *service, int64_t ms)
{
    int64_t deadline_ms = clock_mono_ms() + ms;

    while (!service_stopping(service)) {
        struct pollfd fd = {.fd = service->stop_fd, .events = POLLIN};
        int64_t left_ms = deadline_ms - clock_mono_ms();
        if (left_ms <= 0)
            break;
        (void)poll(&fd, 1, (int)(left_ms > INT32_MAX ? INT32_MAX : left_ms));
    }
    return service_stopping(service);
}

void service_set_ready(struct service *service, const char *condition, bool ready,
                       const char *reason)
{
    readiness_set(service->readiness, condition, ready, reason);
}

struct readiness *service_readiness(const struct service *service)
{
    return service->readiness;
}

int64_t service_drain_ms(const struct service *service)
{
    return service->daemon.drain_ms;
}

/* ---- the end ---- */

static _Noreturn void end_process(int status)
{
#if defined(__SANITIZE_ADDRESS__)
    if (status != EXIT_FORCED)
        __lsan_do_leak_check(); /* _exit would skip it */
#endif
    (void)fflush(stdout);
    _exit(status);
}

/* ---- signals ---- */

static void signal_set(sigset_t *set)
{
    (void)sigemptyset(set);
    (void)sigaddset(set, SIGTERM);
    (void)sigaddset(set, SIGINT);
    (void)sigaddset(set, SIGHUP);
}

static void stop(struct service *service, int number)
{
    static const uint64_t one = 1;

    LOG(INFO, "service_stopping", F_STR("signal", number == SIGINT ? "SIGINT" : "SIGTERM"),
        F_I64("drain_ms", service_drain_ms(service)));
    atomic_store(&service->stopping, true);
    if (write_all(service->stop_fd, &one, sizeof one) < 0)
        abort(); /* an eventfd takes 2^64 - 2 of these */
}

/* 0: the drain time is over. */
static int next_signal(const struct service *service, const sigset_t *set, int64_t deadline_ms)
{
    for (;;) {
        int64_t left_ms = service_stopping(service) ? deadline_ms - clock_mono_ms() : 3600000;
        struct timespec wait;
        int number;

        if (left_ms <= 0)
            return 0;
        wait = (struct timespec){.tv_sec = left_ms / 1000, .tv_nsec = left_ms % 1000 * 1000000};
        number = sigtimedwait(set, NULL, &wait);
        if (number > 0)
            return number;
    }
}

static _Noreturn void end_at_once(const struct service *service, int number)
{
    if (number == 0) {
        LOG(ERROR, "drain_timed_out", F_I64("drain_ms", service_drain_ms(service)));
    } else {
        LOG(WARN, "service_killed", F_STR("reason", "second signal"));
    }
    end_process(EXIT_FORCED);
}

static void ask_reload(struct service *service)
{
    LOG(INFO, "reload_requested");
    atomic_store(&service->reload, true);
}

static void *on_signal_thread(void *arg)
{
    struct service *service = arg;
    int64_t deadline_ms = 0;
    sigset_t set;

    signal_set(&set);
    for (;;) {
        int number = next_signal(service, &set, deadline_ms);
        if (number == SIGHUP) {
            ask_reload(service);
            continue;
        }
        if (service_stopping(service))
            end_at_once(service, number);
        deadline_ms = clock_mono_ms() + service_drain_ms(service) + SERVICE_DRAIN_GRACE_MS;
        stop(service, number);
    }
}

static void block_signals(void)
{
    sigset_t set;

    signal_set(&set);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
}

static int start_signal_thread(struct service *service, struct error *err)
{
    pthread_t thread;
    int rv;

    service->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (service->stop_fd < 0)
        return error_set_errno(err, errno, "eventfd cannot be made");
    rv = pthread_create(&thread, NULL, on_signal_thread, service);
    if (rv != 0)
        return error_set_errno(err, rv, "signal thread cannot be started");
    (void)pthread_detach(thread);
    return 0;
}

/* ---- arguments ---- */

static void print(FILE *to, const struct strbuf *text)
{
    (void)fputs(text->data, to);
    (void)fflush(to);
}

static void help(const struct service_description *description)
{
    auto_strbuf out;

    strbuf_init(&out, HELP_BYTES_MAX);
    strbuf_addf(&out,
                "%s: %s\n\n"
                "usage: %s [flags]\n"
                "  --config FILE            configuration (default %s)\n"
                "  --check-config           check the configuration and exit\n"
                "  --help                   this text\n"
                "  --version                print the version\n",
                description->name, description->purpose, description->name, CONFIG_PATH_DEFAULT);
    for (const struct service_flag *flag = description->flags; flag != NULL && flag->name != NULL;
         flag++) {
        autofree char *name = xasprintf("--%s%s%s", flag->name, flag->argument == NULL ? "" : " ",
                                        flag->argument == NULL ? "" : flag->argument);
        strbuf_addf(&out, "  %-24s %s\n", name, flag->help);
    }
    strbuf_add(&out, "\nsignals: SIGTERM, SIGINT drain and stop; SIGHUP reads the configuration "
                     "again where a service can\n\nconfiguration keys [default]:\n\n");
    config_help(&out);
    print(stdout, &out);
}

/* The value of `--name value` or `--name=value`; NULL and *matched false when it is another flag,
 * NULL and *matched true when the value is missing. */
static const char *flag_value(const char *name, char **argv, int argc, int *at, bool *matched)
{
    const char *text = argv[*at] + 2;
    size_t n = strlen(name);

    *matched = strncmp(argv[*at], "--", 2) == 0 && strncmp(text, name, n) == 0 &&
               (text[n] == '\0' || text[n] == '=');
    if (!*matched)
        return NULL;
    if (text[n] == '=')
        return text + n + 1;
    return *at + 1 < argc ? argv[++*at] : NULL;
}

static int take_extra(struct service *service, char **argv, int argc, int *at, struct error *err)
{
    const struct service_flag *flags = service->description->flags;

    for (size_t i = 0; flags != NULL && flags[i].name != NULL; i++) {
        const char *value;
        bool matched = false;
        assert(i < FLAGS_MAX);
        if (flags[i].argument == NULL) {
            matched = strncmp(argv[*at], "--", 2) == 0 && strcmp(argv[*at] + 2, flags[i].name) == 0;
            value = "";
        } else {
            value = flag_value(flags[i].name, argv, argc, at, &matched);
        }
        if (!matched)
            continue;
        if (value == NULL)
            return error_set(err, ERR_INVALID, "--%s wants %s", flags[i].name, flags[i].argument);
        service->values[i] = value;
        service->once = service->once || flags[i].once;
        return 0;
    }
    return error_set(err, ERR_INVALID, "unknown argument '%.64s' (--help lists the known ones)",
                     argv[*at]);
}

/* *out_done: --help or --version was answered. */
static int take_arguments(struct service *service, int argc, char **argv, bool *out_done,
                          struct error *err)
{
    for (int i = 1; i < argc; i++) {
        bool matched = false;
        const char *value = flag_value("config", argv, argc, &i, &matched);

        if (matched && value == NULL)
            return error_set(err, ERR_INVALID, "--config wants a file");
        if (matched) {
            service->config_path = value;
        } else if (strcmp(argv[i], "--check-config") == 0) {
            service->check_config = true;
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            help(service->description);
            *out_done = true;
            return 0;
        } else if (strcmp(argv[i], "--version") == 0) {
            (void)printf("%s %s\n", service->description->name, HYPERSDK_VERSION);
            *out_done = true;
            return 0;
        } else if (take_extra(service, argv, argc, &i, err) < 0) {
            return -1;
        }
    }
    return 0;
}

const char *service_flag_value(const struct service *service, const char *name)
{
    const struct service_flag *flags = service->description->flags;

    for (size_t i = 0; flags != NULL && flags[i].name != NULL; i++) {
        if (strcmp(flags[i].name, name) == 0)
            return service->values[i];
    }
    return NULL;
}

/* ---- configuration ---- */

/* Runs on after a failure, so that all problems are told together. */
static void load_sections(struct service *service, const struct config_file *file,
                          enum log_level *out_level, struct strbuf *problems)
{
    struct error err = ERROR_NONE;

    if (config_section(file, "daemon", &service->daemon, problems, &err) == 0 &&
        log_level_parse(service->daemon.log_level, out_level, &err) < 0)
        strbuf_addf(problems, "daemon.log_level: %s\n", err.message);
    error_clear(&err);
    if (config_section(file, "admin", &service->admin_config, problems, &err) < 0)
        error_clear(&err); /* told in problems */
    if (service->description->configure != NULL) {
        size_t before = problems->length;
        if (service->description->configure(file, problems, &err) < 0 && problems->length == before)
            strbuf_addf(problems, "%s\n", err.message);
    }
}

static int load_config(struct service *service, enum log_level *out_level)
{
    auto_config_file *file = NULL;
    auto_strbuf problems;
    struct error err = ERROR_NONE;

    strbuf_init(&problems, CONFIG_PROBLEMS_BYTES_MAX);
    if (config_file_load(service->config_path, &file, &problems, &err) == 0)
        load_sections(service, file, out_level, &problems);
    if (problems.length == 0)
        return 0;
    (void)fprintf(stderr, "%s: the configuration has problems:\n", service->description->name);
    print(stderr, &problems);
    return -1;
}

static const char *admin_address(const struct service *service)
{
    const struct admin_config *config = &service->admin_config;
    const struct {
        const char *key;
        const char *value;
    } addresses[] = {
        {"api_gateway", config->api_gateway},
        {"scheduler", config->scheduler},
        {"exporter", config->exporter},
        {"notifier", config->notifier},
        {"metrics_exporter", config->metrics_exporter},
        {"hyper2kvm_bridge", config->hyper2kvm_bridge},
    };

    for (size_t i = 0; i < ARRAY_LEN(addresses); i++) {
        if (strcmp(addresses[i].key, service->description->admin_key) == 0)
            return addresses[i].value;
    }
    assert(!"admin_key names no member of admin_config");
    return NULL;
}

/* ---- life ---- */

static void name_instance(struct service *service)
{
    char host[HOST_BYTES_MAX + 1] = "";
    uint8_t raw[2];
    char hex[2 * sizeof raw + 1];

    if (gethostname(host, sizeof host - 1) < 0 || host[0] == '\0')
        (void)snprintf(host, sizeof host, "host");
    random_bytes(raw, sizeof raw);
    hex_encode(raw, sizeof raw, hex);
    (void)snprintf(service->instance, sizeof service->instance, "%.48s-%s-%ld-%s",
                   service->description->name, host, (long)getpid(), hex);
}

static int live(struct service *service, struct error *err)
{
    if (start_signal_thread(service, err) < 0)
        return -1;
    if (!service->once &&
        service_admin_start(service, admin_address(service), &service->admin_port, err) < 0)
        return -1;
    LOG(INFO, "service_started", F_STR("version", HYPERSDK_VERSION),
        F_STR("instance", service->instance), F_I64("pid", getpid()));
    return service->description->run(service, err);
}

int service_main(int argc, char **argv, const struct service_description *description)
{
    static struct service service; /* other threads hold it until the very end */
    enum log_level level = LOG_LEVEL_INFO;
    struct error err = ERROR_NONE;
    bool done = false;

    service.description = description;
    service.stop_fd = -1;
    service.readiness = readiness_new();
    name_instance(&service);
    if (take_arguments(&service, argc, argv, &done, &err) < 0) {
        (void)fprintf(stderr, "%s: %s\n", description->name, err.message);
        return EXIT_USAGE;
    }
    if (done)
        return 0;
    if (load_config(&service, &level) < 0)
        return EXIT_USAGE;
    if (service.check_config) {
        (void)printf("configuration ok\n");
        return 0;
    }
    log_init(description->name, level);
    block_signals();
    http_global_init();
    seal_global_init();
    if (live(&service, &err) < 0) {
        LOG(ERROR, "service_failed", F_ERR(&err));
        end_process(error_exit_status(&err));
    }
    LOG(INFO, "service_stopped", F_STR("instance", service.instance));
    end_process(0);
}
