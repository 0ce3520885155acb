/* The Redis client against a private server: pipelines, progress, subscription over restarts. */
#include "tests/unit/common/stores_fixture.h"

#include <stdatomic.h>

#include "common/clock.h"
#include "common/redis.h"

#define DEADLINE_MS 30000

static char *dir; /* NULL: Redis is not installed */
static char *address;
static char *password;

static int start_redis(void **state)
{
    autofree char *port = NULL;

    (void)state;
    if (access("/usr/bin/redis-server", X_OK) < 0) {
        print_message("SKIPPED: Redis is not installed (apt-get install redis-server)\n");
        return 0;
    }
    dir = scratch_make();
    assert_true(store_script("redis.sh", "start", dir));
    port = read_line(dir, "port");
    address = xasprintf("127.0.0.1:%s", port);
    password = read_line(dir, "password");
    return 0;
}

static int stop_redis(void **state)
{
    (void)state;
    if (dir == NULL)
        return 0;
    (void)store_script("redis.sh", "stop", dir);
    free(address);
    free(password);
    scratch_remove(dir);
    return 0;
}

static struct redis *client(void)
{
    if (dir == NULL)
        skip();
    return redis_new(&(struct redis_config){.address = address, .password = password});
}

static int publish(struct redis *redis, const char *message, struct error *err)
{
    const char *const argv[] = {"PUBLISH", REDIS_CHANNEL_EVENTS, message};

    if (redis_append(redis, err, ARRAY_LEN(argv), argv) < 0)
        return -1;
    return redis_flush(redis, err);
}

static void commands_of_a_tick_go_together(void **state)
{
    struct error err = ERROR_NONE;
    struct redis *redis = client();
    const char *const set[] = {"HSET", REDIS_PROGRESS_PREFIX "job-1", "json", "{\"n\": \"a b\"}"};
    const char *const expire[] = {"EXPIRE", REDIS_PROGRESS_PREFIX "job-1", "60"};
    autofree char *progress = NULL;
    char *none = xstrdup("x");

    (void)state;
    assert_ok(redis_check(redis, &err), err);
    for (int i = 0; i < 100; i++) {
        assert_ok(redis_append(redis, &err, ARRAY_LEN(set), set), err);
        assert_ok(redis_append(redis, &err, ARRAY_LEN(expire), expire), err);
    }
    assert_ok(redis_flush(redis, &err), err);
    assert_ok(redis_flush(redis, &err), err); /* nothing pending */
    assert_ok(redis_progress(redis, "job-1", &progress, &err), err);
    assert_string_equal(progress, "{\"n\": \"a b\"}");
    free(none);
    assert_ok(redis_progress(redis, "job 2\r\nPING", &none, &err), err);
    assert_null(none);
    redis_free(redis);
    redis_free(NULL);
}

static void an_error_reply_leaves_the_connection_usable(void **state)
{
    struct error err = ERROR_NONE;
    struct redis *redis = client();
    const char *const wrong[] = {"NOSUCHCOMMAND"};
    const char *const set[] = {"SET", REDIS_PROGRESS_PREFIX "text", "x"};
    char *out = NULL;

    (void)state;
    assert_ok(redis_append(redis, &err, 1, wrong), err);
    assert_ok(redis_append(redis, &err, ARRAY_LEN(set), set), err);
    assert_fails(redis_flush(redis, &err), err, ERR_UNAVAILABLE, "NOSUCHCOMMAND");
    assert_ok(redis_check(redis, &err), err);
    assert_fails(redis_progress(redis, "text", &out, &err), err, ERR_UNAVAILABLE, "WRONGTYPE");
    assert_ok(redis_check(redis, &err), err);
    redis_free(redis);
}

static void a_wrong_password_is_denied_and_not_repeated_in_words(void **state)
{
    struct error err = ERROR_NONE;
    struct redis *redis;
    char wrong[] = "not-the-password";

    (void)state;
    if (dir == NULL)
        skip();
    redis = redis_new(&(struct redis_config){.address = address, .password = wrong});
    if (redis_check(redis, &err) >= 0)
        fail_msg("it was let in");
    assert_int_equal(err.code, ERR_DENIED);
    assert_null(strstr(err.message, wrong));
    redis_free(redis);
}

