/* What waits for a live client: merging, the slow reader rule, replay, topics. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "services/api-gateway/hub_internal.h"

static struct live_event *event(const char *type, const char *job, int64_t seq, size_t padding)
{
    autofree char *pad = xmalloc(padding + 1);
    auto_json *object = NULL;
    struct live_event *out = NULL;
    struct error err = ERROR_NONE;

    memset(pad, 'x', padding);
    pad[padding] = '\0';
    object = json_pack("{s:s, s:s, s:I, s:s}", "type", type, "job_id", job, "seq", (json_int_t)seq,
                       "pad", pad);
    assert_int_equal(live_event_new(object, &out, &err), 0);
    return out;
}

static struct subscriber *client(void)
{
    struct subscriber *subscriber = subscriber_new(SUBSCRIBER_SSE);
    struct identity identity = {.dev = true};

    subscriber_permit(subscriber, &identity);
    subscriber_topics_default(subscriber);
    return subscriber;
}

static void offer(struct subscriber *subscriber, const char *type, const char *job, int64_t seq,
                  size_t padding)
{
    auto_live_event *e = event(type, job, seq, padding);

    subscriber_offer(subscriber, e, 1000);
}

/* Everything that waits, taken in odd pieces. Caller frees. */
static char *drain(struct subscriber *subscriber)
{
    struct strbuf text;
    struct iovec pieces[3];
    char *out = NULL;
    struct error err = ERROR_NONE;

    strbuf_init(&text, 64 * MIB);
    while (subscriber_peek(subscriber, pieces, ARRAY_LEN(pieces)) > 0) {
        size_t take = pieces[0].iov_len > 7 ? 7 : pieces[0].iov_len;
        strbuf_add_bytes(&text, pieces[0].iov_base, take);
        subscriber_taken(subscriber, take, 1000);
    }
    assert_int_equal(subscriber->bytes, 0);
    assert_int_equal(strbuf_finish(&text, &out, &err), 0);
    strbuf_release(&text);
    return out;
}

static size_t count(const char *text, const char *word)
{
    size_t n = 0;

    for (const char *at = strstr(text, word); at != NULL; at = strstr(at + 1, word))
        n++;
    return n;
}

static void newer_progress_takes_the_place_of_the_older(void **state)
{
    auto_subscriber *s = client();
    autofree char *text = NULL;

    (void)state;
    for (int64_t i = 1; i <= 100; i++) {
        offer(s, "job.progress", "a", i, 0);
        offer(s, "job.progress", "b", i, 0);
        offer(s, "status", "", i, 0);
    }
    offer(s, "job.completed", "a", 101, 0);
    offer(s, "job.completed", "a", 102, 0);
    text = drain(s);
    assert_int_equal(count(text, "event: job.progress\n"), 2);
    assert_int_equal(count(text, "\"seq\":100"), 3);
    assert_int_equal(count(text, "event: job.completed\n"), 2);
    assert_int_equal(count(text, "id: 10"), 2); /* only rows have ids to come back with */
}

static void what_was_begun_is_not_replaced(void **state)
{
    auto_subscriber *s = client();
    autofree char *text = NULL;
    struct iovec piece;

    (void)state;
    offer(s, "job.progress", "a", 1, 0);
    assert_int_equal(subscriber_peek(s, &piece, 1), 1);
    subscriber_taken(s, 5, 1000);
    offer(s, "job.progress", "a", 2, 0);
    text = drain(s);
    assert_int_equal(count(text, "\"seq\":1"), 1);
    assert_int_equal(count(text, "\"seq\":2"), 1);
}

static void progress_is_left_out_above_the_mark_and_states_are_not(void **state)
{
    auto_subscriber *s = client();
    autofree char *text = NULL;

    (void)state;
    for (int64_t i = 1; i <= 4; i++)
        offer(s, "job.running", "a", i, 100000);
    offer(s, "job.progress", "a", 5, 0);
    offer(s, "job.completed", "a", 6, 0);
    text = drain(s);
    assert_int_equal(count(text, "event: job.progress"), 0);
    assert_int_equal(count(text, "event: job.running"), 4);
    assert_int_equal(count(text, "event: job.completed"), 1);
}

