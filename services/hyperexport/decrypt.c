/* decrypt FILE|DIR [TO]: works on files here, without a gateway. */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "command.h"
#include "common/crypt_file.h"
#include "common/paths.h"
#include "common/seal.h"
#include "settings.h"

#define FILES_MAX 1000 /* as many as an export has at most, and more */

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash == NULL ? path : slash + 1;
}

static bool is_encrypted(const char *name)
{
    size_t length = strlen(name);
    size_t suffix = strlen(CRYPT_SUFFIX);

    return length > suffix && strcmp(name + length - suffix, CRYPT_SUFFIX) == 0;
}

/* `from` without its suffix, below the directory `to`. */
static int decrypt_into(const struct program *program, const char *from, const char *to,
                        const struct crypt_key *key, struct error *err)
{
    const char *name = base_name(from);
    autofree char *path =
        xasprintf("%s/%.*s", to, (int)(strlen(name) - strlen(CRYPT_SUFFIX)), name);
    auto_strbuf out = {0};

    if (crypt_decrypt_file(from, path, key, err) < 0)
        return -1;
    strbuf_init(&out, TEXT_BYTES_MAX);
    strbuf_add(&out, "decrypted: ");
    text_add_clean(&out, path, program->style.utf8 || program->quiet);
    strbuf_addc(&out, '\n');
    output_text(&out);
    return 0;
}

static int decrypt_all(const struct program *program, const char *dir, const char *to,
                       const struct crypt_key *key, struct error *err)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;
    size_t count = 0;

    if (stream == NULL)
        return error_set_errno(err, errno, "'%.200s'", dir);
    while ((entry = readdir(stream)) != NULL) {
        autofree char *from = NULL;
        if (!is_encrypted(entry->d_name))
            continue;
        if (++count > FILES_MAX) {
            return error_set(err, ERR_LIMIT, "more than %d encrypted files in '%.200s'", FILES_MAX,
                             dir);
        }
        from = xasprintf("%s/%s", dir, entry->d_name);
        if (decrypt_into(program, from, to, key, err) < 0)
            return -1;
    }
    return 0;
}

/* The first encrypted file in `dir`; NULL: none. Caller frees. */
static char *first_encrypted(const char *dir)
{
    auto_dir *stream = opendir(dir);
    const struct dirent *entry;

    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        if (is_encrypted(entry->d_name))
            return xasprintf("%s/%s", dir, entry->d_name);
    }
    return NULL;
}

/* A key file or passphrase that was given; else it is asked for, if the file wants a passphrase. */
static int find_key(const struct program *program, const char *file, struct crypt_key **out,
                    struct error *err)
{
    const char *keyfile = flag_text(program->line, FLAG_KEYFILE);
    auto_secret *passphrase = NULL;
    bool wanted = false;

    if (keyfile != NULL)
        return crypt_key_load(keyfile, out, err);
    if (command_passphrase(program, false, &passphrase, err) < 0 ||
        (passphrase == NULL && crypt_wants_passphrase(file, &wanted, err) < 0))
        return -1;
    if (passphrase == NULL && !wanted) {
        return error_set(err, ERR_INVALID,
                         "--keyfile FILE is missing: a copy of the key on the "
                         "server that encrypted");
    }
    if (passphrase == NULL && settings_ask_secret("Passphrase: ", &passphrase, err) < 0)
        return error_wrap(err, "a passphrase is needed (--passphrase-file)");
    return crypt_key_from_passphrase(passphrase, out, err);
}

static int decrypt(const struct program *program, const char *from, const char *to,
                   struct error *err)
{
    autofree char *parent = xstrndup(from, (size_t)(base_name(from) - from));
    autofree char *some = NULL;
    auto_crypt_key *key = NULL;
    struct stat st;

    if (stat(from, &st) < 0)
        return error_set_errno(err, errno, "'%.200s'", from);
    if (!S_ISDIR(st.st_mode) && !is_encrypted(from))
        return error_set(err, ERR_INVALID, "'%.200s' does not end in " CRYPT_SUFFIX, from);
    some = S_ISDIR(st.st_mode) ? first_encrypted(from) : xstrdup(from);
    if (some == NULL)
        return error_set(err, ERR_NOT_FOUND, "'%.200s' holds no file *" CRYPT_SUFFIX, from);
    if (find_key(program, some, &key, err) < 0 || crypt_key_check(some, key, err) < 0)
        return -1;
    if (to != NULL && mkdir(to, 0700) < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "'%.200s'", to);
    if (S_ISDIR(st.st_mode))
        return decrypt_all(program, from, to == NULL ? from : to, key, err);
    if (to == NULL)
        to = parent[0] == '\0' ? "." : parent;
    return decrypt_into(program, from, to, key, err);
}

int decrypt_command(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;

    if (line->command->id == COMMAND_EXPORT)
        return decrypt(program, flag_text(line, FLAG_DECRYPT), NULL, err) < 0 ? -1 : EXIT_DONE;
    if (line->word_count < 2)
        return error_set(err, ERR_INVALID, "'decrypt' needs an encrypted file or a directory");
    if (command_words_max(program, 3, err) < 0)
        return -1;
    return decrypt(program, line->words[1], line->word_count > 2 ? line->words[2] : NULL, err) < 0
               ? -1
               : EXIT_DONE;
}
