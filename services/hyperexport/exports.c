/* Exports that exist: list, show, verify. */
#include <string.h>

#include "command.h"
#include "common/json.h"
#include "common/parse.h"

#define LIST_COLUMNS 6
#define KEEP_MAX     64 /* restore points of one chain */

/* ---- list ---- */

static void show_quiet(const json_t *exports)
{
    static const char *const keys[] = {"export_id", "vm_name", "format", "path"};
    const json_t *export;
    auto_strbuf out;
    size_t i;

    strbuf_init(&out, API_BODY_BYTES_MAX);
    json_array_foreach(exports, i, export)
    {
        for (size_t k = 0; k < ARRAY_LEN(keys); k++) {
            if (k > 0)
                strbuf_addc(&out, '\t');
            text_add_clean(&out, json_str(export, keys[k]), true);
        }
        strbuf_addc(&out, '\n');
    }
    output_text(&out);
}

static void show_table(const struct program *program, const json_t *exports)
{
    static const char *const heading[LIST_COLUMNS] = {"EXPORT", "VM",      "FORMAT",
                                                      "SIZE",   "CREATED", "PATH"};
    size_t count = json_array_size(exports);
    autofree const char **cells = xcalloc((count + 1) * LIST_COLUMNS, sizeof *cells);
    autofree char(*size)[TEXT_NUMBER_SIZE] = xcalloc(count + 1, sizeof *size);
    const json_t *export;
    auto_strbuf out;
    size_t i;

    memcpy(cells, heading, sizeof heading);
    json_array_foreach(exports, i, export)
    {
        const char **row = &cells[(i + 1) * LIST_COLUMNS];
        text_size(json_u64(export, "total_size"), size[i]);
        row[0] = json_str(export, "export_id");
        row[1] = json_str(export, "vm_name");
        row[2] = json_str(export, "format");
        row[3] = size[i];
        row[4] = json_str(export, "created_at");
        row[5] = json_str(export, "path");
    }
    strbuf_init(&out, API_BODY_BYTES_MAX);
    text_table(&out, cells, LIST_COLUMNS, count + 1, program->style.utf8);
    output_text(&out);
}

static int fetch(struct program *program, json_t *exports, struct error *err)
{
    auto_strbuf path;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_add(&path, "/api/v1/exports");
    api_path_add(&path, "vm", flag_text(program->line, FLAG_VM));
    api_path_add(&path, "provider", flag_text(program->line, FLAG_PROVIDER));
    return api_list(program->api, &path, "exports", command_limit(program), exports, err);
}

static int list(struct program *program, struct error *err)
{
    auto_json *exports = json_array();

    if (api_check(program->api, err) < 0 || fetch(program, exports, err) < 0)
        return -1;
    if (program->json) {
        output_json(exports);
    } else if (program->quiet) {
        show_quiet(exports);
    } else {
        show_table(program, exports);
    }
    return EXIT_DONE;
}

/* ---- show ---- */

static int show(struct program *program, const char *id, struct error *err)
{
    static const char *const keys[] = {"export_id", "job_id", "vm_name", "vm_id",     "provider",
                                       "format",    "path",   "volume",  "created_at"};
    struct text_row rows[ARRAY_LEN(keys) + 1];
    autofree char *path = output_path("/api/v1/exports/", id, "");
    auto_json *export = NULL;
    char size[TEXT_NUMBER_SIZE];
    size_t count = 0;
    auto_strbuf out = {0};

    if (api_check(program->api, err) < 0 || api_get(program->api, path, &export, err) < 0)
        return -1;
    if (program->json) {
        output_json(export);
        return EXIT_DONE;
    }
    strbuf_init(&out, TEXT_BYTES_MAX);
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        if (program->quiet)
            output_pair(&out, keys[i], json_str(export, keys[i]));
        rows[count++] = (struct text_row){.label = keys[i], .value = json_str(export, keys[i])};
    }
    text_size(json_u64(export, "total_size"), size);
    rows[count++] = (struct text_row){.label = "total_size", .value = size};
    if (program->quiet) {
        strbuf_addf(&out, "total_size=%llu\n", (unsigned long long)json_u64(export, "total_size"));
    } else {
        text_box(&out, "Export", false, rows, count, &program->style);
    }
    output_text(&out);
    return EXIT_DONE;
}