static void too_much_waiting_ends_the_client_and_says_when_to_come_back(void **state)
{
    auto_subscriber *s = client();
    struct iovec piece;

    (void)state;
    offer(s, "job.running", "a", 1, 1000);
    assert_int_equal(subscriber_peek(s, &piece, 1), 1);
    subscriber_taken(s, 10, 1000); /* the rest of this one still goes out whole */
    for (int64_t i = 2; i <= 30; i++)
        offer(s, "job.running", "a", i, 100000);
    assert_true(subscriber_has_ended(s));
    assert_int_equal(s->close_code, CLOSE_TRY_LATER);
    assert_int_equal(s->item_count, 1);
    assert_true(s->bytes < 1200);
    offer(s, "job.completed", "a", 31, 0); /* nothing more */
    assert_int_equal(s->item_count, 1);
}

static void who_stays_slow_is_closed(void **state)
{
    auto_subscriber *s = client();

    (void)state;
    for (int64_t i = 1; i <= 3; i++)
        offer(s, "job.running", "a", i, 100000);
    subscriber_check_slow(s, 1000 + SUBSCRIBER_SLOW_MS - 1);
    assert_false(subscriber_has_ended(s));
    subscriber_check_slow(s, 1000 + SUBSCRIBER_SLOW_MS);
    assert_true(subscriber_has_ended(s));
    assert_int_equal(s->close_code, CLOSE_TRY_LATER);
}

static void replay_lets_no_event_through_twice_or_not_at_all(void **state)
{
    auto_subscriber *s = client();
    autofree char *text = NULL;
    const int64_t ids[] = {5, 6, 8};

    (void)state;
    s->replaying = true;
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        auto_live_event *e = event("job.running", "a", ids[i], 0);
        subscriber_replay(s, e, 1000);
    }
    offer(s, "job.running", "a", 8, 0);  /* live meanwhile, and in the rows */
    offer(s, "job.running", "a", 7, 0);  /* live meanwhile, committed after the rows were read */
    offer(s, "job.progress", "a", 8, 0); /* progress need not wait */
    assert_true(subscriber_replay_done(s, ids, ARRAY_LEN(ids), 1000));
    offer(s, "job.running", "a", 9, 0);
    text = drain(s);
    for (int id = 5; id <= 9; id++) {
        char line[24];
        (void)snprintf(line, sizeof line, "id: %d\n", id);
        assert_int_equal(count(text, line), 1);
    }
}

static void a_replay_that_was_overrun_is_done_again(void **state)
{
    auto_subscriber *s = client();

    (void)state;
    s->replaying = true;
    for (int64_t i = 1; i <= 2000; i++)
        offer(s, "job.running", "a", i, 0);
    assert_false(subscriber_replay_done(s, NULL, 0, 1000));
    offer(s, "job.running", "a", 2001, 0);
    assert_int_equal(s->item_count, 0);
    assert_true(subscriber_replay_done(s, NULL, 0, 1000));
    assert_int_equal(s->item_count, 1);
}

/* A live event between "I come back" and the queued replay: once, not before it and in it. */
static void live_events_wait_aside_from_when_a_replay_is_expected(void **state)
{
    auto_subscriber *s = client();
    auto_live_event *missed = event("job.running", "a", 5, 0);
    autofree char *text = NULL;
    const int64_t ids[] = {5};

    (void)state;
    assert_true(hub_expect_replay(s));
    assert_false(hub_expect_replay(s)); /* one at a time */
    offer(s, "job.running", "a", 5, 0);
    assert_int_equal(s->item_count, 0);
    subscriber_replay(s, missed, 1000);
    assert_true(subscriber_replay_done(s, ids, ARRAY_LEN(ids), 1000));
    text = drain(s);
    assert_int_equal(count(text, "id: 5\n"), 1);
}

static void a_replay_that_is_given_up_lets_go_what_waited(void **state)
{
    auto_subscriber *s = client();

    (void)state;
    assert_true(hub_expect_replay(s));
    offer(s, "job.running", "a", 5, 0);
    hub_forget_replay(s);
    assert_int_equal(s->item_count, 1);
    assert_false(subscriber_has_ended(s));
    assert_true(hub_expect_replay(s));
    for (int64_t i = 6; i <= 2005; i++)
        offer(s, "job.running", "a", i, 0);
    hub_forget_replay(s); /* some were not kept: it has to come again */
    assert_int_equal(s->close_code, CLOSE_TRY_LATER);
}

