/* Providers: what the suite exports from. Credentials travel once, in the body, and are sealed by
 * the gateway. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "common/json.h"
#include "common/parse.h"
#include "settings.h"

#define LIST_COLUMNS 5

static int list(struct program *program, struct error *err)
{
    static const char *const heading[LIST_COLUMNS] = {"NAME", "KIND", "ENABLED", "HOST", "FROM"};
    auto_json *answer = NULL;
    const json_t *providers;
    const json_t *provider;
    size_t i;
    auto_strbuf out = {0};

    if (api_check(program->api, err) < 0 ||
        api_get(program->api, "/api/v1/providers", &answer, err) < 0)
        return -1;
    providers = json_object_get(answer, "providers");
    if (program->json) {
        output_json(providers == NULL ? answer : providers);
        return EXIT_DONE;
    }
    strbuf_init(&out, API_BODY_BYTES_MAX);
    autofree const char **cells =
        xcalloc((json_array_size(providers) + 1) * LIST_COLUMNS, sizeof *cells);
    memcpy(cells, heading, sizeof heading);
    json_array_foreach(providers, i, provider)
    {
        const char **row = &cells[(i + 1) * LIST_COLUMNS];
        const json_t *settings = json_object_get(provider, "settings");
        row[0] = json_str(provider, "name");
        row[1] = json_str(provider, "kind");
        row[2] = json_is_false(json_object_get(provider, "enabled")) ? "no" : "yes";
        row[3] = json_str(json_object_get(provider, "host") != NULL ? provider : settings, "host");
        row[4] = json_str(provider, "origin");
        if (program->quiet)
            strbuf_addf(&out, "%s\t%s\t%s\n", row[0], row[1], row[3]);
    }
    if (!program->quiet)
        text_table(&out, cells, LIST_COLUMNS, json_array_size(providers) + 1, program->style.utf8);
    output_text(&out);
    return EXIT_DONE;
}

static int find_password(const struct program *program, char **out, struct error *err)
{
    const struct command_line *line = program->line;

    if (!flag_given(line, FLAG_PASSWORD_FILE) && !flag_given(line, FLAG_PASSWORD) &&
        (!program->terminal || program->quiet)) {
        return error_set(err, ERR_INVALID,
                         "--password-file is missing ('-' reads it from "
                         "standard input)");
    }
    return command_password(program, "Password of that account: ", out, err);
}

static void add_given(json_t *body, const char *key, const struct command_line *line,
                      enum flag_id id)
{
    if (flag_given(line, id))
        json_set_text(body, key, flag_text(line, id));
}

static int add(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;
    const char *host =
        flag_given(line, FLAG_URL) ? flag_text(line, FLAG_URL) : flag_text(line, FLAG_HOST);
    const char *kind = flag_given(line, FLAG_KIND) ? flag_text(line, FLAG_KIND) : "vsphere";
    const char *name = flag_given(line, FLAG_NAME) ? flag_text(line, FLAG_NAME) : kind;
    autofree char *password = NULL;
    auto_json *body = json_object();
    auto_json *answer = NULL;

    if (host == NULL || !flag_given(line, FLAG_USERNAME)) {
        return error_set(err, ERR_INVALID,
                         "'providers add' needs --url (or --host) and --username");
    }
    if (flag_given(line, FLAG_URL) && flag_given(line, FLAG_HOST))
        return error_set(err, ERR_INVALID, "only one of --url, --host at a time");
    if (api_check_secret_allowed(program->api, err) < 0 || api_check(program->api, err) < 0 ||
        find_password(program, &password, err) < 0)
        return -1;
    json_set_text(body, "name", name);
    json_set_text(body, "kind", kind);
    json_set_text(body, "host", host);
    add_given(body, "username", line, FLAG_USERNAME);
    json_set_text(body, "password", password);
    explicit_bzero(password, strlen(password));
    add_given(body, "ca_file", line, FLAG_CA_FILE);
    add_given(body, "thumbprint", line, FLAG_THUMBPRINT);
    if (flag_on(line, FLAG_INSECURE))
        (void)json_object_set_new(body, "insecure", json_true());
    if (api_call(program->api,
                 &(struct api_request){.method = "POST", .path = "/api/v1/providers", .body = body},
                 &answer, err) < 0)
        return -1;
    return output_done(program, answer, "provider: %s", name);
}

static int validate(struct program *program, const char *name, struct error *err)
{
    autofree char *path = output_path("/api/v1/providers/", name, "/validate");
    auto_json *body = json_object();
    auto_json *answer = NULL;
    bool valid;

    if (api_check(program->api, err) < 0 ||
        api_call(program->api, &(struct api_request){.method = "POST", .path = path, .body = body},
                 &answer, err) < 0)
        return -1;
    valid = json_is_true(json_object_get(answer, "valid"));
    if (program->json) {
        output_json(answer);
    } else if (valid) {
        (void)printf("valid: %s (%s)\n", name, json_str(answer, "version"));
    }
    if (valid)
        return EXIT_DONE;
    if (json_object_get(answer, "valid") == NULL) {
        return error_set(err, ERR_TIMEOUT,
                         "no worker has checked '%.64s' yet ('hyperexport status' tells why)",
                         name);
    }
    return error_set(err, ERR_DENIED, "provider '%.64s' does not work: %.300s", name,
                     json_str(answer, "error"));
}

/* "providers limit KIND [MB | config]" */
static int limit(struct program *program, const char *kind, struct error *err)
{
    autofree char *path = output_path("/api/v1/workers/", kind, "/bandwidth");
    const char *word = program->line->word_count > 3 ? program->line->words[3] : NULL;
    struct api_request request = {.method = "GET", .path = path};
    auto_json *body = json_object();
    auto_json *answer = NULL;
    uint32_t mb = 0;

    if (flag_given(program->line, FLAG_BANDWIDTH_BURST) &&
        (word == NULL || strcmp(word, "config") == 0))
        return error_set(err, ERR_INVALID, "--bandwidth-burst needs a limit: KIND MB/S");
    if (word != NULL && strcmp(word, "config") == 0) {
        request.method = "DELETE";
    } else if (word != NULL) {
        if (parse_u32("MB/s", word, 0, LIMIT_MB_MAX, &mb, err) < 0)
            return -1;
        json_put(body, "bandwidth_limit_mbps", json_integer(mb));
        body_add_number(body, "bandwidth_burst_mb", program->line, FLAG_BANDWIDTH_BURST);
        request.method = "PUT";
        request.body = body;
    }
    if (api_check(program->api, err) < 0 || api_call(program->api, &request, &answer, err) < 0)
        return -1;
    if (program->json) {
        output_json(answer);
    } else if (strcmp(json_str(answer, "source"), "api") != 0) {
        (void)printf("limit: %s by configuration\n", kind);
    } else {
        (void)printf("limit: %s %" PRIu64 " MB/s\n", kind,
                     json_u64(answer, "bandwidth_limit_mbps"));
    }
    return EXIT_DONE;
}

