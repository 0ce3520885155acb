/* The command line: spelling, precedence, what comes later, secrets. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "common/autos.h"
#include "services/hyperexport/flags.h"

#define WORDS_MAX 16

static struct command_line line;
static struct error failure;
static char *words[WORDS_MAX];

/* Parses a line given as one text, split at blanks. */
static int parse(const char *text)
{
    char *copy = xstrdup(text);
    char *state = NULL;
    int count = 0;
    int result;

    for (int i = 0; i < WORDS_MAX; i++) {
        free(words[i]);
        words[i] = NULL;
    }
    words[count++] = xstrdup("hyperexport");
    for (char *word = strtok_r(copy, " ", &state); word != NULL;
         word = strtok_r(NULL, " ", &state)) {
        assert_true(count < WORDS_MAX);
        words[count++] = xstrdup(word);
    }
    free(copy);
    flags_release(&line);
    error_clear(&failure);
    result = flags_parse(count, words, &line, &failure);
    return result;
}

static int forget(void **state)
{
    (void)state;
    flags_release(&line);
    for (int i = 0; i < WORDS_MAX; i++) {
        free(words[i]);
        words[i] = NULL;
    }
    error_clear(&failure);
    return 0;
}

static void fails(const char *text, enum error_code code, const char *part)
{
    assert_int_equal(parse(text), -1);
    assert_int_equal(failure.code, code);
    if (strstr(failure.message, part) == NULL)
        fail_msg("'%s' does not tell '%s'", failure.message, part);
}

static void both_dashes_and_both_value_forms_work(void **state)
{
    (void)state;
    static const char *const forms[] = {"--vm web --format raw", "-vm web -format raw",
                                        "--vm=web --format=raw", "-vm=web -format=raw"};
    for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
        assert_int_equal(parse(forms[i]), 0);
        assert_string_equal(flag_text(&line, FLAG_VM), "web");
        assert_string_equal(flag_text(&line, FLAG_FORMAT), "raw");
        assert_true(flag_given(&line, FLAG_FORMAT));
    }
}

static void a_boolean_takes_its_value_only_after_an_equals_sign(void **state)
{
    (void)state;
    assert_int_equal(parse("--vm web --verify=false"), 0);
    assert_false(flag_on(&line, FLAG_VERIFY));
    assert_int_equal(parse("--vm web --verify"), 0);
    assert_true(flag_on(&line, FLAG_VERIFY));
    fails("--vm web --verify false", ERR_INVALID, "--flag=false");
}

static void defaults_are_filled_in_but_not_given(void **state)
{
    (void)state;
    assert_int_equal(parse("--vm web"), 0);
    assert_string_equal(flag_text(&line, FLAG_FORMAT), "ovf");
    assert_false(flag_given(&line, FLAG_FORMAT));
    assert_true(flag_on(&line, FLAG_VERIFY));
    assert_null(flag_text(&line, FLAG_OUTPUT));
}

static void a_flag_wins_over_the_environment_and_that_over_the_default(void **state)
{
    (void)state;
    assert_int_equal(setenv("HYPERSDK_URL", "http://127.0.0.1:9", 1), 0);
    assert_int_equal(parse("--vm web"), 0);
    assert_string_equal(flag_text(&line, FLAG_DAEMON_URL), "http://127.0.0.1:9");
    assert_int_equal(parse("--vm web --daemon-url http://127.0.0.1:10"), 0);
    assert_string_equal(flag_text(&line, FLAG_DAEMON_URL), "http://127.0.0.1:10");
    assert_int_equal(unsetenv("HYPERSDK_URL"), 0);
    assert_int_equal(parse("--vm web"), 0);
    assert_string_equal(flag_text(&line, FLAG_DAEMON_URL), "http://localhost:8080");
}

static void an_unknown_flag_is_a_usage_error_with_the_nearest_name(void **state)
{
    (void)state;
    fails("--vm web --fromat raw", ERR_INVALID, "did you mean '--format'?");
    fails("--zzzzzzzzzzzz", ERR_INVALID, "unknown flag '--zzzzzzzzzzzz'");
}

static void every_flag_that_comes_later_says_so(void **state)
{
    (void)state;
    size_t count = 0;

    for (size_t i = 0; i < flags_table_count; i++) {
        autofree char *text = NULL;
        if (flags_table[i].id != FLAG_LATER)
            continue;
        text = xasprintf("--vm web --%s%s", flags_table[i].name,
                         flags_table[i].type == FLAG_BOOL ? "" : " 1");
        fails(text, ERR_NOT_AVAILABLE, "not available yet");
        count++;
    }
    assert_true(count > 50);
}

static void a_value_that_comes_later_says_so(void **state)
{
    (void)state;
    fails("--vm web --format iso", ERR_INVALID, "none of ovf, ova, vmdk, raw, qcow2");
    fails("providers add --kind aws", ERR_NOT_AVAILABLE, "not available yet");
}

