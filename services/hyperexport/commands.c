/* Which command a line is, and which flags it takes; see flags.h. */
#include <assert.h>
#include <string.h>

#include "flags.h"

static const struct {
    const char *spelling;
    const char *word;
} plurals[] = {{"schedules", "schedule"}, {"policies", "policy"}, {"templates", "template"}};

bool cleanup_wanted(const struct command_line *line)
{
    return flag_on(line, FLAG_CLEANUP) || flag_on(line, FLAG_CLEANUP_DRY_RUN) ||
           flag_given(line, FLAG_CLEANUP_SCHEDULE);
}

/* Of the rows without a word the last, an export, holds for every line. */
static bool mode_holds(const struct command_line *line, enum flag_id mode)
{
    if (mode == FLAG_CLEANUP) {
        return cleanup_wanted(line) && !flag_given(line, FLAG_VM) &&
               !flag_given(line, FLAG_TEMPLATE);
    }
    if (mode == FLAG_DAEMON_STATUS)
        return flag_on(line, mode);
    return mode == FLAG_LATER || flag_given(line, mode);
}

/* The first row of the word; NULL: there is none. */
static const struct command *find_word(const char *word)
{
    for (size_t i = 0; i < ARRAY_LEN(plurals); i++) {
        if (strcmp(plurals[i].spelling, word) == 0)
            word = plurals[i].word;
    }
    for (size_t i = 0; i < commands_table_count; i++) {
        if (commands_table[i].word != NULL && strcmp(commands_table[i].word, word) == 0)
            return &commands_table[i];
    }
    return NULL;
}

static bool in_table(const struct command *command)
{
    return command < commands_table + commands_table_count;
}

static int unknown_word(const char *word, struct error *err)
{
    const char *before = "";
    auto_strbuf known = {0};

    if (strcmp(word, "true") == 0 || strcmp(word, "false") == 0) {
        return error_set(err, ERR_INVALID, "unexpected '%s': booleans are written --flag=%s", word,
                         word);
    }
    strbuf_init(&known, FLAGS_VALUE_MAX);
    for (const struct command *c = commands_table; in_table(c) && c->word != NULL; c++) {
        if (strcmp(c->word, before) != 0)
            strbuf_addf(&known, "%s, ", c->word);
        before = c->word;
    }
    return error_set(err, ERR_INVALID, "unknown command '%.80s' (%sor to export a VM: --vm NAME)",
                     word, known.data);
}

static int unknown_action(const struct command *first, const char *action, struct error *err)
{
    auto_strbuf known;

    strbuf_init(&known, FLAGS_VALUE_MAX);
    for (const struct command *c = first; in_table(c) && c->id == first->id; c++)
        strbuf_addf(&known, "%s%s", c == first ? "" : ", ", c->action);
    return error_set(err, ERR_INVALID, "unknown command '%s %.40s' (%s)", first->word, action,
                     known.data);
}

int command_find(struct command_line *line, struct error *err)
{
    const char *word = line->word_count == 0 ? "export" : line->words[0];
    const struct command *first = find_word(word);

    if (first == NULL && strcmp(word, "export") != 0 && strcmp(word, "help") != 0)
        return unknown_word(word, err);
    for (const struct command *c = commands_table; first == NULL; c++) {
        assert(in_table(c));
        if (c->word == NULL && mode_holds(line, c->mode))
            first = c;
    }
    line->command = first;
    if (first->action == NULL || line->word_count < 2)
        return 0;
    for (const struct command *c = first; in_table(c) && c->id == first->id; c++) {
        line->command = c;
        if (strcmp(c->action, line->words[1]) == 0)
            return 0;
    }
    line->command = first;
    return unknown_action(first, line->words[1], err);
}

bool command_takes(const struct command *command, const struct flag *flag)
{
    if ((flag->groups & (command->groups | FLAGS_OF_ALL)) != 0)
        return true;
    for (size_t i = 0; i < FLAGS_OWN_MAX && command->flags[i] != FLAG_LATER; i++) {
        if (command->flags[i] == flag->id)
            return true;
    }
    return false;
}

char *command_name(const struct command *command)
{
    if (command->action != NULL)
        return xasprintf("%s %s", command->word, command->action);
    if (command->word != NULL)
        return xstrdup(command->word);
    for (size_t i = 0; i < flags_table_count; i++) {
        if (command->mode != FLAG_LATER && flags_table[i].id == command->mode)
            return xasprintf("--%s", flags_table[i].name);
    }
    return xstrdup("export");
}
