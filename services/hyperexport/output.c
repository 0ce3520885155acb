/* What the commands share: printing, prompts, paths; see command.h. */
#include "command.h"

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"

void output_text(const struct strbuf *text)
{
    if (write_all(STDOUT_FILENO, text->data, text->length) < 0)
        _exit(EXIT_DONE); /* the reader (head, a pager) has seen enough */
}

void output_json(const json_t *json)
{
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_ENCODE_ANY);
    auto_strbuf out;

    if (text == NULL)
        abort(); /* out of memory */
    strbuf_init(&out, API_BODY_BYTES_MAX * 2);
    strbuf_add(&out, text);
    strbuf_addc(&out, '\n');
    free(text);
    output_text(&out);
}

void output_pair(struct strbuf *out, const char *key, const char *value)
{
    strbuf_addf(out, "%s=", key);
    text_add_clean(out, value, true);
    strbuf_addc(out, '\n');
}

void output_error(const char *message)
{
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    strbuf_add(&out, "error: ");
    text_add_clean(&out, message, text_locale_is_utf8());
    strbuf_addc(&out, '\n');
    (void)fputs(out.data, stderr);
}

bool output_confirm(const struct program *program, const char *question)
{
    char answer[16] = "";

    if (flag_on(program->line, FLAG_YES))
        return true;
    if (program->quiet || !program->terminal || isatty(STDIN_FILENO) == 0)
        return false;
    (void)fprintf(stderr, "%s [y/N] ", question);
    if (fgets(answer, sizeof answer, stdin) == NULL)
        return false;
    return answer[0] == 'y' || answer[0] == 'Y';
}

char *output_path(const char *prefix, const char *id, const char *suffix)
{
    auto_strbuf path;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_add(&path, prefix);
    strbuf_add_url(&path, id);
    strbuf_add(&path, suffix);
    return xstrdup(path.data);
}

const char *command_argument(const struct program *program, const char *what, struct error *err)
{
    const struct command_line *line = program->line;

    if (line->word_count >= 3)
        return line->words[2];
    (void)error_set(err, ERR_INVALID, "'%.40s %.40s' needs %s", line->words[0], line->words[1],
                    what);
    return NULL;
}

size_t command_limit(const struct program *program)
{
    return flag_given(program->line, FLAG_LIMIT) ? flag_number(program->line, FLAG_LIMIT)
                                                 : API_LIST_DEFAULT;
}

int command_words_max(const struct program *program, size_t count, struct error *err)
{
    const struct command_line *line = program->line;

    if (line->word_count <= count)
        return 0;
    return error_set(err, ERR_INVALID, "unexpected '%.80s'", line->words[count]);
}

int output_rows(const struct program *program, const json_t *rows,
                const struct output_column *columns, size_t count)
{
    autofree const char **cells = xcalloc((json_array_size(rows) + 1) * count, sizeof *cells);
    const json_t *row;
    auto_strbuf out = {0};
    size_t i;

    if (program->json) {
        output_json(rows);
        return EXIT_DONE;
    }
    strbuf_init(&out, API_BODY_BYTES_MAX);
    for (size_t k = 0; k < count; k++)
        cells[k] = columns[k].heading;
    json_array_foreach(rows, i, row)
    {
        for (size_t k = 0; k < count; k++)
            cells[(i + 1) * count + k] = json_str(row, columns[k].key);
        if (program->quiet)
            output_pair(&out, json_str(row, columns[0].key), json_str(row, columns[1].key));
    }
    if (!program->quiet)
        text_table(&out, cells, count, json_array_size(rows) + 1, program->style.utf8);
    output_text(&out);
    return EXIT_DONE;
}

int output_done(const struct program *program, const json_t *answer, const char *format, ...)
{
    va_list args;

    if (program->json) {
        output_json(answer);
        return EXIT_DONE;
    }
    va_start(args, format);
    (void)vprintf(format, args);
    va_end(args);
    (void)putchar('\n');
    return EXIT_DONE;
}
