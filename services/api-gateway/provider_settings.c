/* See provider_settings.h. */
#include "provider_settings.h"

#include <stdio.h>
#include <string.h>

#include "common/config_tables.h"
#include "common/db.h"
#include "common/json.h"
#include "common/paths.h"

#define EXPORT_LIMIT_MAX 1000 /* as export.provider_limit */

const char *const provider_kinds_known[] = {"vsphere", "aws",       "azure", "gcp",     "hyperv",
                                            "proxmox", "openstack", "oci",   "alibaba", NULL};
/* Settings that say what is done with a login, not who gets to see it. */
static const char *const harmless[] = {"timeout", "datacenter", "username", "export_limit", NULL};

void provider_settings_release(struct provider_settings *settings)
{
    json_decref(settings->settings);
    json_decref(settings->secrets);
}

bool provider_name_is_right(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";
    size_t length = strlen(name);

    return length >= 1 && length <= 63 && strspn(name, letters) == length && name[0] != '_' &&
           name[0] != '-';
}

static int read_kind(const char *name, const json_t *input, struct provider_settings *out,
                     struct field_problem *problem, struct error *err)
{
    const json_t *given = json_object_get(input, "kind");
    const char *kind = json_string_value(given);
    const char *near;

    if (given == NULL || json_is_null(given)) {
        kind = word_in(name, provider_kinds_known) ? name : NULL;
    } else if (kind == NULL) {
        return field_fail(problem, 400, "kind", err, ERR_INVALID, "'kind' must be a text");
    }
    if (kind == NULL)
        return field_fail(problem, 400, "kind", err, ERR_INVALID, "'kind' is missing");
    if (!word_in(kind, provider_kinds) && word_in(kind, provider_kinds_known)) {
        return field_fail(problem, 422, "kind", err, ERR_NOT_AVAILABLE,
                          "'kind': '%s' is not available in this version", kind);
    }
    if (!word_in(kind, provider_kinds)) {
        near = nearest_word(kind, provider_kinds_known);
        return field_fail(problem, 400, "kind", err, ERR_INVALID,
                          "'kind': '%.40s' is not known%s%s", kind,
                          near == NULL ? "" : ", did you mean ", near == NULL ? "" : near);
    }
    (void)snprintf(out->kind, sizeof out->kind, "%s", kind);
    return 0;
}

/* password_file in the configuration: its content under "password", one newline cut. */
static int read_secret_file(const char *key, const json_t *value, json_t *secrets,
                            struct field_problem *problem, struct error *err)
{
    autofree char *name = xstrndup(key, strlen(key) - strlen("_file"));
    char *content = NULL;
    size_t size = 0;

    if (!json_is_string(value))
        return field_fail(problem, 400, key, err, ERR_INVALID, "'%s' must be a text", key);
    if (file_read(json_string_value(value), PROVIDER_SECRET_BYTES_MAX, &content, &size, err) < 0) {
        (void)snprintf(problem->field, sizeof problem->field, "%s", key);
        problem->status = 400;
        return error_wrap(err, "'%s'", key);
    }
    if (size > 0 && content[size - 1] == '\n')
        content[--size] = '\0';
    json_set_text(secrets, name, content);
    explicit_bzero(content, size);
    free(content);
    return 0;
}

static bool is_secret_file(const char *key)
{
    size_t length = strlen(key);
    char name[64];

    if (length <= 5 || length >= sizeof name || strcmp(key + length - 5, "_file") != 0)
        return false;
    memcpy(name, key, length - 5);
    name[length - 5] = '\0';
    return json_is_secret_name(name);
}

static int check_value(const char *key, const json_t *value, size_t size_max,
                       struct field_problem *problem, struct error *err)
{
    const char *text = json_string_value(value);

    if (strcmp(key, "export_limit") == 0) {
        json_int_t limit = json_integer_value(value);
        return json_is_integer(value) && limit >= 1 && limit <= EXPORT_LIMIT_MAX
                   ? 0
                   : field_fail(problem, 400, key, err, ERR_INVALID,
                                "'export_limit' must be a whole number from 1 to %d",
                                EXPORT_LIMIT_MAX);
    }
    if (json_is_boolean(value) || json_is_integer(value))
        return 0;
    if (text == NULL) {
        return field_fail(problem, 400, key, err, ERR_INVALID,
                          "'%s' must be a text, a whole number, true or false", key);
    }
    if (strlen(text) != json_string_length(value) || json_string_length(value) > size_max) {
        return field_fail(problem, 400, key, err, ERR_INVALID,
                          "'%s' must have at most %zu bytes and no NUL", key, size_max);
    }
    if (strcmp(key, "host") == 0 && strchr(text, '@') != NULL) {
        return field_fail(problem, 400, key, err, ERR_INVALID,
                          "'host' must not carry a user name or password: use 'username' and "
                          "'password'");
    }
    return 0;
}

