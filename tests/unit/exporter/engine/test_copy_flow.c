/* What the copy engine holds in memory, how many readers it has, when it syncs, and what its
 * progress tells. */
#include <inttypes.h>

#include "common/log.h"
#include "services/exporter/engine/copy.h"
#include "tests/unit/exporter/engine/copy_one.h"

/* ---- bounds and progress ---- */

static void more_readers_come_while_that_brings_more(void **state)
{
    (void)state;
    struct one one;
    one_make(&one, &file_provider, 160 * MIB, "raw");
    one.setup.options.readers = 16;
    one.setup.options.hash = false;
    one.session.delay_ms = 60;
    one_works(&one, false);
    print_message("%d connections\n", atomic_load(&one.session.opens));
    assert_true(atomic_load(&one.session.opens) > 4);
    one_remove(&one);
}

/* ---- stopping ---- */

/* A sink that takes a while, or stands still until it is let go. */
struct sink {
    int unused;
};
static atomic_uint_fast64_t slow_written;
static atomic_bool slow_blocked;
static int64_t slow_ms;

static int slow_open(const struct sink_options *options, struct sink **out, struct error *err)
{
    (void)options;
    (void)err;
    *out = xcalloc(1, sizeof **out);
    return 0;
}

static int slow_write(struct sink *sink, uint64_t offset, const void *data, size_t length,
                      struct error *err)
{
    (void)sink;
    (void)offset;
    (void)data;
    (void)err;
    while (atomic_load(&slow_blocked))
        clock_sleep_ms(2);
    clock_sleep_ms(slow_ms);
    atomic_fetch_add(&slow_written, length);
    return 0;
}

static int slow_zero(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    return slow_write(sink, offset, NULL, (size_t)length, err);
}

static int slow_state(struct sink *sink, struct strbuf *text, struct error *err)
{
    (void)sink;
    (void)err;
    strbuf_add(text, "slow");
    return 0;
}

static int slow_nothing(struct sink *sink, struct error *err)
{
    (void)sink;
    (void)err;
    return 0;
}

static void slow_close(struct sink *sink)
{
    free(sink);
}

static bool slow_sha256(const struct sink *sink, char out[65])
{
    (void)sink;
    (void)out;
    return false;
}

static const struct sink_format slow_formats[] = {
    {"slow", ".slow", 0, slow_open, NULL, NULL, slow_write, slow_zero, slow_state, slow_nothing,
     NULL, slow_nothing, slow_close, slow_sha256},
    {"slow-ordered", ".slow", SINK_ORDERED, slow_open, NULL, NULL, slow_write, slow_zero,
     slow_state, slow_nothing, NULL, slow_nothing, slow_close, slow_sha256},
};

static void *run_copy(void *arg)
{
    struct one *one = arg;
    one_fails(one, ERR_CANCELLED, "stopped");
    return NULL;
}

/* Waits until at least so much was read, and then no more is; bytes that were. */
static uint64_t read_when_nothing_moves(const struct one *one, uint64_t at_least)
{
    uint64_t before = 1;
    uint64_t now = 0;

    for (int i = 0; i < 200 && (now < at_least || now != before); i++) {
        before = now;
        clock_sleep_ms(300);
        now = atomic_load(&one->session.bytes);
    }
    return now;
}

/* What was read and not written can only lie in memory. */
static void a_blocked_output_holds_the_readers_within_the_bound(void **state)
{
    (void)state;
    for (size_t f = 0; f < ARRAY_LEN(slow_formats); f++) {
        struct one one;
        atomic_bool stopped = false;
        pthread_t thread;
        uint64_t now;

        one_make(&one, &stream_provider, 200 * MIB, "raw");
        one.setup.outputs[0].format = &slow_formats[f];
        one.setup.options.journal_path = NULL;
        one.setup.options.stopped = &stopped;
        atomic_store(&slow_blocked, true);
        atomic_store(&slow_written, 0);
        slow_ms = 0;
        assert_int_equal(pthread_create(&thread, NULL, run_copy, &one), 0);
        now = read_when_nothing_moves(&one, 8 * MIB);
        print_message("%s: %ju MiB in memory\n", slow_formats[f].name, (uintmax_t)(now / MIB));
        assert_true(now <= (COPY_PIECES_PER_READER * 4 + 1) * MIB);
        assert_true(now >= 8 * MIB);
        atomic_store(&stopped, true);
        atomic_store(&slow_blocked, false);
        assert_int_equal(pthread_join(thread, NULL), 0);
        one_remove(&one);
    }
}