static void a_variable_of_a_later_flag_stops_an_export_but_not_a_listing(void **state)
{
    (void)state;
    assert_int_equal(setenv("HYPEREXPORT_SMTP_PORT", "25", 1), 0);
    fails("--vm web", ERR_NOT_AVAILABLE, "HYPEREXPORT_SMTP_PORT");
    assert_int_equal(parse("jobs list"), 0);
    assert_int_equal(unsetenv("HYPEREXPORT_SMTP_PORT"), 0);
}

static void the_bandwidth_limit_may_come_from_the_environment(void **state)
{
    (void)state;
    assert_int_equal(setenv("HYPEREXPORT_BANDWIDTH_LIMIT", "20", 1), 0);
    assert_int_equal(parse("--vm web"), 0);
    assert_int_equal(flag_number(&line, FLAG_BANDWIDTH_LIMIT), 20);
    assert_int_equal(parse("--vm web --bandwidth-limit=30"), 0);
    assert_int_equal(flag_number(&line, FLAG_BANDWIDTH_LIMIT), 30);
    assert_int_equal(unsetenv("HYPEREXPORT_BANDWIDTH_LIMIT"), 0);
    fails("--vm web --bandwidth-limit much", ERR_INVALID, "--bandwidth-limit");
}

static void connection_flags_belong_to_providers_add(void **state)
{
    (void)state;
    fails("--vm web --url https://vc", ERR_NOT_AVAILABLE, "providers add");
    assert_int_equal(parse("providers add --url https://vc --username u --password-file -"), 0);
    assert_string_equal(flag_text(&line, FLAG_URL), "https://vc");
}

static void a_secret_is_wiped_from_the_arguments(void **state)
{
    (void)state;
    assert_int_equal(parse("providers add --url https://vc --username u --password hunter2"), 0);
    assert_string_equal(flag_text(&line, FLAG_PASSWORD), "hunter2");
    assert_string_equal(words[8], "*******");
    assert_true(line.secret_on_argv);
    /* also when the flag itself is refused */
    fails("--vm web --passphrase=hunter2", ERR_INVALID, "--passphrase needs --encrypt");
    assert_string_equal(words[3], "--passphrase=*******");
}

static void numbers_have_bounds(void **state)
{
    (void)state;
    assert_int_equal(parse("--vm web --parallel 16"), 0);
    assert_int_equal(flag_number(&line, FLAG_PARALLEL), 16);
    fails("--vm web --parallel 17", ERR_INVALID, "--parallel");
    fails("--vm web --parallel -1", ERR_INVALID, "--parallel");
    fails("--vm web --compression-level 0", ERR_INVALID, "--compression-level");
}

static void snapshot_modifiers_need_a_snapshot(void **state)
{
    (void)state;
    fails("--vm web --snapshot-name x", ERR_INVALID, "--snapshot-name needs --snapshot");
    assert_int_equal(parse("--vm web --snapshot --snapshot-name x"), 0);
    assert_int_equal(parse("--vm web --consolidate-snapshots"), 0);
}

static void vm_info_needs_a_vm_and_tasks_exclude_each_other(void **state)
{
    (void)state;
    fails("--vm-info", ERR_INVALID, "--vm NAME");
    fails("--vm web --daemon-status", ERR_INVALID, "only one of");
}

static void words_are_commands_with_their_own_flags(void **state)
{
    (void)state;
    assert_int_equal(parse("jobs logs job-1 --follow"), 0);
    assert_int_equal(line.command->id, COMMAND_JOBS);
    assert_string_equal(line.command->action, "logs");
    assert_int_equal(line.word_count, 3);
    assert_string_equal(line.words[2], "job-1");
    fails(
        "jobs list --format raw", ERR_INVALID,
        "--format does not apply to 'jobs list' ('hyperexport jobs list --help' lists what does)");
    fails("--follow policies", ERR_INVALID, "--follow does not apply to 'policy list'");
    fails("jobs list --format raw --yes --batch x", ERR_INVALID, "--format, --yes, --batch do not");
    fails("jobs explode", ERR_INVALID, "unknown command 'jobs explode' (list, get, ");
    fails("exprot", ERR_INVALID, "unknown command 'exprot'");
}

static void help_wins_over_everything_else_typed(void **state)
{
    (void)state;
    assert_int_equal(parse("jobs list --format raw --help"), 0);
    assert_true(flag_on(&line, FLAG_HELP));
}

static void help_lists_what_works_and_hides_what_comes_later(void **state)
{
    (void)state;
    auto_strbuf out;

    strbuf_init(&out, FLAGS_HELP_BYTES_MAX);
    assert_int_equal(parse("--help"), 0);
    flags_help(&out, &line);
    assert_false(out.overflowed);
    for (size_t i = 0; i < flags_table_count; i++) {
        autofree char *name = xasprintf("  --%s ", flags_table[i].name);
        bool wanted = flags_table[i].help != NULL && command_takes(line.command, &flags_table[i]);
        if (wanted && strstr(out.data, name) == NULL)
            fail_msg("help lacks --%s", flags_table[i].name);
        if (flags_table[i].id == FLAG_LATER && strstr(out.data, name) != NULL)
            fail_msg("help offers --%s", flags_table[i].name);
    }
}

