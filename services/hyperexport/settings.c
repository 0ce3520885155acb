/* Stored sessions and secrets from files; see settings.h. */
#include "settings.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "common/strbuf.h"

#define SECRET_FILE_BYTES_MAX 65536

bool settings_token_is_session(const char *token)
{
    return strncmp(token, "s.", 2) == 0;
}

static int sessions_path(char **out_directory, char **out_path, struct error *err)
{
    const char *base = secure_getenv("XDG_CONFIG_HOME");
    const char *home = secure_getenv("HOME");

    if (base != NULL && base[0] == '/') {
        *out_directory = xasprintf("%s/hypersdk", base);
    } else if (home != NULL && home[0] == '/') {
        *out_directory = xasprintf("%s/.config/hypersdk", home);
    } else {
        return error_set(err, ERR_INVALID,
                         "neither XDG_CONFIG_HOME nor HOME is set: no place for "
                         "the session");
    }
    *out_path = xasprintf("%s/sessions.json", *out_directory);
    return 0;
}

/* The stored sessions; an empty object when there are none. */
static int load_sessions(const char *path, json_t **out, struct error *err)
{
    struct stat status;
    autofree char *text = NULL;
    size_t size = 0;

    if (stat(path, &status) < 0) {
        if (errno != ENOENT)
            return error_set_errno(err, errno, "'%s'", path);
        *out = json_object();
        return 0;
    }
    if ((status.st_mode & 077) != 0)
        return error_set(err, ERR_DENIED, "'%s' can be read by others: chmod 600 it", path);
    if (file_read(path, SETTINGS_SESSIONS_BYTES_MAX, &text, &size, err) < 0 ||
        json_parse(text, size, SETTINGS_SESSIONS_BYTES_MAX, out, err) < 0)
        return error_wrap(err, "'%s'", path);
    explicit_bzero(text, size);
    return 0;
}

static bool is_expired(const char *expires_at)
{
    char now[CLOCK_RFC3339_SIZE];

    clock_rfc3339_now(now);
    /* both RFC 3339 UTC: order of text is order of time down to the second */
    return strlen(expires_at) >= 19 && strncmp(expires_at, now, 19) <= 0;
}

static int stored_token(const char *url, char **out, struct error *err)
{
    autofree char *directory = NULL;
    autofree char *path = NULL;
    auto_json *sessions = NULL;
    struct error ignored = ERROR_NONE;
    const json_t *session;

    if (sessions_path(&directory, &path, &ignored) < 0)
        return 0; /* no home, no sessions */
    if (load_sessions(path, &sessions, err) < 0)
        return -1;
    session = json_object_get(sessions, url);
    if (session != NULL && json_str(session, "token")[0] != '\0' &&
        !is_expired(json_str(session, "expires_at")))
        *out = xstrdup(json_str(session, "token"));
    return 0;
}

int settings_token(const char *token_file, const char *url, char **out, struct error *err)
{
    const char *environment = secure_getenv("HYPERSDK_TOKEN");

    *out = NULL;
    if (token_file != NULL) {
        if (settings_read_secret(token_file, out, err) < 0)
            return error_wrap(err, "--daemon-token-file");
    } else if (environment != NULL && environment[0] != '\0') {
        *out = xstrdup(environment);
    } else if (stored_token(url, out, err) < 0) {
        return -1;
    }
    if (*out == NULL)
        return 0;
    for (const char *p = *out; *p != '\0'; p++) {
        if (*p <= ' ' || *p > '~' || p - *out > SETTINGS_TOKEN_BYTES_MAX) {
            free(*out);
            *out = NULL;
            return error_set(err, ERR_INVALID,
                             "the token is malformed: it must be one line of "
                             "printable characters");
        }
    }
    return 0;
}

static int make_private_directory(const char *path, struct error *err)
{
    autofree char *parent = xstrdup(path);
    char *slash = strrchr(parent, '/');

    if (slash != NULL && slash != parent) {
        *slash = '\0';
        if (mkdir(parent, 0700) < 0 && errno != EEXIST)
            return error_set_errno(err, errno, "cannot create '%s'", parent);
    }
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "cannot create '%s'", path);
    return 0;
}

int settings_store_session(const char *url, const char *username, const char *token,
                           const char *expires_at, char **out_path, struct error *err)
{
    autofree char *directory = NULL;
    autofree char *path = NULL;
    auto_json *sessions = NULL;
    json_t *session = json_object();
    char *text;
    int result;

    json_set_text(session, "username", username);
    json_set_text(session, "token", token);
    json_set_text(session, "expires_at", expires_at);
    if (sessions_path(&directory, &path, err) < 0 || make_private_directory(directory, err) < 0 ||
        load_sessions(path, &sessions, err) < 0) {
        json_decref(session);
        return -1;
    }
    (void)json_object_set_new(sessions, url, session);
    text = json_text(sessions);
    result = file_write_atomic(path, text, strlen(text), 0600, err);
    explicit_bzero(text, strlen(text));
    free(text);
    if (result == 0)
        *out_path = STEAL(path);
    return result;
}

static int read_line(FILE *file, char **out, struct error *err)
{
    size_t capacity = 0;
    ssize_t length = getline(out, &capacity, file);

    if (length < 0)
        length = 0;
    if (length > SECRET_FILE_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "longer than %d bytes", SECRET_FILE_BYTES_MAX);
    while (length > 0 && ((*out)[length - 1] == '\n' || (*out)[length - 1] == '\r'))
        (*out)[--length] = '\0';
    if (length == 0)
        return error_set(err, ERR_INVALID, "the first line is empty");
    return 0;
}

int settings_read_secret(const char *path, char **out, struct error *err)
{
    autofree char *text = NULL;

    if (strcmp(path, "-") == 0) {
        if (read_line(stdin, &text, err) < 0)
            return error_wrap(err, "standard input");
    } else {
        size_t size = 0;
        if (file_read(path, SECRET_FILE_BYTES_MAX, &text, &size, err) < 0)
            return -1;
        text[strcspn(text, "\r\n")] = '\0';
        if (text[0] == '\0')
            return error_set(err, ERR_INVALID, "'%s': the first line is empty", path);
    }
    *out = STEAL(text);
    return 0;
}

int settings_ask_secret(const char *prompt, char **out, struct error *err)
{
    FILE *terminal = fopen("/dev/tty", "r+e");
    struct termios before;
    struct termios silent;
    int result;

    if (terminal == NULL) {
        return error_set_errno(err, errno,
                               "no terminal to ask for the password on (use "
                               "--password-file)");
    }
    if (tcgetattr(fileno(terminal), &before) < 0) {
        (void)fclose(terminal);
        return error_set_errno(err, errno, "terminal");
    }
    silent = before;
    silent.c_lflag &= ~(tcflag_t)ECHO;
    (void)fputs(prompt, terminal);
    (void)fflush(terminal);
    (void)tcsetattr(fileno(terminal), TCSAFLUSH, &silent);
    result = read_line(terminal, out, err);
    (void)tcsetattr(fileno(terminal), TCSAFLUSH, &before);
    (void)fputs("\n", terminal);
    (void)fclose(terminal);
    return result;
}
