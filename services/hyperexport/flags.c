/* Parsing of argv and environment against the table; see flags.h. */
#include "flags.h"

#include <string.h>

#include "common/parse.h"
#include "common/words.h"

#define HINT_DISTANCE_MAX 3 /* three typing errors */

static int unknown_flag(const char *name, struct error *err)
{
    const char *nearest = NULL;
    size_t best = HINT_DISTANCE_MAX + 1;

    for (size_t i = 0; strlen(name) <= WORD_BYTES_MAX && i < flags_table_count; i++) {
        size_t d = word_distance(name, flags_table[i].name);
        if (d < best && d < strlen(name)) {
            best = d;
            nearest = flags_table[i].name;
        }
    }
    if (nearest == NULL)
        return error_set(err, ERR_INVALID, "unknown flag '--%.80s' (--help lists all)", name);
    return error_set(err, ERR_INVALID, "unknown flag '--%.80s', did you mean '--%s'?", name,
                     nearest);
}

static const struct flag *find_flag(const char *name, size_t length)
{
    for (size_t i = 0; i < flags_table_count; i++) {
        if (strlen(flags_table[i].name) == length && memcmp(flags_table[i].name, name, length) == 0)
            return &flags_table[i];
    }
    return NULL;
}

enum choice { CHOICE_UNKNOWN, CHOICE_KNOWN, CHOICE_LATER };

static enum choice find_choice(const char *choices, const char *value)
{
    size_t length = strlen(value);

    for (const char *p = choices; *p != '\0'; p += *p == ',' ? 1 : 0) {
        bool later = *p == '!';
        size_t n;
        p += later ? 1 : 0;
        n = strcspn(p, ",");
        if (n == length && memcmp(p, value, n) == 0)
            return later ? CHOICE_LATER : CHOICE_KNOWN;
        p += n;
    }
    return CHOICE_UNKNOWN;
}

void flags_add_choices(struct strbuf *out, const char *choices)
{
    const char *separator = "";

    for (const char *p = choices; *p != '\0'; p += *p == ',' ? 1 : 0) {
        size_t n = strcspn(p, ",");
        if (*p != '!') {
            strbuf_add(out, separator);
            strbuf_add_bytes(out, p, n);
            separator = ", ";
        }
        p += n;
    }
}

static int check_choice(const struct flag *flag, const char *what, const char *value,
                        struct error *err)
{
    auto_strbuf known = {0};

    switch (find_choice(flag->choices, value)) {
    case CHOICE_KNOWN:
        return 0;
    case CHOICE_LATER:
        return error_set(err, ERR_NOT_AVAILABLE, "%s %.40s is not available yet", what, value);
    case CHOICE_UNKNOWN:
        break;
    }
    strbuf_init(&known, FLAGS_VALUE_MAX);
    flags_add_choices(&known, flag->choices);
    return error_set(err, ERR_INVALID, "%s: '%.40s' is none of %s", what, value, known.data);
}

/* Checks the value against the row and stores it; what names the flag or variable in errors. */
static int set_value(const struct flag *flag, const char *what, const char *value,
                     struct command_line *line, struct error *err)
{
    struct flag_value *slot = &line->values[flag->id];
    uint32_t number;
    bool on = false;

    if (flag->id == FLAG_LATER)
        return 0;
    if (strlen(value) > FLAGS_VALUE_MAX)
        return error_set(err, ERR_INVALID, "%s: longer than %d bytes", what, FLAGS_VALUE_MAX);
    switch (flag->type) {
    case FLAG_BOOL:
        if (parse_bool(what, value, &on, err) < 0)
            return -1;
        value = on ? "true" : "false";
        break;
    case FLAG_NUMBER:
        if (parse_u32(what, value, flag->min, flag->max, &number, err) < 0)
            return -1;
        break;
    case FLAG_CHOICE:
        if (check_choice(flag, what, value, err) < 0)
            return -1;
        break;
    case FLAG_TEXT:
        if (value[0] == '\0')
            return error_set(err, ERR_INVALID, "%s: must not be empty", what);
        break;
    }
    if ((flag->properties & FLAG_IS_LIST) != 0 && slot->given) {
        char *joined = xasprintf("%s,%s", slot->text, value);
        free(slot->text);
        slot->text = joined;
        return 0;
    }
    free(slot->text);
    slot->text = xstrdup(value);
    slot->given = true;
    return 0;
}

