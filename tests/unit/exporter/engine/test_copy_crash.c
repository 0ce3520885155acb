/* The copy engine under kill -9: a child copies, dies at a random moment, the next one goes on; in
 * the end the bytes are those of the source. HSDK_KILLS sets how many deaths (10). */
#include <inttypes.h>
#include <signal.h>

#include "common/log.h"
#include "common/parse.h"
#include "tests/unit/exporter/engine/copy_fixture.h"

#define KILLS_DEFAULT     10
#define DISK_BYTES        (60 * MIB + 5 * SECTOR)
#define LIFE_MS_MAX       400 /* a whole copy takes some 600 ms with the delay of its reads */
#define TOLD_RESUMED      100
#define TOLD_FROM_NOTHING 101

static uint32_t kills_wanted(void)
{
    const char *text = getenv("HSDK_KILLS");
    struct error err = ERROR_NONE;
    uint32_t kills = KILLS_DEFAULT;

    if (text != NULL)
        assert_ok(parse_u32("HSDK_KILLS", text, 1, 100000, &kills, &err));
    return kills;
}

/* In the child: never returns. */
static void copy_and_exit(struct setup *setup)
{
    struct error err = ERROR_NONE;
    struct copy_result result = {0};

    if (copy_disk(&setup->options, &result, &err) < 0) {
        print_message("child: %s: %s\n", error_code_name(err.code), err.message);
        _exit(1);
    }
    _exit(result.resumed ? TOLD_RESUMED : TOLD_FROM_NOTHING);
}

/* Lets a child run for that long; returns its exit status, -1 when it was killed. */
static int run_child(struct setup *setup, int64_t life_ms)
{
    pid_t pid = fork();
    int status = 0;

    assert_true(pid >= 0);
    if (pid == 0)
        copy_and_exit(setup);
    if (life_ms >= 0) {
        clock_sleep_ms(life_ms);
        (void)kill(pid, SIGKILL); /* fails when it has ended */
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Kills until one copy is through; the number of kills. */
static uint32_t kill_until_done(const char *formats, const struct provider *provider,
                                uint64_t *seed)
{
    struct test_disk disk = test_disk_make(PATTERN_SPARSE, DISK_BYTES);
    struct provider_session session = {
        .data = disk.data, .size_bytes = disk.size, .delay_ms = provider->disk_stream ? 1 : 15};
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};
    struct setup setup;
    uint32_t kills = 0;
    uint32_t resumed = 0;

    setup_make(&setup, provider, &session, formats);
    setup.options.checkpoint_bytes = 3 * MIB;
    for (;;) {
        int64_t life = (int64_t)(test_random(seed) % LIFE_MS_MAX);
        int status = run_child(&setup, kills > 30 ? -1 : life); /* at last one may finish */
        if (status < 0) {
            kills++;
            continue;
        }
        assert_true(status == TOLD_RESUMED || status == TOLD_FROM_NOTHING);
        resumed += status == TOLD_RESUMED;
        break;
    }
    /* Once more over the finished files: it reads nothing and finds everything. */
    assert_ok(copy_disk(&setup.options, &result, &err));
    assert_int_equal(result.bytes_resumed, disk.size);
    setup_compare(&setup, &disk, &result);
    print_message("%s of %s: %" PRIu32 " kills, %s\n", formats, provider->name, kills,
                  resumed > 0 ? "resumed" : "never resumed");
    setup_remove(&setup);
    test_disk_free(&disk);
    return kills;
}

static void a_killed_copy_goes_on_and_ends_with_the_same_bytes(void **state)
{
    static const char *const formats[] = {"raw qcow2 vmdk", "qcow2", "vmdk", "raw.zst", "raw"};
    static const struct provider *const providers[] = {&file_provider, &stream_provider,
                                                       &local_provider};
    uint64_t seed = (uint64_t)clock_mono_ns() | 1;
    uint32_t wanted = kills_wanted();
    uint32_t kills = 0;
    (void)state;
    need_qemu_img();
    print_message("seed %" PRIu64 "\n", seed);
    for (size_t i = 0; i < ARRAY_LEN(formats) || kills < wanted; i++)
        kills += kill_until_done(formats[i % ARRAY_LEN(formats)],
                                 providers[i % ARRAY_LEN(providers)], &seed);
    assert_true(kills >= wanted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_copy_goes_on_and_ends_with_the_same_bytes),
    };
    log_init("test", LOG_LEVEL_WARN);
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
