/* Conversions in process, by the copy engine with leaf digests, against other people's programs
 * doing the same with the same file; everything durable on disk at the end. The source is an image
 * that both readers open (each inflates its own grains). Medians of runs in turn; of a program's
 * ways to do it, the fastest counts. "_limit" is what this machine gives at most: the parts that
 * nobody can leave out (reading and inflating, SHA-256, writing the same bytes with fdatasync),
 * each done alone by the same threads, added up. Below a figure stands where its time went.
 *
 * BENCH_FORMATS_MIB sets the disk's size (512; half of it holds data), BENCH_FORMATS_RUNS the runs
 * of each (3). */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/bench/bench.h"

#include "common/clock.h"
#include "services/exporter/engine/image_copy.h"
#include "services/exporter/formats/sink_file.h"

#define DISK_MIB_DEFAULT 512U
#define RUNS_DEFAULT     3U
#define THREADS          2U
#define RUN_BYTES        (4 * MIB) /* data and holes take turns */
#define PROGRAM_ARGS_MAX 16U
#define REFERENCES_MAX   4U

/* ---- the disk ---- */

/* Shrinks to somewhat over a half, as file systems do: random bytes, then words out of a few. */
static void fill(uint64_t *block, size_t count, uint64_t *state)
{
    for (size_t i = 0; i < count; i++) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        block[i] = i % 512 < 256 ? *state : UINT64_C(0x6874206b63697571) + *state % 64;
    }
}

static int make_disk(const char *path, uint64_t size, struct error *err)
{
    autofree uint64_t *block = xmalloc(RUN_BYTES);
    autoclose int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    uint64_t state = UINT64_C(0x9e3779b97f4a7c15);

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        return error_set_errno(err, errno, "cannot write '%s'", path);
    for (uint64_t at = 0; at < size; at += 2 * RUN_BYTES) {
        fill(block, RUN_BYTES / sizeof *block, &state);
        if (pwrite_all(fd, block, RUN_BYTES, at) < 0)
            return error_set_errno(err, errno, "cannot write '%s'", path);
    }
    return fsync(fd) < 0 ? error_set_errno(err, errno, "cannot write '%s'", path) : 0;
}

/* ---- figures ---- */

enum part { PART_READ, PART_HASH, PART_WRITE, PART_COUNT };

struct figure {
    const char *name;
    const char *source; /* file and its format */
    const char *source_format;
    const struct sink_format *format;
    bool hash;
    const char *references[REFERENCES_MAX][PROGRAM_ARGS_MAX]; /* "IN", "OUT": the files */
    const char *goal;
    double seconds[BENCH_RUNS_MAX];
    double cpu_seconds[BENCH_RUNS_MAX];              /* of our threads meanwhile */
    double part_seconds[PART_COUNT][BENCH_RUNS_MAX]; /* of processor */
    double disk_seconds[BENCH_RUNS_MAX];             /* on the clock, of the write */
    double reference_seconds[REFERENCES_MAX][BENCH_RUNS_MAX];
    uint64_t bytes;
    uint64_t reference_bytes;
};

#define TO_QCOW2(source, ...)                                                        \
    {                                                                                \
        "qemu-img", "convert", __VA_ARGS__, "-f", source, "-O", "qcow2", "IN", "OUT" \
    }
/* -T none was never faster: it reads without the page cache. */
#define WAYS_TO_QCOW2(source)                                                              \
    {                                                                                      \
        TO_QCOW2(source, "-t", "none"), TO_QCOW2(source, "-t", "writeback"),               \
            TO_QCOW2(source, "-t", "none", "-m", "1"), TO_QCOW2(source, "-m", "16", "-W"), \
    }

static struct figure figures[] = {
    {.name = "vmdk_to_qcow2_with_hash",
     .source = "disk.vmdk",
     .source_format = "vmdk",
     .format = &sink_qcow2,
     .hash = true,
     .references = WAYS_TO_QCOW2("vmdk"),
     .goal = ">=3"},
    {.name = "raw_to_stream_optimized",
     .source = "disk.raw",
     .source_format = "raw",
     .format = &sink_vmdk,
     .hash = true,
     .references = {{"qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o",
                     "subformat=streamOptimized", "IN", "OUT"}},
     .goal = ">=10"},
    {.name = "raw_to_raw_sparse",
     .source = "disk.raw",
     .source_format = "raw",
     .format = &sink_raw,
     .hash = false,
     .references = {{"nbdcopy", "--flush", "IN", "OUT"}},
     .goal = ">=0.9"},
    {.name = "raw_to_qcow2_with_hash",
     .source = "disk.raw",
     .source_format = "raw",
     .format = &sink_qcow2,
     .hash = true,
     .references = WAYS_TO_QCOW2("raw"),
     .goal = ">=1.2"},
};

