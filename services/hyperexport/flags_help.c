/* --help; see flags.h. */
#include <string.h>

#include "flags.h"

static const char usage[] =
    "hyperexport - get virtual machines out of clouds and hypervisors, into KVM\n\n"
    "  hyperexport --vm NAME [flags]             export a VM and follow the job\n"
    "  hyperexport --vm NAME --vm-info           show a VM\n"
    "  hyperexport jobs list|get ID|cancel ID|retry ID|pause ID|resume ID|\n"
    "                   delete ID|limit ID MB/S|logs ID [--follow]|watch ID\n"
    "  hyperexport workflow list|create FILE|show NAME|delete NAME|\n"
    "                   run NAME [--watch]|status RUN [--watch]|cancel RUN|\n"
    "                   pause RUN|resume RUN|retry RUN\n"
    "  hyperexport exports list|show ID|verify ID|check ID|prune ID KEEP|\n"
    "                   flatten ID\n"
    "  hyperexport verify DIR                    read an export back and compare it\n"
    "  hyperexport decrypt FILE|DIR [TO] --keyfile FILE\n"
    "  hyperexport --cleanup [--cleanup-...]     remove old exports\n"
    "  hyperexport --vm NAME [flags] --daemon-schedule NAME:CRON\n"
    "  hyperexport schedule list|show NAME|runs NAME|trigger NAME|enable NAME|\n"
    "                   disable NAME|delete NAME   exports that come again\n"
    "  hyperexport policy list|show NAME|create FILE|update NAME FILE|delete NAME|\n"
    "                   preview NAME|run NAME [--watch]|runs NAME|results NAME\n"
    "                                            exports of all VMs that a filter takes\n"
    "  hyperexport template list|show NAME|create NAME FILE|update NAME FILE|\n"
    "                   delete NAME|render NAME [--vm PATH] [--set NAME=VALUE]\n"
    "  hyperexport export --template NAME [--vm NAME] [flags]   a job of a template\n"
    "  hyperexport vms list|info --vm NAME\n"
    "  hyperexport providers list|add|validate NAME|remove NAME\n"
    "  hyperexport providers limit KIND [MB/S|config]   bandwidth of the kind's workers\n"
    "  hyperexport status                        workers, queue, why jobs wait\n"
    "  hyperexport queue [pause [REASON]|resume] what waits; hold all that is not started\n"
    "  hyperexport workers list|drain NAME|resume NAME\n"
    "  hyperexport login --username NAME         keep a session for this gateway\n"
    "  hyperexport jobs --help                   what jobs, or any other, can do and takes\n\n"
    "Booleans are written --flag, --flag=true or --flag=false; -flag works like --flag.\n"
    "Exit status: 0 done, 1 connection or authentication, 2 export failed, 4 verification,\n"
    "5 upload, 6 conversion, 7 some VMs of a policy failed, 8 exported, but the clean-up failed,\n"
    "64 usage, 65 not available, 130/143 interrupted.\n";

static void help_line(struct strbuf *out, const struct flag *flag)
{
    autofree char *left = flag->argument == NULL ? xasprintf("--%s", flag->name)
                                                 : xasprintf("--%s %s", flag->name, flag->argument);

    strbuf_addf(out, "  %-28s %s", left, flag->help);
    if (flag->choices != NULL) {
        strbuf_add(out, ": ");
        flags_add_choices(out, flag->choices);
    }
    if (flag->default_text != NULL && strcmp(flag->default_text, "false") != 0)
        strbuf_addf(out, " [%s]", flag->default_text);
    if (flag->env != NULL)
        strbuf_addf(out, " (%s)", flag->env);
    strbuf_addc(out, '\n');
}

/* What only this command takes, or few do. */
static bool takes_by_name(const struct command *command, const struct flag *flag)
{
    return flag->help != NULL && command_takes(command, flag) &&
           (flag->groups & (command->groups | FLAGS_OF_ALL)) == 0;
}

/* "  hyperexport jobs delete ID [--yes]" */
static void usage_line(struct strbuf *out, const struct command *command)
{
    autofree char *name = command_name(command);

    strbuf_addf(out, "  hyperexport %s%s%s", name, command->arguments == NULL ? "" : " ",
                command->arguments == NULL ? "" : command->arguments);
    for (size_t i = 0; i < flags_table_count; i++) {
        if (takes_by_name(command, &flags_table[i]))
            strbuf_addf(out, " [--%s]", flags_table[i].name);
    }
    strbuf_addc(out, '\n');
}

/* The rows that the line means: an action's, all of its word, or what exports take. */
static const struct command *rows(const struct command_line *line, size_t *out_count)
{
    const struct command *first = line->command;
    const struct command *last = &commands_table[commands_table_count - 1];

    *out_count = 1;
    if (first->word == NULL)
        return last;
    if (line->word_count > 1)
        return first;
    while (first + *out_count <= last && first[*out_count].id == first->id)
        (*out_count)++;
    return first;
}

void flags_help(struct strbuf *out, const struct command_line *line)
{
    size_t count = 0;
    const struct command *first = rows(line, &count);

    if (first->word == NULL)
        strbuf_add(out, usage);
    for (size_t i = 0; i < count && first->word != NULL; i++)
        usage_line(out, &first[i]);
    strbuf_add(out, "\nFlags:\n");
    for (size_t i = 0; i < flags_table_count; i++) {
        bool taken = false;
        for (size_t k = 0; k < count; k++)
            taken = taken || command_takes(&first[k], &flags_table[i]);
        if (taken && flags_table[i].help != NULL)
            help_line(out, &flags_table[i]);
    }
}
