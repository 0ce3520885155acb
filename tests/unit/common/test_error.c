/* The error value: codes, wrapping, slugs, exit status. */
#include "tests/unit/common/unit.h"

#include <errno.h>

static void wrapping_keeps_the_code_and_prepends(void **state)
{
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(error_set(&err, ERR_LIMIT, "%d disks", 65), -1);
    assert_int_equal(error_wrap(&err, "job '%s'", "j7"), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    assert_string_equal(err.message, "job 'j7': 65 disks");
}

static void long_messages_are_cut_not_overrun(void **state)
{
    struct error err = ERROR_NONE;
    char text[2 * ERROR_MESSAGE_MAX];

    (void)state;
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    (void)error_set(&err, ERR_INTERNAL, "%s", text);
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_MAX - 1);
    (void)error_wrap(&err, "before");
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_MAX - 1);
    assert_memory_equal(err.message, "before: x", 9);
    (void)error_wrap(&err, "%s", text);
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_MAX - 1);
}

static void errno_chooses_the_code(void **state)
{
    static const struct {
        int number;
        enum error_code code;
    } cases[] = {
        {EACCES, ERR_DENIED},      {EPERM, ERR_DENIED},      {EROFS, ERR_DENIED},
        {ENOENT, ERR_NOT_FOUND},   {ENOTDIR, ERR_NOT_FOUND}, {EEXIST, ERR_CONFLICT},
        {ENOTEMPTY, ERR_CONFLICT}, {ENOSPC, ERR_LIMIT},      {EDQUOT, ERR_LIMIT},
        {EMFILE, ERR_LIMIT},       {ETIMEDOUT, ERR_TIMEOUT}, {ECONNREFUSED, ERR_UNAVAILABLE},
        {EPIPE, ERR_UNAVAILABLE},  {EINVAL, ERR_INTERNAL},   {EIO, ERR_INTERNAL},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct error err = ERROR_NONE;
        assert_int_equal(error_set_errno(&err, cases[i].number, "file '%s'", "f"), -1);
        assert_int_equal(err.code, cases[i].code);
        assert_int_equal(err.sys_errno, cases[i].number);
        assert_memory_equal(err.message, "file 'f': ", 10);
    }
}

static void only_time_and_absence_are_retryable(void **state)
{
    (void)state;
    for (int code = ERR_INVALID; code <= ERR_INTERNAL; code++) {
        struct error err = ERROR_NONE;
        (void)error_set(&err, (enum error_code)code, "x");
        assert_int_equal(error_is_retryable(&err), code == ERR_TIMEOUT || code == ERR_UNAVAILABLE);
        assert_int_equal(error_exit_status(&err), code == ERR_INVALID ? 64 : 1);
        error_clear(&err);
        assert_int_equal(err.code, ERR_NONE);
    }
}

static void slugs_go_there_and_back(void **state)
{
    (void)state;
    for (int code = ERR_INVALID; code <= ERR_INTERNAL; code++)
        assert_int_equal(error_code_from_name(error_code_name((enum error_code)code)), code);
    assert_string_equal(error_code_name(ERR_SOURCE_CHANGED), "source_changed");
    assert_int_equal(error_code_from_name("no such"), ERR_INTERNAL);
    assert_string_equal(error_code_name((enum error_code)999), "internal");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrapping_keeps_the_code_and_prepends),
        cmocka_unit_test(long_messages_are_cut_not_overrun),
        cmocka_unit_test(errno_chooses_the_code),
        cmocka_unit_test(only_time_and_absence_are_retryable),
        cmocka_unit_test(slugs_go_there_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
