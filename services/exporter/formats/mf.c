/* See mf.h. */
#include "services/exporter/formats/mf.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/strbuf.h"

#define NAME_BYTES_MAX 255
#define LINE_BYTES_MAX 1024

static const struct {
    const char *name;
    size_t bytes;
} algorithms[] = {{"SHA1", 20}, {"SHA256", 32}, {"SHA512", 64}};

bool file_name_is_plain(const char *name)
{
    size_t length = strlen(name);

    if (length == 0 || length > NAME_BYTES_MAX || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7f || c == '/' || c == '\\')
            return false;
    }
    return true;
}

static int check_file(const struct mf_file *file, struct error *err)
{
    uint8_t raw[DIGEST_BYTES];

    if (!file_name_is_plain(file->name))
        return error_set(err, ERR_INVALID, "'%.255s' is no plain file name", file->name);
    if (!hex_decode(file->sha256, raw, sizeof raw)) {
        return error_set(err, ERR_INVALID, "'%.80s' is no SHA-256 of '%.255s'", file->sha256,
                         file->name);
    }
    return 0;
}

int mf_format(const struct mf_file *files, size_t count, char **out, struct error *err)
{
    auto_strbuf sb;

    strbuf_init(&sb, MF_BYTES_MAX);
    for (size_t i = 0; i < count; i++) {
        if (check_file(&files[i], err) < 0)
            return -1;
        strbuf_addf(&sb, "SHA256(%s)= %s\n", files[i].name, files[i].sha256);
    }
    return strbuf_finish(&sb, out, err);
}

static int compare_names(const void *a, const void *b)
{
    const struct mf_file *left = a;
    const struct mf_file *right = b;

    return strcmp(left->name, right->name);
}

int checksums_format(const struct mf_file *files, size_t count, char **out, struct error *err)
{
    autofree struct mf_file *sorted = xmemdup(files, count * sizeof *files);
    auto_strbuf sb;

    strbuf_init(&sb, MF_BYTES_MAX);
    if (count > 1)
        qsort(sorted, count, sizeof *sorted, compare_names);
    for (size_t i = 0; i < count; i++) {
        if (check_file(&sorted[i], err) < 0)
            return -1;
        strbuf_addf(&sb, "%s  %s\n", sorted[i].sha256, sorted[i].name);
    }
    return strbuf_finish(&sb, out, err);
}

void mf_free(struct mf *mf)
{
    if (mf == NULL)
        return;
    for (size_t i = 0; i < mf->count; i++)
        free(mf->entries[i].name);
    for (size_t i = 0; i < mf->warning_count; i++)
        free(mf->warnings[i]);
    free(mf->entries);
    free(mf);
}

const struct mf_entry *mf_find(const struct mf *mf, const char *name)
{
    for (size_t i = 0; i < mf->count; i++) {
        if (strcmp(mf->entries[i].name, name) == 0)
            return &mf->entries[i];
    }
    return NULL;
}

static void warn(struct mf *mf, const char *text, const char *name)
{
    if (mf->warning_count < MF_WARNINGS_MAX)
        mf->warnings[mf->warning_count++] = xasprintf("%s '%.255s'", text, name);
}

/* Cuts blanks at both ends, in place. */
static char *trim(char *text)
{
    size_t length;

    while (*text == ' ' || *text == '\t')
        text++;
    length = strlen(text);
    while (length > 0 && strchr(" \t\r", text[length - 1]) != NULL)
        text[--length] = '\0';
    return text;
}

static int add_entry(struct mf *mf, const char *algorithm, const char *name, const char *hex,
                     size_t line, struct error *err)
{
    uint8_t raw[64];
    struct mf_entry *entry;

    for (size_t i = 0; i < ARRAY_LEN(algorithms); i++) {
        if (strcasecmp(algorithms[i].name, algorithm) != 0)
            continue;
        if (!hex_decode(hex, raw, algorithms[i].bytes)) {
            return error_set(err, ERR_CORRUPT, "line %zu: '%.140s' is no %s digest", line, hex,
                             algorithms[i].name);
        }
        if (mf_find(mf, name) != NULL)
            return error_set(err, ERR_CORRUPT, "line %zu: '%.255s' stands there twice", line, name);
        if (mf->count == MF_ENTRIES_MAX)
            return error_set(err, ERR_LIMIT, "more than %d entries", MF_ENTRIES_MAX);
        mf->entries = xreallocarray(mf->entries, mf->count + 1, sizeof *mf->entries);
        entry = &mf->entries[mf->count++];
        *entry = (struct mf_entry){.name = xstrdup(name)};
        (void)snprintf(entry->algorithm, sizeof entry->algorithm, "%s", algorithms[i].name);
        hex_encode(raw, algorithms[i].bytes, entry->hex);
        return 0;
    }
    warn(mf, "unknown digest algorithm for", name);
    return 0;
}

/* "ALGORITHM ( name ) = hex"; the name may hold parentheses, so its end is the last one. */
static int parse_line(struct mf *mf, char *text, size_t line, struct error *err)
{
    char *open = strchr(text, '(');
    char *close = strrchr(text, ')');
    char *equals;
    char *name;

    if (open == NULL || close == NULL || close < open)
        return error_set(err, ERR_CORRUPT, "line %zu: expected 'SHA256(file)= hex'", line);
    *open = '\0';
    *close = '\0';
    name = trim(open + 1);
    equals = trim(close + 1);
    if (*equals != '=')
        return error_set(err, ERR_CORRUPT, "line %zu: no '=' behind '(%.255s)'", line, name);
    if (!file_name_is_plain(name))
        return error_set(err, ERR_CORRUPT, "line %zu: '%.255s' is no plain file name", line, name);
    return add_entry(mf, trim(text), name, trim(equals + 1), line, err);
}

int mf_parse(const char *text, size_t size, struct mf **out, struct error *err)
{
    auto_mf *mf = xcalloc(1, sizeof *mf);
    size_t line = 0;

    if (size > MF_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "digest list of %zu bytes is over %zu", size,
                         MF_BYTES_MAX);
    }
    for (const char *p = text; p < text + size;) {
        size_t rest = (size_t)(text + size - p);
        const char *end = memchr(p, '\n', rest);
        size_t length = end == NULL ? rest : (size_t)(end - p);
        char copy[LINE_BYTES_MAX];
        char *trimmed;

        line++;
        if (length >= sizeof copy || memchr(p, '\0', length) != NULL)
            return error_set(err, ERR_CORRUPT, "line %zu is too long or not text", line);
        memcpy(copy, p, length);
        copy[length] = '\0';
        trimmed = trim(copy);
        if (*trimmed != '\0' && parse_line(mf, trimmed, line, err) < 0)
            return -1;
        p += length + 1;
    }
    *out = STEAL(mf);
    return 0;
}