static int file_bytes(const char *path, uint64_t *out, struct error *err)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "'%s'", path);
    *out = (uint64_t)st.st_size;
    return 0;
}

/* Takes the file away; the next run does not pay for that. */
static int remove_output(const char *path, uint64_t *out_bytes, struct error *err)
{
    int rc = file_bytes(path, out_bytes, err);

    (void)unlink(path);
    sync();
    return rc;
}

static int run_reference(struct figure *figure, size_t way, uint32_t run, struct error *err)
{
    autofree char *in = path_of(figure->source);
    autofree char *out = path_of("reference");
    const char *argv[PROGRAM_ARGS_MAX + 1] = {0};
    int64_t start;
    int fd;

    for (size_t i = 0; i < PROGRAM_ARGS_MAX && figure->references[way][i] != NULL; i++) {
        const char *word = figure->references[way][i];
        argv[i] = strcmp(word, "IN") == 0 ? in : strcmp(word, "OUT") == 0 ? out : word;
    }
    start = clock_mono_ns();
    if (run_program(argv, false, err) < 0)
        return -1;
    fd = open(out, O_RDONLY | O_CLOEXEC); /* an exit status of 0 is not durability */
    if (fd < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "cannot sync '%s'", out);
    (void)close(fd);
    figure->reference_seconds[way][run] = (double)(clock_mono_ns() - start) / 1e9;
    return remove_output(out, &figure->reference_bytes, err);
}

static int run_references(struct figure *figure, uint32_t run, struct error *err)
{
    for (size_t way = 0; way < REFERENCES_MAX && figure->references[way][0] != NULL; way++) {
        if (run_reference(figure, way, run, err) < 0)
            return -1;
    }
    return 0;
}

