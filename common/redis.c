/* See redis.h. hiredis 0.14: any error kills the context, so does ours. */
#include "common/redis.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "common/clock.h"
#include "common/log.h"

#define REDIS_CONNECT_TIMEOUT_MS 2000
#define REDIS_COMMAND_TIMEOUT_MS 2000
#define REDIS_RECONNECT_MS       1000  /* a dead server is not asked more often */
#define REDIS_SUBSCRIBE_TICK_MS  500   /* how soon redis_subscribe sees *stop */
#define REDIS_SILENCE_MS         30000 /* then PING: a half-open connection is found */
#define REDIS_BACKOFF_MAX_MS     5000

struct redis {
    char *host; /* or path when port is 0 */
    int port;
    char *password;
    redisContext *context;
    int64_t failed_at_ms; /* last failed connect; 0 = none */
    size_t pending;       /* commands appended, not yet answered */
};

struct redis *redis_new(const struct redis_config *config)
{
    struct redis *redis = xcalloc(1, sizeof *redis);
    const char *colon = strrchr(config->address, ':');

    if (strncmp(config->address, "unix:", 5) == 0) {
        redis->host = xstrdup(config->address + 5);
    } else if (colon == NULL) {
        redis->host = xstrdup(config->address);
        redis->port = 6379;
    } else {
        redis->host = xstrndup(config->address, (size_t)(colon - config->address));
        redis->port = (int)strtol(colon + 1, NULL, 10);
    }
    redis->password = xstrdup(config->password);
    return redis;
}

static void drop_context(struct redis *redis)
{
    if (redis->context != NULL)
        redisFree(redis->context);
    redis->context = NULL;
    redis->pending = 0;
}

void redis_free(struct redis *redis)
{
    if (redis == NULL)
        return;
    drop_context(redis);
    free(redis->host);
    explicit_bzero(redis->password, strlen(redis->password));
    free(redis->password);
    free(redis);
}

static int fail(struct redis *redis, const char *what, struct error *err)
{
    (void)error_set(err, ERR_UNAVAILABLE, "redis: %s: %s", what,
                    redis->context == NULL           ? "out of memory"
                    : redis->context->errstr[0] != 0 ? redis->context->errstr
                                                     : "no answer");
    drop_context(redis);
    return -1;
}

static struct timeval milliseconds(int64_t ms)
{
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
}

static int authenticate(struct redis *redis, struct error *err)
{
    auto_redisreply *reply = NULL;

    if (redis->password[0] == '\0')
        return 0;
    reply = redisCommand(redis->context, "AUTH %s", redis->password);
    if (reply == NULL)
        return fail(redis, "AUTH", err);
    if (reply->type == REDIS_REPLY_ERROR) {
        drop_context(redis);
        return error_set(err, ERR_DENIED, "redis: the password was refused (redis.password)");
    }
    return 0;
}

static int ensure_context(struct redis *redis, struct error *err)
{
    struct timeval timeout = milliseconds(REDIS_CONNECT_TIMEOUT_MS);

    if (redis->context != NULL)
        return 0;
    if (redis->failed_at_ms != 0 && clock_mono_ms() - redis->failed_at_ms < REDIS_RECONNECT_MS)
        return error_set(err, ERR_UNAVAILABLE, "redis: not connected, next try within a second");
    redis->failed_at_ms = clock_mono_ms();
    redis->context = redis->port == 0 ? redisConnectUnixWithTimeout(redis->host, timeout)
                                      : redisConnectWithTimeout(redis->host, redis->port, timeout);
    if (redis->context == NULL || redis->context->err != 0)
        return fail(redis, "connect", err);
    (void)redisSetTimeout(redis->context, milliseconds(REDIS_COMMAND_TIMEOUT_MS));
    if (authenticate(redis, err) < 0)
        return -1;
    redis->failed_at_ms = 0;
    return 0;
}

int redis_check(struct redis *redis, struct error *err)
{
    auto_redisreply *reply = NULL;

    if (ensure_context(redis, err) < 0)
        return -1;
    reply = redisCommand(redis->context, "PING");
    if (reply == NULL)
        return fail(redis, "PING", err);
    if (reply->type == REDIS_REPLY_ERROR)
        return error_set(err, ERR_UNAVAILABLE, "redis: %.200s", reply->str);
    return 0;
}

int redis_append(struct redis *redis, struct error *err, size_t argc, const char *const *argv)
{
    if (ensure_context(redis, err) < 0)
        return -1;
    if (redisAppendCommandArgv(redis->context, (int)argc, (const char **)(uintptr_t)argv, NULL) !=
        REDIS_OK)
        return fail(redis, "append", err);
    redis->pending++;
    return 0;
}