static int take(const char *key, json_t *value, bool from_file, struct provider_settings *out,
                struct field_problem *problem, struct error *err)
{
    const char *near;

    if (!word_in(key, config_provider_keys)) {
        near = nearest_word(key, config_provider_keys);
        if (near != NULL)
            (void)snprintf(problem->candidate, sizeof problem->candidate, "%s", near);
        return field_fail(problem, 400, key, err, ERR_INVALID, "unknown setting '%.64s'%s%s", key,
                          near == NULL ? "" : ", did you mean ", near == NULL ? "" : near);
    }
    if (json_is_null(value))
        return 0;
    if (is_secret_file(key)) {
        if (from_file)
            return read_secret_file(key, value, out->secrets, problem, err);
        return field_fail(problem, 400, key, err, ERR_INVALID,
                          "'%s' is for the configuration file only: send the secret itself", key);
    }
    if (json_is_secret_name(key)) {
        if (!json_is_string(value))
            return field_fail(problem, 400, key, err, ERR_INVALID, "'%s' must be a text", key);
        if (check_value(key, value, PROVIDER_SECRET_BYTES_MAX, problem, err) < 0)
            return -1;
        if (json_string_length(value) > 0)
            (void)json_object_set(out->secrets, key, value);
        return 0;
    }
    if (check_value(key, value, PROVIDER_SETTING_BYTES_MAX, problem, err) < 0)
        return -1;
    (void)json_object_set(out->settings, key, value);
    return 0;
}

int provider_settings_read(const char *name, const json_t *input, bool from_file,
                           struct provider_settings *out, struct field_problem *problem,
                           struct error *err)
{
    auto_provider_settings read = {.enabled = true};
    const json_t *enabled = json_object_get(input, "enabled");
    const char *key;
    json_t *value;

    read.settings = json_object();
    read.secrets = json_object();
    if (!json_is_object(input)) {
        return field_fail(problem, 400, "settings", err, ERR_INVALID,
                          "the settings of a provider must be an object");
    }
    if (read_kind(name, input, &read, problem, err) < 0)
        return -1;
    if (enabled != NULL && !json_is_null(enabled)) {
        if (!json_is_boolean(enabled)) {
            return field_fail(problem, 400, "enabled", err, ERR_INVALID,
                              "'enabled' must be true or false");
        }
        read.enabled = json_is_true(enabled);
    }
    json_object_foreach(json_unconst(input), key, value)
    {
        if (strcmp(key, "kind") == 0 || strcmp(key, "enabled") == 0)
            continue;
        if (take(key, value, from_file, &read, problem, err) < 0)
            return -1;
    }
    *out = read;
    read.settings = NULL;
    read.secrets = NULL;
    return 0;
}

const char *provider_setting_needs_secret(const json_t *before, const json_t *after)
{
    const char *key;
    json_t *value;

    json_object_foreach(json_unconst(after), key, value)
    {
        if (!word_in(key, harmless) && !json_equal(json_object_get(before, key), value))
            return key;
    }
    json_object_foreach(json_unconst(before), key, value)
    {
        if (!word_in(key, harmless) && json_object_get(after, key) == NULL)
            return key;
    }
    return NULL;
}

char *provider_secrets_seal(const struct seal_master *master, const char *kind,
                            const json_t *secrets, char key_id[SEAL_KEY_ID_SIZE])
{
    char audience[sizeof "provider:" + PROVIDER_KIND_MAX];
    char *plain = json_text(secrets);
    autofree uint8_t *sealed = NULL;
    size_t size = 0;

    (void)snprintf(audience, sizeof audience, "provider:%s", kind);
    auto_seal_key *key = seal_master_derive(master, audience);
    seal(key, plain, strlen(plain), &sealed, &size);
    secret_free(plain);
    (void)snprintf(key_id, SEAL_KEY_ID_SIZE, "%s", seal_key_id(key));
    return db_bytea_text(sealed, size);
}