static void wipe(char *text)
{
    for (; *text != '\0'; text++)
        *text = '*';
}

/* One "-flag", "--flag" or "--flag=value" at argv[*index]; moves *index over a separate value. */
static int take_flag(int argc, char **argv, int *index, struct command_line *line,
                     struct error *err)
{
    char *name = argv[*index] + (argv[*index][1] == '-' ? 2 : 1);
    size_t length = strcspn(name, "=");
    const struct flag *flag = find_flag(name, length);
    char *value = name[length] == '=' ? name + length + 1 : NULL;
    autofree char *what = xasprintf("--%.*s", (int)min_u64(length, WORD_BYTES_MAX), name);
    int result;

    if (flag == NULL) {
        autofree char *plain = xstrndup(name, length);
        return unknown_flag(plain, err);
    }
    if (value == NULL && flag->type != FLAG_BOOL) {
        if (*index + 1 < argc) {
            value = argv[++*index];
        } else if (flag->id != FLAG_LATER) {
            return error_set(err, ERR_INVALID, "%s needs a value (%s)", what, flag->argument);
        }
    }
    line->typed[flag - flags_table] = true;
    result = set_value(flag, what, value == NULL ? "true" : value, line, err);
    if ((flag->properties & FLAG_IS_SECRET) != 0 && value != NULL) {
        wipe(value);
        line->secret_on_argv = true;
    }
    return result;
}

static int take_word(const char *word, struct command_line *line, struct error *err)
{
    if (line->word_count == FLAGS_WORDS_MAX)
        return error_set(err, ERR_INVALID, "unexpected '%.80s'", word);
    line->words[line->word_count++] = word;
    return 0;
}

static int refuse(const struct command *command, const char *names, bool several, struct error *err)
{
    autofree char *name = command_name(command);
    autofree char *typed = command->word == NULL ? xstrdup("") : xasprintf("%s ", name);

    return error_set(err, ERR_INVALID,
                     "%.400s %s not apply to '%s' ('hyperexport %s--help' lists what does)", names,
                     several ? "do" : "does", name, typed);
}

static int check_tasks(const struct command_line *line, struct error *err)
{
    static const enum flag_id tasks[] = {FLAG_VM,
                                         FLAG_DAEMON_WATCH,
                                         FLAG_DAEMON_LIST,
                                         FLAG_DAEMON_STATUS,
                                         FLAG_DAEMON_CANCEL,
                                         FLAG_VERIFY_ONLY,
                                         FLAG_DECRYPT};
    size_t given = 0;

    for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
        given += flag_given(line, tasks[i]) ? 1 : 0;
    if (given > 1 && line->command->id == COMMAND_EXPORT) {
        return error_set(err, ERR_INVALID,
                         "only one of --vm, --daemon-watch, --daemon-list, --daemon-status, "
                         "--daemon-cancel, --verify-only, --decrypt at a time");
    }
    return 0;
}

/* Which command it is, is known only after the whole line: only then what it takes. All that it
 * does not are told together. */
static int check_flags(const struct command_line *line, struct error *err)
{
    const struct flag *later = NULL;
    size_t refused = 0;
    auto_strbuf names;

    strbuf_init(&names, FLAGS_VALUE_MAX);
    for (size_t i = 0; i < flags_table_count; i++) {
        const struct flag *flag = &flags_table[i];
        bool connects = line->command->groups & FLAGS_OF_EXPORT &&
                        (flag->properties & FLAG_LATER_IN_EXPORT) != 0;
        if (!line->typed[i])
            continue;
        if (connects || (flag->id == FLAG_LATER && command_takes(line->command, flag))) {
            later = flag;
        } else if (!command_takes(line->command, flag)) {
            strbuf_addf(&names, "%s--%s", refused++ == 0 ? "" : ", ", flag->name);
        }
    }
    if (refused > 0)
        return refuse(line->command, names.data, refused > 1, err);
    if (later == NULL)
        return 0;
    return error_set(err, ERR_NOT_AVAILABLE, "--%s is not available yet%s", later->name,
                     later->id == FLAG_LATER ? ""
                                             : " for exports: configure the source once with "
                                               "'hyperexport providers add'");
}