int redis_flush(struct redis *redis, struct error *err)
{
    struct error first = ERROR_NONE;

    while (redis->pending > 0) {
        void *raw = NULL;
        if (redisGetReply(redis->context, &raw) != REDIS_OK)
            return fail(redis, "answer", err);
        auto_redisreply *reply = raw;
        redis->pending--;
        if (reply->type == REDIS_REPLY_ERROR && first.code == ERR_NONE)
            (void)error_set(&first, ERR_UNAVAILABLE, "redis: %.200s", reply->str);
    }
    if (first.code == ERR_NONE)
        return 0;
    *err = first;
    return -1;
}

int redis_progress(struct redis *redis, const char *job_id, char **out, struct error *err)
{
    auto_redisreply *reply = NULL;

    if (ensure_context(redis, err) < 0)
        return -1;
    reply = redisCommand(redis->context, "HGET " REDIS_PROGRESS_PREFIX "%s json", job_id);
    if (reply == NULL)
        return fail(redis, "HGET", err);
    if (reply->type == REDIS_REPLY_ERROR)
        return error_set(err, ERR_UNAVAILABLE, "redis: %.200s", reply->str);
    *out = reply->type == REDIS_REPLY_STRING ? xstrndup(reply->str, reply->len) : NULL;
    return 0;
}

/* ---- subscriber ---- */

static int subscribe(struct redis *redis, struct error *err)
{
    auto_redisreply *reply = NULL;

    if (ensure_context(redis, err) < 0)
        return -1;
    reply = redisCommand(redis->context, "SUBSCRIBE " REDIS_CHANNEL_EVENTS);
    if (reply == NULL)
        return fail(redis, "SUBSCRIBE", err);
    if (reply->type == REDIS_REPLY_ERROR)
        return error_set(err, ERR_UNAVAILABLE, "redis: %.200s", reply->str);
    (void)redisSetTimeout(redis->context, milliseconds(REDIS_SUBSCRIBE_TICK_MS));
    return 0;
}

static void deliver(const redisReply *reply, void (*fn)(void *, const char *, size_t), void *arg)
{
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 3 &&
        reply->element[0]->type == REDIS_REPLY_STRING &&
        strcmp(reply->element[0]->str, "message") == 0 &&
        reply->element[2]->type == REDIS_REPLY_STRING)
        fn(arg, reply->element[2]->str, reply->element[2]->len);
}

/* One read of at most a tick. A read time-out leaves hiredis' context in error; it is healthy for
 * us because no bytes were lost (its reader keeps a partial message), so the error is cleared. */
static int read_once(struct redis *redis, int64_t *heard_ms,
                     void (*fn)(void *, const char *, size_t), void *arg, struct error *err)
{
    void *raw = NULL;

    if (redisGetReply(redis->context, &raw) == REDIS_OK) {
        auto_redisreply *reply = raw;
        *heard_ms = clock_mono_ms();
        deliver(reply, fn, arg);
        return 0;
    }
    if (redis->context->err != REDIS_ERR_IO || errno != EAGAIN)
        return fail(redis, "subscription", err);
    redis->context->err = 0;
    redis->context->errstr[0] = '\0';
    if (clock_mono_ms() - *heard_ms > 2 * REDIS_SILENCE_MS)
        return fail(redis, "silent subscription", err);
    if (clock_mono_ms() - *heard_ms > REDIS_SILENCE_MS &&
        redisAppendCommand(redis->context, "PING") != REDIS_OK)
        return fail(redis, "PING", err);
    return 0;
}

void redis_subscribe(const struct redis_config *config, const atomic_bool *stop,
                     void (*fn)(void *arg, const char *message, size_t size),
                     void (*gap)(void *arg), void *arg)
{
    struct redis *redis = redis_new(config);
    struct log_throttle throttle = {0};
    uint32_t attempt = 0;

    while (!atomic_load(stop)) {
        struct error err = ERROR_NONE;
        uint64_t suppressed = 0;
        int64_t heard_ms = clock_mono_ms();
        int rc = subscribe(redis, &err);

        if (rc == 0) {
            attempt = 0;
            LOG(INFO, "redis_subscribed");
            gap(arg);
        }
        while (rc == 0 && !atomic_load(stop))
            rc = read_once(redis, &heard_ms, fn, arg, &err);
        if (atomic_load(stop))
            break;
        if (err.code != ERR_NONE && log_throttle_pass(&throttle, err.message, &suppressed))
            LOG(WARN, "redis_lost", F_ERR(&err), F_U64("suppressed", suppressed));
        clock_sleep_ms(100 + clock_backoff_ms(attempt++, 200, REDIS_BACKOFF_MAX_MS));
    }
    redis_free(redis);
}
