/* The journal: what it keeps, what it refuses, and every kind of damage to a small one. */
#include "tests/unit/exporter/formats/disk_fixture.h"

#include <sys/wait.h>

#include "common/clock.h"
#include "services/exporter/engine/journal.h"

#define CHUNK (2 * MIB)

static const struct journal_spec spec = {
    .identity = "vm-1/disk-0/snapshot-5",
    .outputs = "raw disk.raw 0\n",
    .size_bytes = 21 * MIB + SECTOR,
    .chunk_bytes = CHUNK,
    .hash = true,
};

/* What a replay gave. */
struct replayed {
    uint64_t chunks[16];
    bool zero[16];
    uint8_t leaf[16]; /* first byte of the first leaf */
    size_t count;
    uint64_t data_bytes;
};

static int note(void *arg, const struct journal_chunks *chunks, const uint8_t *leaves,
                struct error *err)
{
    struct replayed *r = arg;
    (void)err;
    for (uint64_t i = 0; i < chunks->count; i++) {
        assert_true(r->count < ARRAY_LEN(r->chunks));
        r->chunks[r->count] = chunks->first + i;
        r->zero[r->count] = chunks->zero;
        r->leaf[r->count] = leaves == NULL ? 0 : leaves[i * 2 * DIGEST_BYTES];
        r->count++;
    }
    r->data_bytes += chunks->data_bytes;
    return 0;
}

static struct replayed replay(struct journal *journal)
{
    struct error err = ERROR_NONE;
    struct replayed r = {0};
    assert_ok(journal_replay(journal, note, &r, &err));
    return r;
}

static struct journal *open_journal(const char *path)
{
    struct error err = ERROR_NONE;
    struct journal *journal = NULL;
    assert_ok(journal_open(path, &spec, 0, NULL, &journal, &err));
    return journal;
}

static void add(struct journal *journal, uint64_t first, uint64_t count, bool zero)
{
    uint8_t leaves[8 * DIGEST_BYTES];
    struct journal_chunks chunks = {
        .first = first, .count = count, .zero = zero, .data_bytes = zero ? 0 : count * CHUNK};
    assert_true(count <= 4);
    for (size_t i = 0; i < sizeof leaves; i++)
        leaves[i] = (uint8_t)(first + i / (2 * DIGEST_BYTES) + 1);
    journal_add(journal, &chunks, zero ? NULL : leaves);
}

static void checkpoint(struct journal *journal, const char *text)
{
    struct error err = ERROR_NONE;
    const char *states[] = {text};
    assert_ok(journal_checkpoint(journal, states, 1, &err));
}

/* Three checkpoints: chunks 0-1, then 4 and 6-8 (zero), then 2. */
static void write_sample(const char *path)
{
    (void)unlink(path);
    auto_journal *journal = open_journal(path);
    assert_int_equal(journal_state_count(journal), 0);
    add(journal, 0, 2, false);
    checkpoint(journal, "first");
    add(journal, 4, 1, false);
    add(journal, 6, 3, true);
    checkpoint(journal, "second");
    add(journal, 2, 1, false);
    checkpoint(journal, "third");
}

static void it_keeps_what_checkpoints_say(void **state)
{
    static const uint64_t expected[] = {0, 1, 4, 6, 7, 8, 2};
    (void)state;
    autofree char *path = test_path("keep.journal");
    write_sample(path);
    auto_journal *journal = open_journal(path);
    struct replayed r = replay(journal);

    assert_int_equal(journal_state_count(journal), 1);
    assert_string_equal(journal_state(journal, 0), "third");
    assert_int_equal(r.count, ARRAY_LEN(expected));
    for (size_t i = 0; i < r.count; i++) {
        assert_int_equal(r.chunks[i], expected[i]);
        assert_int_equal(r.zero[i], expected[i] >= 6);
        assert_int_equal(r.leaf[i], expected[i] >= 6 ? 0 : expected[i] + 1);
    }
    assert_int_equal(r.data_bytes, 4 * CHUNK);
}

static void chunks_without_a_checkpoint_do_not_count(void **state)
{
    (void)state;
    autofree char *path = test_path("without.journal");
    size_t size = 0;
    write_sample(path);
    autofree uint8_t *data = read_file(path, &size);
    write_file(path, data, size - 1); /* the last checkpoint is cut, its chunk record is whole */
    auto_journal *journal = open_journal(path);
    struct replayed r = replay(journal);
    assert_int_equal(r.count, 6);
    assert_string_equal(journal_state(journal, 0), "second");
}

static void the_last_chunk_may_be_short(void **state)
{
    (void)state;
    autofree char *path = test_path("short.journal");
    (void)unlink(path);
    struct journal_chunks last = {.first = 10, .count = 1, .data_bytes = MIB + SECTOR};
    uint8_t leaves[2 * DIGEST_BYTES] = {1};
    {
        auto_journal *journal = open_journal(path);
        journal_add(journal, &last, leaves);
        checkpoint(journal, "x");
    }
    auto_journal *journal = open_journal(path);
    assert_int_equal(replay(journal).count, 1);
}

/* Opens damaged bytes: whatever is in force must be a prefix of the truth; then it can be written
 * on and read again. */