/* MiB per second of the fastest way. */
static double reference_rate(struct figure *figure, uint32_t runs, uint64_t size)
{
    double best = 0;

    for (size_t way = 0; way < REFERENCES_MAX && figure->references[way][0] != NULL; way++) {
        double rate = median_rate(figure->reference_seconds[way], runs, size);
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---- what it must cost ---- */

/* A part of the work alone, over the same pieces; what is written goes to disk as in a copy. */
struct crew {
    const struct figure *figure;
    uint64_t size;
    enum part part;
    int fd;
    struct writeback writeback;
    atomic_uint_fast64_t next; /* on the disk */
    atomic_uint_fast64_t end;  /* of what is written */
    atomic_uint running;
    atomic_bool failed;
};

static int crew_work(struct crew *crew, struct image *image, uint64_t at, uint8_t *piece,
                     struct error *err)
{
    uint8_t leaf[DIGEST_BYTES];
    uint64_t offset;

    switch (crew->part) {
    case PART_READ:
        return image_read(image, piece, SINK_PIECE_BYTES, at, err);
    case PART_HASH:
        leaf_digest(piece, SINK_PIECE_BYTES, leaf);
        return 0;
    case PART_WRITE:
        offset = atomic_fetch_add(&crew->end, SINK_PIECE_BYTES);
        if (pwrite_all(crew->fd, piece, SINK_PIECE_BYTES, offset) < 0)
            return error_set_errno(err, errno, "cannot write");
        writeback_wrote(&crew->writeback, offset, SINK_PIECE_BYTES);
        return 0;
    case PART_COUNT:
        break;
    }
    abort();
}

static void *crew_main(void *arg)
{
    struct crew *crew = arg;
    autofree char *in = path_of(crew->figure->source);
    autofree uint8_t *piece = xalloc_aligned(SINK_PIECE_BYTES);
    auto_image *image = NULL;
    struct error err = ERROR_NONE;
    uint64_t at = 0;

    /* the first piece is data: what is hashed and written */
    if (image_open(in, crew->figure->source_format, &image, &err) < 0 ||
        image_read(image, piece, SINK_PIECE_BYTES, 0, &err) < 0)
        atomic_store(&crew->failed, true);
    while (err.code == ERR_NONE &&
           (at = atomic_fetch_add(&crew->next, SINK_PIECE_BYTES)) < crew->size) {
        if (!image_is_hole(image, at, SINK_PIECE_BYTES) &&
            crew_work(crew, image, at, piece, &err) < 0)
            atomic_store(&crew->failed, true);
    }
    atomic_fetch_sub(&crew->running, 1);
    return NULL;
}

/* Until the threads are through. */
static void flush_meanwhile(struct crew *crew)
{
    uint64_t flushed = 0;

    while (atomic_load(&crew->running) > 0) {
        uint64_t end = atomic_load(&crew->end);
        if (end - flushed < COPY_FLUSH_BYTES) {
            clock_sleep_ms(1);
            continue;
        }
        flushed = end;
        if (fdatasync(crew->fd) < 0)
            atomic_store(&crew->failed, true);
    }
}

static int run_part(struct figure *figure, enum part part, uint64_t size, uint32_t run,
                    struct error *err)
{
    autofree char *out = path_of("part");
    autoclose int fd = open(out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    struct crew crew = {.figure = figure, .size = size, .part = part, .fd = fd};
    pthread_t threads[THREADS];
    unsigned int started = 0;
    int64_t start = clock_mono_ns();
    double cpu = cpu_seconds();

    writeback_init(&crew.writeback, fd);
    atomic_init(&crew.running, THREADS);
    while (started < THREADS && pthread_create(&threads[started], NULL, crew_main, &crew) == 0)
        started++;
    atomic_fetch_sub(&crew.running, THREADS - started);
    flush_meanwhile(&crew);
    for (unsigned int i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    if (fd < 0 || fdatasync(fd) < 0 || started < THREADS || atomic_load(&crew.failed))
        return error_set(err, ERR_INTERNAL, "cannot measure a part of '%s'", figure->name);
    figure->part_seconds[part][run] = cpu_seconds() - cpu;
    if (part == PART_WRITE)
        figure->disk_seconds[run] = (double)(clock_mono_ns() - start) / 1e9;
    writeback_release(&crew.writeback);
    (void)unlink(out);
    return 0;
}

static int run_parts(struct figure *figure, uint64_t size, uint32_t run, struct error *err)
{
    for (enum part part = 0; part < PART_COUNT; part++) {
        if (run_part(figure, part, size, run, err) < 0)
            return -1;
    }
    return 0;
}

/* Where the time of the copy's processors went: the parts as they cost alone, what else our threads
 * did, and the rest, when nobody of ours ran: waiting for the disk, or for processors that others
 * had. */
static void print_profile(struct figure *figure, uint32_t runs, const double *part)
{
    double processors = (double)sysconf(_SC_NPROCESSORS_ONLN);
    double all = median_seconds(figure->seconds, runs) * processors;
    double cpu = median_seconds(figure->cpu_seconds, runs);
    double parts = part[PART_READ] + part[PART_HASH] + part[PART_WRITE];

    (void)printf("# %s profile of %.2f s with %.0f processors: read %.0f %%, sha256 %.0f %%, write "
                 "%.0f %%, else at work %.0f %%, waiting for disk or processor %.0f %%\n",
                 figure->name, all / processors, processors, 100 * part[PART_READ] / all,
                 100 * part[PART_HASH] / all, 100 * part[PART_WRITE] / all,
                 100 * (cpu > parts ? cpu - parts : 0) / all,
                 100 * (all > cpu ? all - cpu : 0) / all);
}

/* Nobody is faster than the processors with all parts, or the disk with its own. */
static void print_limit(struct figure *figure, uint32_t runs, uint64_t size, double reference)
{
    double processors = (double)sysconf(_SC_NPROCESSORS_ONLN);
    double part[PART_COUNT];
    double disk = median_seconds(figure->disk_seconds, runs);
    double all = 0;
    double least;
    double rate;

    for (size_t i = 0; i < PART_COUNT; i++) {
        part[i] = median_seconds(figure->part_seconds[i], runs);
        all += part[i];
    }
    least = all / processors > disk ? all / processors : disk;
    rate = (double)size / (double)MIB / least;
    print_profile(figure, runs, part);
    (void)printf("%s_limit %.0f MiB/s %.0f %.2f -\n", figure->name, rate, reference,
                 rate / reference);
    (void)printf("# %s_limit read %.0f %%, sha256 %.0f %%, write %.0f %% of %.2f s of processor, "
                 "%.2f s with %.0f of them; the write alone takes the disk %.2f s -> at most "
                 "%.2f x\n",
                 figure->name, 100 * part[PART_READ] / all, 100 * part[PART_HASH] / all,
                 100 * part[PART_WRITE] / all, all, all / processors, processors, disk,
                 rate / reference);
}

static int run_copy(struct figure *figure, uint32_t run, struct error *err)
{
    autofree char *in = path_of(figure->source);
    autofree char *out = path_of("ours");
    struct copy_output output = {.format = figure->format, .path = out, .file_name = "ours"};
    const struct image_copy_options options = {
        .image = {.path = in, .format = figure->source_format},
        .threads = THREADS,
        .outputs = &output,
        .output_count = 1,
        .no_hash = !figure->hash,
    };
    auto_copy_result result = {0};
    int64_t start = clock_mono_ns();
    double cpu = cpu_seconds();

    if (image_copy(&options, &result, err) < 0)
        return -1;
    figure->seconds[run] = (double)(clock_mono_ns() - start) / 1e9;
    figure->cpu_seconds[run] = cpu_seconds() - cpu;
    const struct copy_verify_options check = {
        .image = {.path = out, .format = figure->format->name},
        .leaves = result.leaves,
        .threads = THREADS,
    };
    if (run == 0 && result.leaves != NULL && copy_verify(&check, err) < 0)
        return -1;
    return remove_output(out, &figure->bytes, err);
}

static int measure(uint64_t size, uint32_t runs, struct error *err)
{
    for (uint32_t run = 0; run < runs; run++) {
        for (size_t i = 0; i < ARRAY_LEN(figures); i++) {
            if (run_references(&figures[i], run, err) < 0 ||
                (figures[i].format == &sink_qcow2 && run_parts(&figures[i], size, run, err) < 0) ||
                run_copy(&figures[i], run, err) < 0)
                return error_wrap(err, "%s", figures[i].name);
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(figures); i++) {
        double ours = median_rate(figures[i].seconds, runs, size);
        double reference = reference_rate(&figures[i], runs, size);
        (void)printf("%s %.0f MiB/s %.0f %.2f %s\n", figures[i].name, ours, reference,
                     ours / reference, figures[i].goal);
        if (figures[i].format == &sink_qcow2)
            print_limit(&figures[i], runs, size, reference);
        if (figures[i].format == &sink_vmdk) {
            (void)printf("%s_size %.1f MiB %.1f %.3f <=1.05\n", figures[i].name,
                         (double)figures[i].bytes / (double)MIB,
                         (double)figures[i].reference_bytes / (double)MIB,
                         (double)figures[i].bytes / (double)figures[i].reference_bytes);
        }
    }
    return 0;
}

static int bench(struct error *err)
{
    autofree char *raw = path_of("disk.raw");
    autofree char *vmdk = path_of("disk.vmdk");
    const char *make_vmdk[] = {"qemu-img", "convert", "-f", "raw",
                               "-O",       "vmdk",    "-o", "subformat=streamOptimized",
                               raw,        vmdk,      NULL};
    uint32_t mib = 0;
    uint32_t runs = 0;

    if (number_of("BENCH_FORMATS_MIB", DISK_MIB_DEFAULT, 65536, &mib, err) < 0 ||
        number_of("BENCH_FORMATS_RUNS", RUNS_DEFAULT, BENCH_RUNS_MAX, &runs, err) < 0 ||
        make_disk(raw, round_up_u64(mib * MIB, 2 * RUN_BYTES), err) < 0 ||
        run_program(make_vmdk, false, err) < 0)
        return -1;
    return measure(round_up_u64(mib * MIB, 2 * RUN_BYTES), runs, err);
}

int main(void)
{
    struct error err = ERROR_NONE;
    int rc;

    if (mkdtemp(folder) == NULL) {
        (void)fprintf(stderr, "bench_formats: no temporary folder\n");
        return 1;
    }
    rc = bench(&err);
    if (rc < 0)
        (void)fprintf(stderr, "bench_formats: %s\n", err.message);
    remove_folder();
    return rc < 0 ? 1 : 0;
}
