/* How long a parked worker waits for its task once the scheduler answers: the bus's lease socket
 * over tcp, against a raw TCP round trip of as many bytes in the same run. Medians. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "common/bus.h"
#include "common/clock.h"

#define ROUNDS     2000
#define WARM_UP    200
#define TASK_BYTES 1200 /* a lease with a typical export spec */

static struct bus_request *volatile parked;
static sem_t parked_ready;
static int64_t answered_ns;

static void on_request(void *arg, struct bus_request *request)
{
    (void)arg;
    parked = request;
    (void)sem_post(&parked_ready);
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static double median_us(int64_t *samples, size_t count)
{
    qsort(samples, count, sizeof *samples, compare);
    return (double)samples[count / 2] / 1000.0;
}

static void *scheduler(void *arg)
{
    char spec[TASK_BYTES];

    (void)arg;
    memset(spec, 'x', sizeof spec - 1);
    spec[sizeof spec - 1] = '\0';
    for (;;) {
        uint8_t token[16] = {0};
        Hypersdk__V1__TaskRef ref;
        Hypersdk__V1__TaskLease body;
        struct bus_envelope_store store;
        bus_envelope reply;
        (void)sem_wait(&parked_ready);
        clock_sleep_ms(1); /* the request is parked by now, as in life */
        hypersdk__v1__task_ref__init(&ref);
        hypersdk__v1__task_lease__init(&body);
        ref.task_id = (char *)(uintptr_t) "task-0123456789abcdef";
        ref.epoch = 1;
        ref.token = (ProtobufCBinaryData){sizeof token, token};
        body.ref = &ref;
        body.kind = (char *)(uintptr_t) "export";
        body.lease_ms = 30000;
        body.spec_json = spec;
        bus_envelope_init(&reply, &store, "scheduler", NULL);
        reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE;
        reply.task_lease = &body;
        answered_ns = clock_mono_ns();
        bus_request_reply(parked, &reply);
    }
    return NULL;
}

static int lease_once(struct bus_client *client, int64_t *out_ns, struct error *err)
{
    char *kinds[] = {(char *)(uintptr_t) "export"};
    Hypersdk__V1__LeaseRequest body;
    struct bus_envelope_store store;
    auto_bus_envelope *reply = NULL;
    bus_envelope envelope;

    hypersdk__v1__lease_request__init(&body);
    body.instance = (char *)(uintptr_t) "bench";
    body.role = (char *)(uintptr_t) "exporter";
    body.class_ = HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
    body.task_kinds = kinds;
    body.n_task_kinds = 1;
    body.slots_total = 1;
    bus_envelope_init(&envelope, &store, "bench", NULL);
    envelope.body_case = HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST;
    envelope.lease_request = &body;
    if (bus_client_call(client, &envelope, 5000, &reply, err) < 0)
        return -1;
    *out_ns = clock_mono_ns() - answered_ns;
    return 0;
}

static int free_port(uint16_t *out, struct error *err)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    autoclose int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        return error_set(err, ERR_INTERNAL, "no free port");
    *out = ntohs(address.sin_port);
    return 0;
}

static int bus_median(double *out, struct error *err)
{
    static char address[64];
    static char *items[] = {address};
    struct bus_config config = {.lease = {items, 1},
                                .listen_lease = (char *)(uintptr_t) "",
                                .tls_ca_file = (char *)(uintptr_t) "",
                                .tls_cert_key_file = (char *)(uintptr_t) "",
                                .tls_server_name = (char *)(uintptr_t) ""};
    static int64_t samples[ROUNDS];
    struct bus_server *server = NULL;
    struct bus_client *client = NULL;
    pthread_t thread;
    uint16_t port = 0;
    int64_t ns = 0;

    if (free_port(&port, err) < 0)
        return -1;
    (void)snprintf(address, sizeof address, "tcp://127.0.0.1:%u", port);
    (void)sem_init(&parked_ready, 0, 0);
    if (bus_server_open(&config, 4, on_request, NULL, &server, err) < 0 ||
        bus_client_open(&config, &client, err) < 0)
        return -1;
    if (pthread_create(&thread, NULL, scheduler, NULL) != 0)
        return error_set(err, ERR_INTERNAL, "no thread");
    for (size_t i = 0; i < WARM_UP + ROUNDS; i++) {
        if (lease_once(client, &ns, err) < 0)
            return -1;
        if (i >= WARM_UP)
            samples[i - WARM_UP] = ns;
    }
    *out = median_us(samples, ROUNDS);
    return 0;
}

/* ---- the reference ---- */

static void *echo(void *arg)
{
    int listener = *(int *)arg;
    autoclose int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    char buffer[TASK_BYTES];
    int one = 1;

    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (recv(fd, buffer, sizeof buffer, MSG_WAITALL) == (ssize_t)sizeof buffer &&
           write_all(fd, buffer, sizeof buffer) == 0)
        continue;
    return NULL;
}

static int tcp_median(double *out, struct error *err)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    static int64_t samples[ROUNDS];
    autoclose int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    autoclose int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char buffer[TASK_BYTES] = {0};
    pthread_t thread;
    int one = 1;

    if (bind(listener, (struct sockaddr *)&address, size) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0 ||
        pthread_create(&thread, NULL, echo, &listener) != 0 ||
        connect(fd, (struct sockaddr *)&address, size) < 0)
        return error_set(err, ERR_INTERNAL, "no TCP connection");
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (size_t i = 0; i < WARM_UP + ROUNDS; i++) {
        int64_t start = clock_mono_ns();
        if (write_all(fd, buffer, sizeof buffer) < 0 ||
            recv(fd, buffer, sizeof buffer, MSG_WAITALL) != (ssize_t)sizeof buffer)
            return error_set(err, ERR_INTERNAL, "TCP connection broke");
        if (i >= WARM_UP)
            samples[i - WARM_UP] = clock_mono_ns() - start;
    }
    *out = median_us(samples, ROUNDS);
    return 0;
}

int main(void)
{
    struct error err = ERROR_NONE;
    double bus = 0;
    double tcp = 0;

    if (bus_median(&bus, &err) < 0 || tcp_median(&tcp, &err) < 0) {
        (void)fprintf(stderr, "bench_dispatch: %s\n", err.message);
        return 1;
    }
    /* The goal is architecture.md's 30-50 us against some 15-25 us of a round trip. */
    (void)printf("dispatch_to_parked_worker %.1f us %.1f %.2f <=4\n", bus, tcp, bus / tcp);
    (void)fflush(stdout);
    _exit(0); /* sockets of the bus are never closed */
}