static void check_damaged(const char *path, const uint8_t *data, size_t size)
{
    static const size_t counts[] = {0, 2, 6, 7};
    static const char *const states[] = {"", "first", "second", "third"};
    struct replayed r;
    size_t before;

    write_file(path, data, size);
    {
        auto_journal *journal = open_journal(path);
        size_t i = 0;
        r = replay(journal);
        before = r.count;
        while (i < ARRAY_LEN(counts) && counts[i] != r.count)
            i++;
        assert_true(i < ARRAY_LEN(counts));
        assert_int_equal(journal_state_count(journal), i > 0);
        if (i > 0)
            assert_string_equal(journal_state(journal, 0), states[i]);
        add(journal, 9, 1, false);
        checkpoint(journal, "after");
    }
    auto_journal *journal = open_journal(path);
    r = replay(journal);
    assert_int_equal(r.count, before + 1);
    assert_int_equal(r.chunks[before], 9);
    assert_string_equal(journal_state(journal, 0), "after");
}

static void every_prefix_of_it_opens(void **state)
{
    (void)state;
    autofree char *path = test_path("prefix.journal");
    size_t size = 0;
    write_sample(path);
    autofree uint8_t *data = read_file(path, &size);
    for (size_t length = 0; length <= size; length++)
        check_damaged(path, data, length);
}

static void every_flipped_byte_is_found(void **state)
{
    (void)state;
    autofree char *path = test_path("flip.journal");
    size_t size = 0;
    write_sample(path);
    autofree uint8_t *data = read_file(path, &size);
    for (size_t at = 0; at < size; at++) {
        data[at] ^= (uint8_t)(1U << (at % 8));
        check_damaged(path, data, size);
        data[at] ^= (uint8_t)(1U << (at % 8));
    }
}

static void a_journal_of_something_else_is_refused_and_left_alone(void **state)
{
    struct journal_spec others[] = {spec, spec, spec, spec, spec};
    (void)state;
    autofree char *path = test_path("other.journal");
    size_t size = 0;
    size_t size_after = 0;
    write_sample(path);
    autofree uint8_t *before = read_file(path, &size);
    others[0].identity = "vm-1/disk-0/snapshot-6";
    others[1].outputs = "qcow2 disk.qcow2 0\n";
    others[2].size_bytes += SECTOR;
    others[3].chunk_bytes += MIB;
    others[4].hash = false;
    for (size_t i = 0; i < ARRAY_LEN(others); i++) {
        struct error err = ERROR_NONE;
        struct journal *journal = NULL;
        assert_int_equal(journal_open(path, &others[i], 0, NULL, &journal, &err), -1);
        assert_int_equal(err.code, ERR_SOURCE_CHANGED);
    }
    autofree uint8_t *after = read_file(path, &size_after);
    assert_int_equal(size, size_after);
    assert_memory_equal(before, after, size);
}

static void a_restart_forgets_all_but_the_spec(void **state)
{
    struct error err = ERROR_NONE;
    (void)state;
    autofree char *path = test_path("restart.journal");
    write_sample(path);
    {
        auto_journal *journal = open_journal(path);
        assert_ok(journal_restart(journal, &err));
        assert_int_equal(journal_state_count(journal), 0);
        add(journal, 5, 1, false);
        checkpoint(journal, "new");
    }
    auto_journal *journal = open_journal(path);
    struct replayed r = replay(journal);
    assert_int_equal(r.count, 1);
    assert_int_equal(r.chunks[0], 5);
}

static void a_locked_journal_is_a_conflict_after_the_wait(void **state)
{
    (void)state;
    autofree char *path = test_path("locked.journal");
    write_sample(path);
    auto_journal *holder = open_journal(path);
    struct error err = ERROR_NONE;
    struct journal *journal = NULL;
    int64_t start = clock_mono_ms();
    atomic_bool stopped = true;

    assert_int_equal(journal_open(path, &spec, 200, NULL, &journal, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_true(clock_mono_ms() - start >= 200);
    error_clear(&err);
    assert_int_equal(journal_open(path, &spec, 60000, &stopped, &journal, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
}

static void the_lock_of_a_killed_process_is_free(void **state)
{
    int fds[2];
    int status = 0;
    char byte = 0;
    pid_t pid;
    (void)state;
    autofree char *path = test_path("killed.journal");
    write_sample(path);
    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct error child = ERROR_NONE;
        struct journal *journal = NULL;
        if (journal_open(path, &spec, 0, NULL, &journal, &child) < 0 || write(fds[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            (void)pause();
    }
    assert_int_equal(read(fds[0], &byte, 1), 1);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    auto_journal *journal = open_journal(path);
    assert_string_equal(journal_state(journal, 0), "third");
    (void)close(fds[0]);
    (void)close(fds[1]);
}

static void a_journal_that_was_removed_while_waited_for_is_made_anew(void **state)
{
    (void)state;
    autofree char *path = test_path("removed.journal");
    write_sample(path);
    struct journal *holder = open_journal(path);
    assert_int_equal(unlink(path), 0);
    auto_journal *journal = open_journal(path); /* another file: no conflict */
    assert_int_equal(journal_state_count(journal), 0);
    journal_close(holder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_keeps_what_checkpoints_say),
        cmocka_unit_test(chunks_without_a_checkpoint_do_not_count),
        cmocka_unit_test(the_last_chunk_may_be_short),
        cmocka_unit_test(every_prefix_of_it_opens),
        cmocka_unit_test(every_flipped_byte_is_found),
        cmocka_unit_test(a_journal_of_something_else_is_refused_and_left_alone),
        cmocka_unit_test(a_restart_forgets_all_but_the_spec),
        cmocka_unit_test(a_locked_journal_is_a_conflict_after_the_wait),
        cmocka_unit_test(the_lock_of_a_killed_process_is_free),
        cmocka_unit_test(a_journal_that_was_removed_while_waited_for_is_made_anew),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