static void a_dead_server_is_asked_once_a_second(void **state)
{
    struct error err = ERROR_NONE;
    char nowhere[] = "127.0.0.1:1";
    char socket[] = "unix:/nonexistent/redis.sock";
    char empty[] = "";
    struct redis *redis = redis_new(&(struct redis_config){.address = nowhere, .password = empty});
    struct redis *local = redis_new(&(struct redis_config){.address = socket, .password = empty});

    (void)state;
    assert_fails(redis_check(redis, &err), err, ERR_UNAVAILABLE, "refused");
    assert_fails(redis_check(redis, &err), err, ERR_UNAVAILABLE, "next try within a second");
    assert_fails(redis_check(local, &err), err, ERR_UNAVAILABLE, "No such file");
    redis_free(redis);
    redis_free(local);
}

struct subscriber {
    struct redis_config config;
    atomic_bool stop;
    atomic_int gaps;
    atomic_int messages;
    pthread_mutex_t mutex; /* guards last */
    char last[64];
};

static void on_message(void *arg, const char *message, size_t size)
{
    struct subscriber *subscriber = arg;
    LOCK_SCOPE(&subscriber->mutex);

    (void)snprintf(subscriber->last, sizeof subscriber->last, "%.*s", (int)size, message);
    (void)atomic_fetch_add(&subscriber->messages, 1);
}

static void on_gap(void *arg)
{
    struct subscriber *subscriber = arg;

    (void)atomic_fetch_add(&subscriber->gaps, 1);
}

static void *on_subscriber(void *arg)
{
    struct subscriber *subscriber = arg;

    redis_subscribe(&subscriber->config, &subscriber->stop, on_message, on_gap, subscriber);
    return NULL;
}

static void wait_count(atomic_int *count, int wanted)
{
    int64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;

    while (atomic_load(count) < wanted && clock_mono_ms() < deadline_ms)
        clock_sleep_ms(5);
    assert_true(atomic_load(count) >= wanted);
}

/* Also over silences longer than a read's time-out, and over a restart of the server. */
static void a_subscriber_hears_everything_and_is_told_of_gaps(void **state)
{
    struct error err = ERROR_NONE;
    struct redis *redis = client();
    struct subscriber subscriber = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_t thread;

    (void)state;
    subscriber.config = (struct redis_config){.address = address, .password = password};
    assert_int_equal(pthread_create(&thread, NULL, on_subscriber, &subscriber), 0);
    wait_count(&subscriber.gaps, 1);
    assert_ok(publish(redis, "one", &err), err);
    wait_count(&subscriber.messages, 1);
    clock_sleep_ms(1200); /* two read time-outs of silence */
    assert_ok(publish(redis, "two", &err), err);
    wait_count(&subscriber.messages, 2);
    assert_string_equal(subscriber.last, "two");
    assert_int_equal(atomic_load(&subscriber.gaps), 1);

    assert_true(store_script("redis.sh", "stop", dir));
    assert_true(store_script("redis.sh", "start", dir));
    wait_count(&subscriber.gaps, 2);
    for (int64_t end = clock_mono_ms() + DEADLINE_MS; publish(redis, "three", &err) < 0;) {
        assert_true(clock_mono_ms() < end);
        error_clear(&err);
        clock_sleep_ms(50);
    }
    wait_count(&subscriber.messages, 3);
    assert_string_equal(subscriber.last, "three");
    atomic_store(&subscriber.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    redis_free(redis);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_of_a_tick_go_together),
        cmocka_unit_test(an_error_reply_leaves_the_connection_usable),
        cmocka_unit_test(a_wrong_password_is_denied_and_not_repeated_in_words),
        cmocka_unit_test(a_dead_server_is_asked_once_a_second),
        cmocka_unit_test(a_subscriber_hears_everything_and_is_told_of_gaps),
    };
    return cmocka_run_group_tests(tests, start_redis, stop_redis);
}
