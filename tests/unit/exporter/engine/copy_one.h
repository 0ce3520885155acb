/* A disk of random bytes and one copy of it, which works or fails. Header only: a unit test is one
 * object. */
#ifndef TEST_COPY_ONE_H
#define TEST_COPY_ONE_H

#include "tests/unit/exporter/engine/copy_fixture.h"

struct one {
    struct test_disk disk;
    struct provider_session session;
    struct setup setup;
};

__attribute__((unused)) static void one_make(struct one *one, const struct provider *provider,
                                             size_t size, const char *formats)
{
    *one = (struct one){.disk = test_disk_make(PATTERN_RANDOM, size)};
    one->session.data = one->disk.data;
    one->session.size_bytes = size;
    setup_make(&one->setup, provider, &one->session, formats);
}

__attribute__((unused)) static void one_remove(struct one *one)
{
    setup_remove(&one->setup);
    test_disk_free(&one->disk);
}

__attribute__((unused)) static void one_fails(struct one *one, enum error_code code,
                                              const char *part)
{
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};

    assert_int_equal(copy_disk(&one->setup.options, &result, &err), -1);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%s: %s, expected %s with '%s'", error_code_name(err.code), err.message,
                 error_code_name(code), part);
    assert_int_equal(atomic_load(&one->session.open_now), 0);
}

/* Whether anything was resumed depends on how far the last checkpoint came. */
__attribute__((unused)) static void one_works_somehow(struct one *one, bool *out_resumed)
{
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};

    assert_ok(copy_disk(&one->setup.options, &result, &err));
    *out_resumed = result.resumed;
    assert_int_equal(result.bytes_transferred + result.bytes_resumed, one->disk.size);
    assert_int_equal(result.bytes_data, one->disk.size);
    setup_compare(&one->setup, &one->disk, &result);
}

__attribute__((unused)) static void one_works(struct one *one, bool resumed)
{
    bool was_resumed = false;

    one_works_somehow(one, &was_resumed);
    assert_int_equal(was_resumed, resumed);
}

#endif
