/* Export over HTTPS range reads from a local nginx, durable on disk, against curl fetching the same
 * bytes to /dev/null with as many connections. The reader is the vSphere provider's own; the copy
 * is copy_disk with its journal. Medians of runs in turn, so that a busy machine slows all alike.
 *
 * BENCH_COPY_MIB sets the size (1536), BENCH_COPY_RUNS the runs of each (5). */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "tests/bench/bench.h"

#include "common/clock.h"
#include "services/exporter/formats/sink_file.h"
#include "services/exporter/providers/vsphere/folder.h"

#define CONNECTIONS      4U
#define DISK_MIB_DEFAULT 1536U
#define RUNS_DEFAULT     5U
#define START_MS_MAX     10000

/* ---- programs ---- */

static int write_text(const char *name, const char *text, struct error *err)
{
    autofree char *path = path_of(name);
    autoclose int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write_all(fd, text, strlen(text)) < 0)
        return error_set_errno(err, errno, "cannot write '%s'", path);
    return 0;
}

/* ---- the server ---- */

static int free_port(struct error *err)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    autoclose int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        return error_set_errno(err, errno, "no free port");
    return ntohs(address.sin_port);
}

static bool accepts(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    autoclose int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    return fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
}

static int make_certificate(struct error *err)
{
    autofree char *key = path_of("key.pem");
    autofree char *certificate = path_of("cert.pem");
    const char *argv[] = {"openssl", "req",   "-x509", "-newkey",   "rsa:2048",
                          "-nodes",  "-days", "2",     "-subj",     "/CN=127.0.0.1",
                          "-keyout", key,     "-out",  certificate, NULL};

    return run_program(argv, true, err);
}

static int start_server(int port, pid_t *out, struct error *err)
{
    autofree char *config = path_of("nginx.conf");
    autofree char *text =
        xasprintf("worker_processes 2;\ndaemon off;\npid %s/nginx.pid;\nerror_log %s/error.log;\n"
                  "user root;\nevents { worker_connections 64; }\n"
                  "http { access_log off; keepalive_requests 1000000;\n"
                  " server { listen 127.0.0.1:%d ssl; root %s/data;\n"
                  "  ssl_certificate %s/cert.pem; ssl_certificate_key %s/key.pem; } }\n",
                  folder, folder, port, folder, folder, folder);
    const char *argv[] = {"nginx", "-c", config, "-p", folder, NULL};
    int64_t deadline = clock_mono_ms() + START_MS_MAX;

    if (make_certificate(err) < 0 || write_text("nginx.conf", text, err) < 0)
        return -1;
    *out = start_program(argv, true);
    if (*out < 0)
        return error_set(err, ERR_INTERNAL, "nginx cannot be started");
    while (!accepts(port)) {
        if (clock_mono_ms() > deadline)
            return error_set(err, ERR_TIMEOUT, "nginx does not listen");
        clock_sleep_ms(20);
    }
    return 0;
}

/* Bytes that neither compress nor count as zeros. */
static int make_disk(uint64_t size, struct error *err)
{
    autofree char *data_folder = path_of("data");
    autofree char *path = path_of("data/disk");
    autofree uint64_t *block = xmalloc(MIB);
    autoclose int fd = -1;
    uint64_t state = 0x9e3779b97f4a7c15U;

    if (mkdir(data_folder, 0755) < 0)
        return error_set_errno(err, errno, "cannot make '%s'", data_folder);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot write '%s'", path);
    for (uint64_t at = 0; at < size; at += MIB) {
        for (size_t i = 0; i < MIB / sizeof *block; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block[i] = state;
        }
        if (pwrite_all(fd, block, MIB, at) < 0)
            return error_set_errno(err, errno, "cannot write '%s'", path);
    }
    return fsync(fd) < 0 ? error_set_errno(err, errno, "cannot write '%s'", path) : 0;
}

/* ---- what the processors do ---- */