/* ---- jobs on files that exist ---- */

int submit_and_follow(struct program *program, const char *path, const json_t *body,
                      struct error *err)
{
    const struct api_request request = {.method = "POST", .path = path, .body = body};
    auto_json *answer = NULL;

    if (api_check(program->api, err) < 0 || api_call(program->api, &request, &answer, err) < 0)
        return -1;
    if (json_str(answer, "job_id")[0] == '\0')
        return error_set(err, ERR_PROTOCOL, "the gateway's answer names no job");
    if (flag_on(program->line, FLAG_DETACH)) {
        return output_done(program, answer, "job-id: %s", json_str(answer, "job_id"));
    }
    return follow_job(program, json_str(answer, "job_id"), true, err);
}

int verify_path(struct program *program, const char *path, struct error *err)
{
    auto_json *body = json_object();

    json_set_text(body, "path", path);
    if (body_add_passphrase(program, body, false, err) < 0)
        return -1;
    return submit_and_follow(program, "/api/v1/exports/verify", body, err);
}

int verify_command(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;

    if (line->word_count < 2)
        return error_set(err, ERR_INVALID, "'verify' needs the directory of an export");
    if (command_words_max(program, 2, err) < 0)
        return -1;
    return verify_path(program, line->words[1], err);
}

static int verify_export(struct program *program, const char *id, struct error *err)
{
    autofree char *path = output_path("/api/v1/exports/", id, "/verify");
    auto_json *body = json_object();

    if (body_add_passphrase(program, body, false, err) < 0)
        return -1;
    return submit_and_follow(program, path, body, err);
}

static bool is_chain_word(const char *what)
{
    return strcmp(what, "check") == 0 || strcmp(what, "prune") == 0 || strcmp(what, "flatten") == 0;
}

static int chain_job(struct program *program, const char *what, const char *id, struct error *err)
{
    bool prune = strcmp(what, "prune") == 0;
    const struct command_line *line = program->line;
    autofree char *path = NULL;
    auto_json *body = json_object();
    uint32_t keep = 0;

    if (prune && (line->word_count < 4 || parse_u32("the number of points that stay",
                                                    line->words[3], 1, KEEP_MAX, &keep, err) < 0)) {
        return err->code != ERR_NONE ? -1
                                     : error_set(err, ERR_INVALID,
                                                 "'exports prune' needs an export id and how many "
                                                 "restore points stay");
    }
    if (command_words_max(program, prune ? 4 : 3, err) < 0)
        return -1;
    if (prune)
        json_put(body, "keep", json_integer((json_int_t)keep));
    path = output_path("/api/v1/exports/", id,
                       prune ? "/prune"
                             : (strcmp(what, "flatten") == 0 ? "/flatten" : "/check-chain"));
    return submit_and_follow(program, path, body, err);
}

int exports_command(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;
    const char *what = line->word_count > 1 ? line->words[1] : "list";
    bool shows = strcmp(what, "show") == 0;
    const char *id;

    if (strcmp(what, "list") == 0)
        return command_words_max(program, 2, err) < 0 ? -1 : list(program, err);
    if (!shows && strcmp(what, "verify") != 0 && !is_chain_word(what)) {
        return command_without_code(program, err);
    }
    id = command_argument(program, "an export id", err);
    if (id != NULL && is_chain_word(what))
        return chain_job(program, what, id, err);
    if (id == NULL || command_words_max(program, 3, err) < 0)
        return -1;
    return shows ? show(program, id, err) : verify_export(program, id, err);
}