static void *run_working_copy(void *arg)
{
    one_works(arg, false);
    return NULL;
}

/* All wait for the first piece: the others may go on up to the bound, and nothing locks up. */
static void a_held_first_piece_bounds_what_waits_behind_it(void **state)
{
    static const char *const formats[] = {"vmdk", "vmdk raw qcow2"};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < ARRAY_LEN(formats); f++) {
        struct one one;
        atomic_bool held = true;
        pthread_t thread;
        uint64_t now;

        one_make(&one, &file_provider, 150 * MIB, formats[f]);
        one.setup.options.chunk_bytes = 10 * MIB;
        one.session.held = &held;
        one.session.hold_below = 1;
        assert_int_equal(pthread_create(&thread, NULL, run_working_copy, &one), 0);
        now = read_when_nothing_moves(&one, 1);
        print_message("%ju MiB wait\n", (uintmax_t)(now / MIB));
        assert_true(now <= COPY_PIECES_PER_READER * 4 * MIB);
        atomic_store(&held, false);
        assert_int_equal(pthread_join(thread, NULL), 0);
        one_remove(&one);
    }
}

#define WINDOW_BYTES (20 * MIB)

struct spool {
    const char *path;
    atomic_bool held; /* the first piece */
    uint64_t allowed; /* the file's bytes, by what was let in */
    uint64_t largest, over;
    unsigned int calls;
    bool full; /* all that was let in is there; the rest may come */
};

static int spool_begin(void *arg, uint64_t final_bytes, struct error *err)
{
    (void)arg, (void)final_bytes, (void)err;
    return 0;
}

static void spool_advance(void *arg, uint64_t final_bytes)
{
    (void)arg, (void)final_bytes;
}

static int spool_has_room(void *arg, uint64_t disk_end, uint64_t claimed, bool *out,
                          struct error *err)
{
    struct spool *spool = arg;
    struct stat st;

    (void)disk_end;
    if (stat(spool->path, &st) < 0)
        return error_set_errno(err, errno, "'%s'", spool->path);
    spool->largest = (uint64_t)st.st_size;
    if (spool->largest > spool->allowed + spool->allowed / 100 + MIB / 8 && !spool->full)
        spool->over = spool->largest;
    *out = spool->full || spool->largest + claimed <= WINDOW_BYTES;
    if (!*out || ++spool->calls > WINDOW_BYTES / (3 * MIB))
        atomic_store(&spool->held, false);
    if (spool->full)
        return 0;
    if (*out) {
        spool->allowed = max_u64(spool->allowed, spool->largest + claimed);
        return 0;
    }
    spool->full = claimed <= 3 * MIB; /* of the next chunk alone */
    return 0;
}

/* What readers hold, and what waits behind a late piece, counts as if it were in the file. */
static void a_follower_hears_how_far_an_ordered_output_will_grow(void **state)
{
    (void)state;
    struct one one;
    struct spool spool = {.held = true};
    const struct copy_follower follower = {spool_begin, spool_advance, spool_has_room, &spool};

    need_qemu_img();
    one_make(&one, &file_provider, 60 * MIB, "vmdk");
    spool.path = one.setup.paths[0];
    one.session.held = &spool.held;
    one.session.hold_below = 1;
    one.setup.options.follower = &follower;
    one_works(&one, false);
    assert_true(spool.full);
    assert_int_equal(spool.over, 0);
    assert_in_range(spool.allowed, WINDOW_BYTES - 4 * MIB, WINDOW_BYTES);
    one_remove(&one);
}

struct seen {
    int64_t first_ms, last_ms;
    unsigned int calls;
    uint64_t last;
    unsigned int source, disk; /* how often that limited */
};