/* Typed there, each flag is stored or refused by name, with the command's: no third way. */
static void each_command_refuses_by_name_what_it_does_not_take(void **state)
{
    (void)state;
    size_t refused = 0;

    for (size_t i = 0; i < commands_table_count; i++) {
        const struct command *command = &commands_table[i];
        autofree char *name = command_name(command);
        if (command->word == NULL)
            continue; /* tests/service/test_hyperexport_flags.py */
        for (size_t k = 0; k < flags_table_count; k++) {
            const struct flag *flag = &flags_table[k];
            autofree char *text =
                xasprintf("%s --%s%s%.*s", name, flag->name, flag->type == FLAG_BOOL ? "" : "=",
                          flag->type == FLAG_CHOICE ? (int)strcspn(flag->choices, ",") : 1,
                          flag->type == FLAG_BOOL     ? " "
                          : flag->type == FLAG_CHOICE ? flag->choices
                                                      : "1");
            autofree char *why = xasprintf("--%s does not apply to '%s'", flag->name, name);
            if (!command_takes(command, flag)) {
                fails(text, ERR_INVALID, why);
                refused++;
            } else if (parse(text) == 0) {
                assert_true(flag_given(&line, flag->id));
            }
        }
    }
    assert_true(refused > 5000);
}

static void what_may_fail_is_one_of_two_words_and_belongs_to_exports(void **state)
{
    (void)state;
    assert_int_equal(parse("--vm web --upload-on-error continue --snapshot-on-error=fail"), 0);
    assert_string_equal(flag_text(&line, FLAG_UPLOAD_ON_ERROR), "continue");
    assert_string_equal(flag_text(&line, FLAG_SNAPSHOT_ON_ERROR), "fail");
    fails("--vm web --upload-on-error ignore", ERR_INVALID, "none of fail, continue");
    fails("--vm web --snapshot-on-error power_off", ERR_INVALID, "none of fail, continue");
    fails("jobs list --upload-on-error continue", ERR_INVALID, "does not apply");
}

static void what_is_awaited_may_be_typed_again(void **state)
{
    (void)state;
    assert_int_equal(parse("policy create f --depends-on a:final --depends-on=b,c"), 0);
    assert_string_equal(flag_text(&line, FLAG_DEPENDS_ON), "a:final,b,c");
    fails("policy runs x --depends-on a", ERR_INVALID, "--depends-on does not apply");
}

static void tags_are_joined_and_belong_to_lists_of_vms(void **state)
{
    (void)state;
    assert_int_equal(parse("vms list --tag env:pci --tag owner --cluster C0"), 0);
    assert_string_equal(flag_text(&line, FLAG_TAG), "env:pci,owner");
    assert_string_equal(flag_text(&line, FLAG_CLUSTER), "C0");
    fails("--vm web --tag x", ERR_INVALID, "--tag does not apply");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(both_dashes_and_both_value_forms_work, forget),
        cmocka_unit_test_teardown(a_boolean_takes_its_value_only_after_an_equals_sign, forget),
        cmocka_unit_test_teardown(defaults_are_filled_in_but_not_given, forget),
        cmocka_unit_test_teardown(a_flag_wins_over_the_environment_and_that_over_the_default,
                                  forget),
        cmocka_unit_test_teardown(an_unknown_flag_is_a_usage_error_with_the_nearest_name, forget),
        cmocka_unit_test_teardown(every_flag_that_comes_later_says_so, forget),
        cmocka_unit_test_teardown(a_value_that_comes_later_says_so, forget),
        cmocka_unit_test_teardown(a_variable_of_a_later_flag_stops_an_export_but_not_a_listing,
                                  forget),
        cmocka_unit_test_teardown(the_bandwidth_limit_may_come_from_the_environment, forget),
        cmocka_unit_test_teardown(connection_flags_belong_to_providers_add, forget),
        cmocka_unit_test_teardown(a_secret_is_wiped_from_the_arguments, forget),
        cmocka_unit_test_teardown(numbers_have_bounds, forget),
        cmocka_unit_test_teardown(snapshot_modifiers_need_a_snapshot, forget),
        cmocka_unit_test_teardown(vm_info_needs_a_vm_and_tasks_exclude_each_other, forget),
        cmocka_unit_test_teardown(words_are_commands_with_their_own_flags, forget),
        cmocka_unit_test_teardown(each_command_refuses_by_name_what_it_does_not_take, forget),
        cmocka_unit_test_teardown(what_may_fail_is_one_of_two_words_and_belongs_to_exports, forget),
        cmocka_unit_test_teardown(what_is_awaited_may_be_typed_again, forget),
        cmocka_unit_test_teardown(tags_are_joined_and_belong_to_lists_of_vms, forget),
        cmocka_unit_test_teardown(help_wins_over_everything_else_typed, forget),
        cmocka_unit_test_teardown(help_lists_what_works_and_hides_what_comes_later, forget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