static int drop(struct program *program, const char *name, struct error *err)
{
    autofree char *path = output_path("/api/v1/providers/", name, "");
    autofree char *question =
        xasprintf("Remove provider '%s' and its credentials from the suite?", name);
    auto_json *answer = NULL;

    if (api_check(program->api, err) < 0)
        return -1;
    if (!output_confirm(program, question)) {
        return error_set(err, ERR_CANCELLED, "provider '%.64s' was not removed (--yes removes it)",
                         name);
    }
    if (api_call(program->api, &(struct api_request){.method = "DELETE", .path = path}, &answer,
                 err) < 0)
        return -1;
    return output_done(program, answer, "removed: %s", name);
}

int providers_command(struct program *program, struct error *err)
{
    const char *what = program->line->word_count > 1 ? program->line->words[1] : "list";
    const char *name;

    if (strcmp(what, "list") == 0)
        return command_words_max(program, 2, err) < 0 ? -1 : list(program, err);
    if (strcmp(what, "add") == 0)
        return command_words_max(program, 2, err) < 0 ? -1 : add(program, err);
    if (strcmp(what, "limit") == 0) {
        name = command_argument(program, "a kind of provider", err);
        if (name == NULL || command_words_max(program, 4, err) < 0)
            return -1;
        return limit(program, name, err);
    }
    if (strcmp(what, "validate") != 0 && strcmp(what, "remove") != 0) {
        return command_without_code(program, err);
    }
    name = command_argument(program, "the name of a provider", err);
    if (name == NULL || command_words_max(program, 3, err) < 0)
        return -1;
    return strcmp(what, "validate") == 0 ? validate(program, name, err) : drop(program, name, err);
}
