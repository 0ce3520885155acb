/* Secrets that a user gives: passwords, passphrases; and login, which is a session of this user at
 * this gateway, kept in the configuration directory. */
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "common/json.h"
#include "common/seal.h"
#include "settings.h"

#define PASSPHRASE_VARIABLE "HYPEREXPORT_PASSPHRASE"

int command_password(const struct program *program, const char *prompt, char **out,
                     struct error *err)
{
    const struct command_line *line = program->line;

    if (flag_given(line, FLAG_PASSWORD_FILE))
        return settings_read_secret(flag_text(line, FLAG_PASSWORD_FILE), out, err);
    if (flag_given(line, FLAG_PASSWORD)) {
        *out = xstrdup(flag_text(line, FLAG_PASSWORD));
        return 0;
    }
    return settings_ask_secret(prompt, out, err);
}

static int ask_passphrase(bool twice, char **out, struct error *err)
{
    auto_secret *first = NULL;
    auto_secret *second = NULL;

    if (settings_ask_secret("Passphrase: ", &first, err) < 0 ||
        (twice && settings_ask_secret("The same again: ", &second, err) < 0))
        return -1;
    if (twice && strcmp(first, second) != 0)
        return error_set(err, ERR_INVALID, "the two passphrases are not the same");
    *out = STEAL(first);
    return 0;
}

int command_passphrase(const struct program *program, bool ask_twice, char **out, struct error *err)
{
    const char *file = flag_text(program->line, FLAG_PASSPHRASE_FILE);
    const char *text = flag_text(program->line, FLAG_PASSPHRASE);

    *out = NULL;
    if (file != NULL && strcmp(file, "-") == 0 && isatty(STDIN_FILENO))
        return ask_passphrase(ask_twice, out, err);
    if (file != NULL)
        return settings_read_secret(file, out, err);
    if (text == NULL)
        text = secure_getenv(PASSPHRASE_VARIABLE);
    if (text != NULL && text[0] != '\0')
        *out = xstrdup(text);
    return 0;
}

int body_add_passphrase(struct program *program, json_t *body, bool ask_twice, struct error *err)
{
    auto_secret *passphrase = NULL;

    if (command_passphrase(program, ask_twice, &passphrase, err) < 0)
        return -1;
    if (passphrase == NULL)
        return 0;
    if (api_check_secret_allowed(program->api, err) < 0)
        return -1;
    json_set_text(body, "passphrase", passphrase);
    return 0;
}

int login_command(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;
    autofree char *password = NULL;
    autofree char *file = NULL;
    auto_json *body = json_object();
    auto_json *session = NULL;

    if (command_words_max(program, 1, err) < 0)
        return -1;
    if (!flag_given(line, FLAG_USERNAME))
        return error_set(err, ERR_INVALID, "'login' needs --username NAME");
    if (api_check_secret_allowed(program->api, err) < 0 || api_check(program->api, err) < 0 ||
        command_password(program, "Password: ", &password, err) < 0)
        return -1;
    json_set_text(body, "username", flag_text(line, FLAG_USERNAME));
    json_set_text(body, "password", password);
    explicit_bzero(password, strlen(password));
    if (api_call(
            program->api,
            &(struct api_request){.method = "POST", .path = "/api/v1/auth/login", .body = body},
            &session, err) < 0)
        return -1;
    if (json_str(session, "token")[0] == '\0')
        return error_set(err, ERR_PROTOCOL, "the gateway's answer holds no session");
    if (settings_store_session(api_url(program->api), json_str(session, "username"),
                               json_str(session, "token"), json_str(session, "expires_at"), &file,
                               err) < 0)
        return -1;
    if (!program->quiet) {
        (void)printf("logged in as %s until %s (%s)\n", json_str(session, "username"),
                     json_str(session, "expires_at"), file);
    }
    return EXIT_DONE;
}