/* Environment and defaults for what was not typed. A variable of a flag that comes later stops an
 * export: it would be ignored otherwise. */
static int fill_up(struct command_line *line, struct error *err)
{
    for (size_t i = 0; i < flags_table_count; i++) {
        const struct flag *flag = &flags_table[i];
        const char *value = flag->env == NULL ? NULL : secure_getenv(flag->env);
        struct flag_value *slot = &line->values[flag->id];
        if (!command_takes(line->command, flag))
            continue;
        if (value != NULL && value[0] != '\0' && !slot->given) {
            autofree char *what = xasprintf("%s (--%s)", flag->env, flag->name);
            if (flag->id == FLAG_LATER) {
                return error_set(err, ERR_NOT_AVAILABLE,
                                 "environment variable: %s is not available yet", what);
            }
            if (set_value(flag, what, value, line, err) < 0)
                return -1;
        } else if (slot->text == NULL && flag->default_text != NULL) {
            slot->text = xstrdup(flag->default_text);
        }
    }
    return 0;
}

static bool typed(const struct command_line *line, enum flag_id id)
{
    for (size_t i = 0; i < flags_table_count; i++) {
        if (flags_table[i].id == id && line->typed[i])
            return true;
    }
    return false;
}

/* Those with a variable may stand in the environment for other calls. */
static int check_cleanup(const struct command_line *line, struct error *err)
{
    static const struct {
        enum flag_id id;
        const char *name;
    } limits[] = {{FLAG_CLEANUP_MAX_AGE, "max-age"},   {FLAG_CLEANUP_MAX_COUNT, "max-count"},
                  {FLAG_CLEANUP_MAX_SIZE, "max-size"}, {FLAG_CLEANUP_MIN_FREE, "min-free"},
                  {FLAG_CLEANUP_PRESERVE, "preserve"}, {FLAG_CLEANUP_DIR, "dir"},
                  {FLAG_CLEANUP_PER_VM, "per-vm"}};

    for (size_t i = 0; i < ARRAY_LEN(limits); i++) {
        if (typed(line, limits[i].id) && !cleanup_wanted(line))
            return error_set(err, ERR_INVALID, "--cleanup-%s needs --cleanup", limits[i].name);
    }
    return 0;
}

static int check_libvirt(const struct command_line *line, struct error *err)
{
    static const struct {
        enum flag_id id;
        const char *name;
    } details[] = {{FLAG_LIBVIRT_URI, "uri"},
                   {FLAG_LIBVIRT_AUTOSTART, "autostart"},
                   {FLAG_LIBVIRT_BRIDGE, "bridge"},
                   {FLAG_LIBVIRT_POOL, "pool"}};

    for (size_t i = 0; i < ARRAY_LEN(details); i++) {
        if (flag_given(line, details[i].id) && !flag_on(line, FLAG_LIBVIRT))
            return error_set(err, ERR_INVALID, "--libvirt-%s needs --libvirt", details[i].name);
    }
    if (flag_on(line, FLAG_LIBVIRT) && !flag_on(line, FLAG_CONVERT))
        return error_set(err, ERR_INVALID, "--libvirt needs --convert");
    return 0;
}

/* Exactly one key. */
static int check_secrets(const struct command_line *line, struct error *err)
{
    bool phrase = flag_given(line, FLAG_PASSPHRASE) || flag_given(line, FLAG_PASSPHRASE_FILE);

    if (flag_given(line, FLAG_PASSPHRASE) && flag_given(line, FLAG_PASSPHRASE_FILE))
        return error_set(err, ERR_INVALID, "--passphrase and --passphrase-file say the same");
    if (flag_given(line, FLAG_PASSWORD) && flag_given(line, FLAG_PASSWORD_FILE))
        return error_set(err, ERR_INVALID, "--password and --password-file say the same");
    if (phrase && (flag_given(line, FLAG_ENCRYPT_KEY) || flag_given(line, FLAG_KEYFILE)))
        return error_set(err, ERR_INVALID, "a passphrase and a key file are two keys: give one");
    if (phrase && line->command->id == COMMAND_EXPORT && !flag_on(line, FLAG_ENCRYPT) &&
        !flag_given(line, FLAG_DECRYPT) && !flag_given(line, FLAG_VERIFY_ONLY)) {
        return error_set(err, ERR_INVALID,
                         "--passphrase needs --encrypt, --decrypt or --verify-only");
    }
    return 0;
}