/* Of all programs, seconds of processor since the machine started. Without /proc: 0. */
static double machine_seconds(void)
{
    FILE *f = fopen("/proc/stat", "re");
    char line[256] = "";
    double ticks = 0;
    char *rest = NULL;
    char *text = line;
    size_t i = 0;

    if (f == NULL)
        return 0;
    if (fgets(line, sizeof line, f) != NULL)
        (void)strtok_r(line, " ", &text); /* "cpu" */
    while ((rest = strtok_r(NULL, " ", &text)) != NULL && i < 8) {
        uint64_t value = 0;
        struct error ignored = ERROR_NONE;
        if (parse_u64("ticks", rest, 0, UINT64_MAX, &value, &ignored) < 0)
            error_clear(&ignored);
        if (i != 3 && i != 4) /* idle, and idle while the disk is waited for */
            ticks += (double)value;
        i++;
    }
    (void)fclose(f);
    return ticks / (double)sysconf(_SC_CLK_TCK);
}

static double children_seconds(void)
{
    struct rusage usage = {0};

    (void)getrusage(RUSAGE_CHILDREN, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* The parts of a copy as they cost alone, in seconds of processor. */
struct parts {
    double read[BENCH_RUNS_MAX]; /* what the curls take for it */
    double hash[BENCH_RUNS_MAX];
    double write[BENCH_RUNS_MAX]; /* of one image */
};

/* ---- the reference ---- */

static int run_curls(const char *url, uint64_t size, double *out_seconds, double *out_cpu,
                     struct error *err)
{
    pid_t pids[CONNECTIONS];
    uint64_t share = size / CONNECTIONS;
    int64_t start = clock_mono_ns();
    double cpu = children_seconds();
    int failed = 0;

    for (unsigned int i = 0; i < CONNECTIONS; i++) {
        uint64_t last = i + 1 == CONNECTIONS ? size - 1 : (i + 1) * share - 1;
        autofree char *range = xasprintf("%" PRIu64 "-%" PRIu64, i * share, last);
        const char *argv[] = {"curl", "-s", "-f",        "-k", "--http1.1", "-r",
                              range,  "-o", "/dev/null", url,  NULL};
        pids[i] = start_program(argv, true);
    }
    for (unsigned int i = 0; i < CONNECTIONS; i++)
        failed |= pids[i] < 0 || wait_program(pids[i]) != 0;
    *out_seconds = (double)(clock_mono_ns() - start) / 1e9;
    *out_cpu = children_seconds() - cpu;
    return failed ? error_set(err, ERR_INTERNAL, "curl failed") : 0;
}

/* ---- ours ---- */

/* The vSphere provider without its inventory: disks are opened from a file that is known. */
static struct folder_file file;

struct provider_disk {
    struct folder_reader *reader;
};

static int bench_open(struct provider_session *session, const struct frozen_vm *frozen,
                      size_t index, struct provider_disk **out, struct error *err)
{
    struct provider_disk *disk = xcalloc(1, sizeof *disk);

    (void)frozen;
    (void)index;
    if (folder_reader_new(session, &file, &disk->reader, err) < 0) {
        free(disk);
        return -1;
    }
    *out = disk;
    return 0;
}

static int bench_read(struct provider_disk *disk, void *buffer, size_t length, uint64_t offset,
                      struct error *err)
{
    return folder_reader_read(disk->reader, buffer, length, offset, err);
}

static int bench_stream(struct provider_disk *disk, uint64_t length, uint64_t offset,
                        int (*take)(void *arg, const void *data, size_t length, struct error *err),
                        void *arg, struct error *err)
{
    return folder_reader_stream(disk->reader, length, offset, take, arg, err);
}

static void bench_close(struct provider_disk *disk)
{
    if (disk == NULL)
        return;
    folder_reader_free(disk->reader);
    free(disk);
}

/* provider.disk_mark: the source stays as it is. */
static int bench_mark(struct provider_session *session, const struct frozen_vm *frozen,
                      size_t index, char **out, struct error *err)
{
    (void)session;
    (void)err;
    *out = xstrdup(frozen->disks[index].mark);
    return 0;
}

static const struct provider bench_provider = {
    .name = "bench",
    .parallel_reads_max = CONNECTIONS,
    .disk_open = bench_open,
    .disk_read = bench_read,
    .disk_stream = bench_stream,
    .disk_close = bench_close,
    .disk_mark = bench_mark,
};

struct figure {
    const char *name;
    const struct sink_format *format;
    const struct sink_format *second; /* written in the same pass; NULL: none */
    bool hash;
    const char *goal;
    double seconds[BENCH_RUNS_MAX];
    double cpu_seconds[BENCH_RUNS_MAX];     /* of our threads meanwhile */
    double machine_seconds[BENCH_RUNS_MAX]; /* of all programs */
};

static int run_copy(struct provider_session *session, struct figure *figure, uint32_t run,
                    struct error *err)
{
    static char mark[] = "mark";
    struct frozen_disk disk = {.size_bytes = file.size_bytes, .mark = mark};
    struct frozen_vm frozen = {.disks = &disk, .disk_count = 1};
    autofree char *path = path_of("out.partial");
    autofree char *journal = path_of("out.journal");
    autofree char *path2 = path_of("out2.partial");
    struct copy_output outputs[] = {
        {.format = figure->format, .path = path, .file_name = "out"},
        {.format = figure->second, .path = path2, .file_name = "out2"},
    };
    struct copy_options options = {
        .provider = &bench_provider,
        .session = session,
        .frozen = &frozen,
        .chunk_bytes = BENCH_CHUNK_BYTES,
        .readers = CONNECTIONS,
        .journal_path = journal,
        .identity = "bench",
        .outputs = outputs,
        .output_count = figure->second == NULL ? 1 : 2,
        .hash = figure->hash,
    };
    auto_copy_result result = {0};
    double machine = machine_seconds();
    double cpu = cpu_seconds();
    int64_t start = clock_mono_ns();
    int rc = copy_disk(&options, &result, err);

    figure->seconds[run] = (double)(clock_mono_ns() - start) / 1e9;
    figure->cpu_seconds[run] = cpu_seconds() - cpu;
    figure->machine_seconds[run] = machine_seconds() - machine;
    if (rc == 0 && result.bytes_transferred != file.size_bytes)
        rc = error_set(err, ERR_INTERNAL, "bytes are missing");
    (void)unlink(path);
    (void)unlink(path2);
    (void)unlink(journal);
    sync(); /* the next run does not pay for the removal of this one's file */
    return rc;
}

/* The disk's bytes into a file through the writeback window, alone: seconds of processor. */
static int run_write(double *out_seconds, struct error *err)
{
    autofree char *path = path_of("alone");
    autofree uint8_t *piece = xalloc_aligned(SINK_PIECE_BYTES);
    autoclose int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    struct writeback writeback;
    double start = cpu_seconds();
    int rc = fd < 0 ? -1 : 0;

    writeback_init(&writeback, fd);
    memset(piece, 0x5a, SINK_PIECE_BYTES);
    for (uint64_t at = 0; at < file.size_bytes && rc == 0; at += SINK_PIECE_BYTES) {
        rc = pwrite_all(fd, piece, SINK_PIECE_BYTES, at);
        writeback_wrote(&writeback, at, SINK_PIECE_BYTES);
    }
    if (rc < 0 || fdatasync(fd) < 0)
        return error_set_errno(err, errno, "cannot write '%s'", path);
    *out_seconds = cpu_seconds() - start;
    writeback_release(&writeback);
    (void)unlink(path);
    return 0;
}

/* The disk's leaves, alone: seconds of processor. */
static void run_hash(double *out_seconds)
{
    autofree uint8_t *piece = xalloc_aligned(SINK_PIECE_BYTES);
    uint8_t leaf[DIGEST_BYTES];
    double start = cpu_seconds();

    memset(piece, 0x5a, SINK_PIECE_BYTES);
    for (uint64_t at = 0; at < file.size_bytes; at += SINK_PIECE_BYTES)
        leaf_digest(piece, SINK_PIECE_BYTES, leaf);
    *out_seconds = cpu_seconds() - start;
}

/* ---- figures ---- */

static struct figure figures[] = {
    {.name = "export_raw_without_hash", .format = &sink_raw, .hash = false, .goal = ">=0.85"},
    {.name = "export_raw_with_hash", .format = &sink_raw, .hash = true, .goal = ">=0.60"},
    {.name = "export_qcow2_with_hash", .format = &sink_qcow2, .hash = true, .goal = ">=0.50"},
    {.name = "export_vmdk_with_hash", .format = &sink_vmdk, .hash = true, .goal = "-"},
    {.name = "export_vmdk_and_qcow2_with_hash",
     .format = &sink_vmdk,
     .second = &sink_qcow2,
     .hash = true,
     .goal = "-"},
};
enum { ALONE = 3, CONVERTING = 4 }; /* of them: what a conversion in the same pass costs */

/* Medians of what stands in struct parts. */
struct costs {
    double read, hash, write;
};

/* Where the time of the machine's processors went while the figure was measured. */
static void print_profile(const char *note, struct figure *figure, uint32_t runs,
                          const struct costs *costs)
{
    double processors = (double)sysconf(_SC_NPROCESSORS_ONLN);
    double all = median_seconds(figure->seconds, runs) * processors;
    double cpu = median_seconds(figure->cpu_seconds, runs);
    double machine = median_seconds(figure->machine_seconds, runs);
    double hash = figure->hash ? costs->hash : 0;
    double write = figure->second == NULL ? costs->write : 2 * costs->write;
    double parts = costs->read + hash + write;

    (void)printf("# %s profile of %.2f s (%s) with %.0f processors: read %.0f %%, sha256 %.0f %%, "
                 "write %.0f %%, else at work %.0f %%, server and other programs %.0f %%, idle or "
                 "waiting for the disk %.0f %%\n",
                 note, all / processors, figure->name, processors, 100 * costs->read / all,
                 100 * hash / all, 100 * write / all, 100 * (cpu > parts ? cpu - parts : 0) / all,
                 100 * (machine > cpu ? machine - cpu : 0) / all,
                 100 * (all > machine ? all - machine : 0) / all);
}

/* curl, the server and the copy share the processors: what a copy adds at least is the writing. */
static void print_raw_limit(double curl, double write)
{
    double processors = (double)sysconf(_SC_NPROCESSORS_ONLN);
    double least = curl + write / processors;
    double mib = (double)file.size_bytes / (double)MIB;

    (void)printf("export_raw_without_hash_limit %.0f MiB/s %.0f %.2f -\n", mib / least, mib / curl,
                 curl / least);
    (void)printf("# export_raw_without_hash_limit writing as much takes %.2f s of processor (%.0f "
                 "here), curl %.2f s -> at most %.2f x when they are busy\n",
                 write, processors, curl, curl / least);
}

static void print_converting(uint32_t runs, const struct costs *costs)
{
    double processors = (double)sysconf(_SC_NPROCESSORS_ONLN);
    double alone = median_seconds(figures[ALONE].seconds, runs);
    double converting = median_seconds(figures[CONVERTING].seconds, runs);
    double least = alone + costs->write / processors;

    (void)printf("export_while_converting %.2f s %.2f %.2f <=1.05\n", converting, alone,
                 converting / alone);
    print_profile("export_while_converting", &figures[CONVERTING], runs, costs);
    print_profile("export_while_converting", &figures[ALONE], runs, costs);
    (void)printf("export_while_converting_limit %.2f s %.2f %.2f -\n", least, alone, least / alone);
    (void)printf("# export_while_converting_limit writing a second image takes %.2f s of processor "
                 "(%.0f here) -> at least %.2f x when they are busy\n",
                 costs->write, processors, least / alone);
}

static int measure(struct provider_session *session, uint32_t runs, struct error *err)
{
    double reference[BENCH_RUNS_MAX];
    struct parts parts;
    struct costs costs;
    double rate;

    for (uint32_t run = 0; run < runs; run++) {
        run_hash(&parts.hash[run]);
        if (run_curls(file.url, file.size_bytes, &reference[run], &parts.read[run], err) < 0 ||
            run_write(&parts.write[run], err) < 0)
            return -1;
        for (size_t i = 0; i < ARRAY_LEN(figures); i++) {
            if (run_copy(session, &figures[i], run, err) < 0)
                return -1;
        }
    }
    rate = median_rate(reference, runs, file.size_bytes);
    costs = (struct costs){median_seconds(parts.read, runs), median_seconds(parts.hash, runs),
                           median_seconds(parts.write, runs)};
    for (size_t i = 0; i < ARRAY_LEN(figures); i++) {
        double ours = median_rate(figures[i].seconds, runs, file.size_bytes);
        (void)printf("%s %.0f MiB/s %.0f %.2f %s\n", figures[i].name, ours, rate, ours / rate,
                     figures[i].goal);
        print_profile(figures[i].name, &figures[i], runs, &costs);
        if (i == 0)
            print_raw_limit(median_seconds(reference, runs), costs.write);
    }
    print_converting(runs, &costs);
    return 0;
}

static int session_make(const struct vsphere_config *config, struct provider_session **out,
                        struct error *err)
{
    if (session_new(config, NULL, out, err) < 0)
        return -1;
    if ((*out)->cookie == NULL)
        (*out)->cookie = xstrdup("bench=1");
    return 0;
}

static int bench(pid_t *server, struct error *err)
{
    struct provider_session *session = NULL;
    uint32_t mib = 0;
    uint32_t runs = 0;
    int port = free_port(err);
    int rc;

    if (port < 0 || number_of("BENCH_COPY_MIB", DISK_MIB_DEFAULT, 65536, &mib, err) < 0 ||
        number_of("BENCH_COPY_RUNS", RUNS_DEFAULT, BENCH_RUNS_MAX, &runs, err) < 0 ||
        make_disk(mib * MIB, err) < 0 || start_server(port, server, err) < 0)
        return -1;
    autofree char *host = xasprintf("127.0.0.1:%d", port);
    struct vsphere_config config = {.host = host,
                                    .username = (char *)(uintptr_t) "bench",
                                    .password = (char *)(uintptr_t) "bench",
                                    .thumbprint = (char *)(uintptr_t) "",
                                    .ca_file = (char *)(uintptr_t) "",
                                    .datacenter = (char *)(uintptr_t) "",
                                    .insecure = true,
                                    .timeout_ms = 30000};
    file = (struct folder_file){.url = xasprintf("https://%s/disk", host),
                                .path = xstrdup("[bench] disk"),
                                .size_bytes = mib * MIB};
    rc = session_make(&config, &session, err);
    if (rc == 0)
        rc = measure(session, runs, err);
    session_free(session);
    folder_file_release(&file);
    return rc;
}

int main(void)
{
    struct error err = ERROR_NONE;
    pid_t server = -1;
    int rc;

    if (mkdtemp(folder) == NULL) {
        (void)fprintf(stderr, "bench_copy: no temporary folder\n");
        return 1;
    }
    rc = bench(&server, &err);
    if (rc < 0)
        (void)fprintf(stderr, "bench_copy: %s\n", err.message);
    if (server > 0) {
        (void)kill(server, SIGTERM);
        (void)wait_program(server);
    }
    remove_folder();
    return rc < 0 ? 1 : 0;
}