static void topics_choose_and_are_bounded(void **state)
{
    auto_subscriber *s = client();
    struct error err = ERROR_NONE;
    char topic[32];

    (void)state;
    subscriber_topic_remove(s, "jobs");
    subscriber_topic_remove(s, "status");
    offer(s, "job.completed", "a", 1, 0);
    offer(s, "status", "", 1, 0);
    assert_int_equal(s->item_count, 0);
    for (int i = 0; i < SUBSCRIBER_TOPICS_MAX; i++) {
        (void)snprintf(topic, sizeof topic, "job:j%d", i);
        assert_int_equal(subscriber_topic_add(s, topic, &err), 0);
        assert_int_equal(subscriber_topic_add(s, topic, &err), 0); /* twice is once */
    }
    assert_int_equal(subscriber_topic_add(s, "job:more", &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    offer(s, "job.completed", "j63", 2, 0);
    offer(s, "job.completed", "j64", 3, 0);
    assert_int_equal(s->item_count, 1);
    subscriber_topic_remove(s, "job:j63");
    offer(s, "job.completed", "j63", 4, 0);
    assert_int_equal(s->item_count, 1);
}

static void permissions_that_are_lost_take_topics_along(void **state)
{
    auto_subscriber *s = client();
    char view[] = "status.view";
    char *permissions[] = {view};
    const struct identity less = {.permissions = permissions, .permission_count = 1};
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(subscriber_topic_add(s, "logs:a", &err), 0);
    subscriber_permit(s, &less);
    assert_false(s->topics.jobs);
    assert_int_equal(s->topics.logs_of_count, 0);
    assert_true(s->topics.status);
    assert_int_equal(subscriber_topic_add(s, "job:a", &err), -1);
    assert_int_equal(err.code, ERR_DENIED);
}

static void nobody_gets_anything_before_saying_who_it_is(void **state)
{
    auto_subscriber *s = subscriber_new(SUBSCRIBER_WEBSOCKET);

    (void)state;
    s->topics.jobs = s->topics.status = true;
    offer(s, "job.completed", "a", 1, 0);
    offer(s, "status", "", 1, 0);
    assert_int_equal(s->item_count, 0);
}

static void frames_carry_their_length(void **state)
{
    static const struct {
        size_t padding;
        size_t header;
    } cases[] = {{0, 2}, {200, 4}, {70000, 10}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_live_event *e = event("job.x", "a", 1, cases[i].padding);
        size_t size;
        const uint8_t *frame = live_event_frame(e, &size);
        uint64_t length = frame[1];
        assert_int_equal(frame[0], 0x81);
        if (cases[i].header > 2)
            length = 0;
        for (size_t k = 2; k < cases[i].header; k++)
            length = length << 8 | frame[k];
        assert_int_equal(length, size - cases[i].header);
        assert_int_equal(frame[cases[i].header], '{');
    }
}

static void malformed_events_are_refused(void **state)
{
    static const char *const texts[] = {"[]",
                                        "{}",
                                        "{\"type\":7}",
                                        "{\"type\":\"a b\"}",
                                        "{\"type\":\"a\\ndata: x\"}",
                                        "{\"type\":\"job.x\",\"job_id\":\"a/b\"}",
                                        "{\"type\":\"\"}"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        auto_json *object = json_loads(texts[i], 0, NULL);
        struct live_event *out = NULL;
        struct error err = ERROR_NONE;
        assert_int_equal(live_event_new(object, &out, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(newer_progress_takes_the_place_of_the_older),
        cmocka_unit_test(what_was_begun_is_not_replaced),
        cmocka_unit_test(progress_is_left_out_above_the_mark_and_states_are_not),
        cmocka_unit_test(too_much_waiting_ends_the_client_and_says_when_to_come_back),
        cmocka_unit_test(who_stays_slow_is_closed),
        cmocka_unit_test(replay_lets_no_event_through_twice_or_not_at_all),
        cmocka_unit_test(a_replay_that_was_overrun_is_done_again),
        cmocka_unit_test(live_events_wait_aside_from_when_a_replay_is_expected),
        cmocka_unit_test(a_replay_that_is_given_up_lets_go_what_waited),
        cmocka_unit_test(topics_choose_and_are_bounded),
        cmocka_unit_test(permissions_that_are_lost_take_topics_along),
        cmocka_unit_test(nobody_gets_anything_before_saying_who_it_is),
        cmocka_unit_test(frames_carry_their_length),
        cmocka_unit_test(malformed_events_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