static void see(void *arg, const struct copy_progress *progress)
{
    struct seen *seen = arg;
    int64_t now = clock_mono_ms();

    assert_true(progress->bytes_done >= seen->last);
    seen->last = progress->bytes_done;
    if (seen->calls++ == 0)
        seen->first_ms = now;
    seen->last_ms = now;
    seen->source += strcmp(progress->limited_by, "source") == 0;
    seen->disk += strcmp(progress->limited_by, "disk") == 0;
}

static void progress_tells_what_limits(void **state)
{
    static const struct {
        const struct provider *provider;
        int64_t read_ms, write_ms;
    } cases[] = {{&file_provider, 40, 0},
                 {&file_provider, 0, 20},
                 {&local_provider, 40, 0},
                 {&local_provider, 0, 20}};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct one one;
        struct error err = ERROR_NONE;
        struct seen seen = {0};
        auto_copy_result result = {0};

        one_make(&one, cases[i].provider, 120 * MIB, "raw");
        one.setup.outputs[0].format = &slow_formats[0];
        one.setup.options.journal_path = NULL;
        one.setup.options.progress = see;
        one.setup.options.arg = &seen;
        one.session.delay_ms = cases[i].read_ms;
        slow_ms = cases[i].write_ms;
        assert_ok(copy_disk(&one.setup.options, &result, &err));
        if (cases[i].write_ms == 0)
            assert_true(seen.source > 0 && seen.disk == 0);
        else
            assert_true(seen.disk > 0);
        assert_int_equal(seen.last, one.disk.size);
        assert_true(seen.calls > 3);
        assert_true(seen.calls - 1 <= (seen.last_ms - seen.first_ms) / 100 + 1);
        one_remove(&one);
    }
}

/* ---- without journal ---- */

static atomic_uint syncs;
static atomic_uint_fast64_t written;
static unsigned int failing_sync; /* 0: none */

static int count_sync(struct sink *sink, struct error *err)
{
    if (atomic_fetch_add(&syncs, 1) + 1 == failing_sync)
        return error_set_errno(err, ENOSPC, "sync");
    return sink_qcow2.sync(sink, err);
}

/* What comes behind 8 MiB waits for the first sync. */
static int write_behind_sync(struct sink *sink, uint64_t offset, const void *data, size_t length,
                             struct error *err)
{
    int64_t deadline = clock_mono_ms() + 20000;

    while (atomic_load(&written) >= 8 * MIB && atomic_load(&syncs) == 0) {
        if (clock_mono_ms() > deadline)
            return error_set(err, ERR_TIMEOUT, "nothing is synced");
        clock_sleep_ms(1);
    }
    atomic_fetch_add(&written, length);
    return sink_qcow2.write(sink, offset, data, length, err);
}

static void without_journal_the_disk_writes_while_the_copy_goes_on(void **state)
{
    (void)state;
    struct error err = ERROR_NONE;
    struct sink_format format = sink_qcow2;
    struct one one;
    auto_copy_result result = {0};

    one_make(&one, &local_provider, 40 * MIB, "qcow2");
    format.sync = count_sync;
    format.write = write_behind_sync;
    one.setup.outputs[0].format = &format;
    one.setup.options.journal_path = NULL;
    one.setup.options.readers = 1; /* so chunks are done when it waits */
    one.setup.options.chunk_bytes = 2 * MIB;
    one.setup.options.checkpoint_bytes = 2 * MIB;
    assert_ok(copy_disk(&one.setup.options, &result, &err));
    setup_compare(&one.setup, &one.disk, &result);
    atomic_store(&syncs, 0);
    atomic_store(&written, 0);
    failing_sync = 1;
    one_fails(&one, ERR_LIMIT, "sync");
    one_remove(&one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(more_readers_come_while_that_brings_more),
        cmocka_unit_test(a_blocked_output_holds_the_readers_within_the_bound),
        cmocka_unit_test(a_held_first_piece_bounds_what_waits_behind_it),
        cmocka_unit_test(a_follower_hears_how_far_an_ordered_output_will_grow),
        cmocka_unit_test(progress_tells_what_limits),
        cmocka_unit_test(without_journal_the_disk_writes_while_the_copy_goes_on),
    };
    log_init("test", LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
