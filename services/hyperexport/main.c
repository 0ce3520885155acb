/* hyperexport: command line client of the gateway. It has no engine of its own. */
#include <curl/curl.h>
#include <string.h>

#include "command.h"
#include "common/service.h"

static void set_up(struct program *program, const struct command_line *line)
{
    const char *no_color = secure_getenv("NO_COLOR");

    program->line = line;
    program->quiet = flag_on(line, FLAG_QUIET);
    program->json = flag_on(line, FLAG_JSON);
    program->terminal = isatty(STDOUT_FILENO) != 0 && isatty(STDERR_FILENO) != 0;
    program->style.utf8 = text_locale_is_utf8();
    program->style.color = isatty(STDOUT_FILENO) != 0 && (no_color == NULL || no_color[0] == '\0');
}

/* A schedule that cannot be put does not undo the export. */
static int export_and_schedule(struct program *program, struct error *err)
{
    struct error why = ERROR_NONE;
    int status = export_command(program, err);

    if (status != EXIT_DONE || !cleanup_is_repeated(program->line))
        return status;
    status = cleanup_command(program, &why);
    if (status < 0)
        output_error(why.message);
    return status == EXIT_DONE ? EXIT_DONE : EXIT_AFTERWARDS;
}

static int run_export_flags(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;

    /* the parser lets only "help" and "export" pass */
    if (line->word_count > 1 || (line->word_count == 1 && strcmp(line->words[0], "export") != 0))
        return error_set(err, ERR_INVALID, "--help lists what can be done");
    if (flag_given(line, FLAG_DAEMON_WATCH))
        return follow_job(program, flag_text(line, FLAG_DAEMON_WATCH), false, err);
    if (flag_given(line, FLAG_DAEMON_LIST))
        return jobs_list(program, flag_text(line, FLAG_DAEMON_LIST), err);
    if (flag_given(line, FLAG_DAEMON_CANCEL))
        return jobs_cancel(program, flag_text(line, FLAG_DAEMON_CANCEL), err);
    if (flag_on(line, FLAG_DAEMON_STATUS))
        return status_command(program, err);
    if (flag_given(line, FLAG_VERIFY_ONLY))
        return verify_path(program, flag_text(line, FLAG_VERIFY_ONLY), err);
    if (!flag_given(line, FLAG_VM) && !flag_given(line, FLAG_TEMPLATE) && cleanup_wanted(line))
        return cleanup_command(program, err);
    if (!flag_given(line, FLAG_VM) &&
        (!flag_given(line, FLAG_TEMPLATE) || flag_on(line, FLAG_RESUME) ||
         flag_on(line, FLAG_INCREMENTAL_INFO) || flag_on(line, FLAG_VM_INFO)))
        return error_set(err, ERR_INVALID, "--vm NAME is missing (--help lists what can be done)");
    if (flag_given(line, FLAG_TIMEZONE) && !flag_given(line, FLAG_DAEMON_SCHEDULE))
        return error_set(err, ERR_INVALID, "--timezone belongs to --daemon-schedule");
    if (flag_on(line, FLAG_INCREMENTAL_INFO))
        return incremental_info_command(program, err);
    return flag_on(line, FLAG_VM_INFO) ? vm_info_command(program, err)
                                       : export_and_schedule(program, err);
}

static int run(struct program *program, struct error *err)
{
    static int (*const commands[])(struct program * program, struct error * err) = {
        [COMMAND_EXPORT] = run_export_flags,   [COMMAND_JOBS] = jobs_command,
        [COMMAND_WORKFLOW] = workflow_command, [COMMAND_EXPORTS] = exports_command,
        [COMMAND_VERIFY] = verify_command,     [COMMAND_SCHEDULE] = schedule_command,
        [COMMAND_POLICY] = policy_command,     [COMMAND_TEMPLATE] = template_command,
        [COMMAND_VMS] = vms_command,           [COMMAND_PROVIDERS] = providers_command,
        [COMMAND_STATUS] = status_command,     [COMMAND_QUEUE] = queue_command,
        [COMMAND_WORKERS] = workers_command,   [COMMAND_LOGIN] = login_command,
    };

    return commands[program->line->command->id](program, err);
}

static int print_help(const struct command_line *line)
{
    auto_strbuf out;

    strbuf_init(&out, FLAGS_HELP_BYTES_MAX);
    if (flag_on(line, FLAG_VERSION)) {
        strbuf_add(&out, "hyperexport " HYPERSDK_VERSION "\n");
    } else {
        flags_help(&out, line);
    }
    output_text(&out);
    return EXIT_DONE;
}

static int run_line(struct command_line *line, struct error *err)
{
    struct program program = {0};
    auto_api *api = NULL;

    if (flag_on(line, FLAG_HELP) || flag_on(line, FLAG_VERSION) ||
        (line->word_count == 1 && strcmp(line->words[0], "help") == 0))
        return print_help(line);
    set_up(&program, line);
    if (line->secret_on_argv) {
        (void)fprintf(stderr, "warning: other users may have seen the secret among the "
                              "arguments; --password-file or --passphrase-file is safer\n");
    }
    if (line->command->id == COMMAND_DECRYPT || flag_given(line, FLAG_DECRYPT))
        return decrypt_command(&program, err);
    if (api_open(line, &api, err) < 0)
        return -1;
    program.api = api;
    return run(&program, err);
}

int main(int argc, char **argv)
{
    struct error err = ERROR_NONE;
    struct command_line line;
    int status;

    interrupt_start();
    (void)curl_global_init(CURL_GLOBAL_DEFAULT);
    status = flags_parse(argc, argv, &line, &err);
    if (status == 0)
        status = run_line(&line, &err);
    flags_release(&line);
    if (status >= 0)
        return status;
    output_error(err.message);
    return interrupt_exit_status() != 0 ? interrupt_exit_status() : exit_status_of(&err);
}