/* What only makes sense together. */
static int check_together(const struct command_line *line, struct error *err)
{
    static const enum flag_id modifiers[] = {FLAG_SNAPSHOT_NAME, FLAG_SNAPSHOT_MEMORY,
                                             FLAG_SNAPSHOT_QUIESCE, FLAG_DELETE_SNAPSHOT};
    static const char *const names[] = {"snapshot-name", "snapshot-memory", "snapshot-quiesce",
                                        "delete-snapshot"};

    for (size_t i = 0; i < ARRAY_LEN(modifiers); i++) {
        if (flag_given(line, modifiers[i]) && !flag_on(line, FLAG_SNAPSHOT))
            return error_set(err, ERR_INVALID, "--%s needs --snapshot", names[i]);
    }
    if (!flag_on(line, FLAG_POWER_OFF) &&
        (flag_given(line, FLAG_SHUTDOWN_TIMEOUT) || flag_on(line, FLAG_POWER_ON_AFTER))) {
        return error_set(err, ERR_INVALID, "--%s needs --power-off",
                         flag_on(line, FLAG_POWER_ON_AFTER) ? "power-on-after"
                                                            : "shutdown-timeout");
    }
    if (line->command->id != COMMAND_EXPORT)
        return check_secrets(line, err);
    if ((flag_given(line, FLAG_ENCRYPT_METHOD) || flag_given(line, FLAG_ENCRYPT_KEY)) &&
        !flag_on(line, FLAG_ENCRYPT))
        return error_set(err, ERR_INVALID, "--encrypt-method and --encrypt-key need --encrypt");
    if (check_secrets(line, err) < 0)
        return -1;
    if (flag_given(line, FLAG_KEYFILE) && !flag_given(line, FLAG_DECRYPT)) {
        return error_set(err, ERR_INVALID,
                         "--keyfile is for decrypting; exports are encrypted "
                         "with a key of the server (--encrypt-key)");
    }
    if (check_cleanup(line, err) < 0 || check_libvirt(line, err) < 0)
        return -1;
    if (flag_on(line, FLAG_VM_INFO) && !flag_given(line, FLAG_VM))
        return error_set(err, ERR_INVALID, "--vm-info needs --vm NAME");
    return 0;
}

int flags_parse(int argc, char **argv, struct command_line *out, struct error *err)
{
    bool only_words = false;
    int found;

    memset(out, 0, sizeof *out);
    for (int i = 1; i < argc; i++) {
        if (!only_words && strcmp(argv[i], "--") == 0) {
            only_words = true;
        } else if (!only_words && argv[i][0] == '-' && argv[i][1] != '\0') {
            if (take_flag(argc, argv, &i, out, err) < 0)
                return -1;
        } else if (take_word(argv[i], out, err) < 0) {
            return -1;
        }
    }
    found = command_find(out, err);
    if (out->command != NULL && (flag_on(out, FLAG_HELP) || flag_on(out, FLAG_VERSION))) {
        error_clear(err);
        return 0; /* whatever else was typed */
    }
    if (found < 0)
        return -1;
    if (check_tasks(out, err) < 0 || check_flags(out, err) < 0 || fill_up(out, err) < 0)
        return -1;
    return check_together(out, err);
}

void flags_release(struct command_line *line)
{
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        if (line->values[i].text != NULL)
            explicit_bzero(line->values[i].text, strlen(line->values[i].text));
        free(line->values[i].text);
        line->values[i].text = NULL;
    }
}

bool flag_given(const struct command_line *line, enum flag_id id)
{
    return line->values[id].given;
}

const char *flag_text(const struct command_line *line, enum flag_id id)
{
    return line->values[id].text;
}

bool flag_on(const struct command_line *line, enum flag_id id)
{
    return line->values[id].text != NULL && strcmp(line->values[id].text, "true") == 0;
}

uint32_t flag_number(const struct command_line *line, enum flag_id id)
{
    struct error ignored = ERROR_NONE;
    uint32_t number = 0;

    /* checked when it was stored */
    if (line->values[id].text == NULL ||
        parse_u32("flag", line->values[id].text, 0, UINT32_MAX, &number, &ignored) < 0)
        return 0;
    return number;
}
