/* What the commands share: printing, prompts, paths; see command.h. */
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"

#define FILE_BYTES_MAX ((size_t)MIB) /* of a document that a command sends */

void output_text(const struct strbuf *text)
{
    if (write_all(STDOUT_FILENO, text->data, text->length) < 0)
        _exit(EXIT_DONE); /* the reader (head, a pager) has seen enough */
}

void output_json(const json_t *json)
{
    auto_json *nothing = json_null(); /* a gateway that leaves out what it should tell */
    char *text = json_dumps(json == NULL ? nothing : json, JSON_INDENT(2) | JSON_ENCODE_ANY);
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

int command_without_code(const struct program *program, struct error *err)
{
    autofree char *name = command_name(program->line->command);

    return error_set(err, ERR_INTERNAL, "'%s' does nothing", name);
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

/* ---- what commands on named things have in common ---- */

static int read_file(const char *path, char **out, size_t *out_size, struct error *err)
{
    autofree char *text = xmalloc(FILE_BYTES_MAX + 1);
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t size = 0;

    if (fd < 0)
        return error_set_errno(err, errno, "'%.400s'", path);
    while (size <= FILE_BYTES_MAX) {
        ssize_t n = read(fd, text + size, FILE_BYTES_MAX + 1 - size);
        if (n < 0)
            return error_set_errno(err, errno, "'%.400s'", path);
        if (n == 0)
            break;
        size += (size_t)n;
    }
    if (size > FILE_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "'%.400s' is over 1 MiB", path);
    *out = STEAL(text);
    *out_size = size;
    return 0;
}

int command_file(const char *path, json_t **out, struct error *err)
{
    autofree char *text = NULL;
    size_t size = 0;

    if (read_file(path, &text, &size, err) < 0)
        return -1;
    if (body_parse(text, size, FILE_BYTES_MAX, false, out, err) < 0)
        return error_wrap(err, "'%.400s'", path);
    return 0;
}

int command_delete(struct program *program, const char *prefix, const char *id,
                   const struct deletion *deletion, struct error *err)
{
    autofree char *path = output_path(prefix, id, "");
    autofree char *question =
        xasprintf("Delete %s '%s'? %s", deletion->kind, deletion->name, deletion->consequence);
    auto_json *answer = NULL;
    const char *gone;

    if (!output_confirm(program, question)) {
        return error_set(err, ERR_CANCELLED, "%s '%.64s' was not deleted (--yes deletes it)",
                         deletion->kind, deletion->name);
    }
    if (api_call(program->api, &(struct api_request){.method = "DELETE", .path = path}, &answer,
                 err) < 0)
        return -1;
    gone = json_str(answer, "deleted"); /* the id of what was named */
    return output_done(program, answer, "deleted: %s", gone[0] == '\0' ? id : gone);
}
