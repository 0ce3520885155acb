/* See target.h. */
#include "services/exporter/targets/target.h"

#include <string.h>

#include "common/clock.h"
#include "common/config.h"
#include "common/json.h"

#define WAIT_STEP_MS 50 /* how soon a stop is seen */
#define DAY_MS       UINT64_C(86400000)

static const struct target_class *const classes[] = {&target_s3, &target_sftp};

#define KEY(member) offsetof(struct target_settings, member)
static const struct config_key settings_keys[] = {
    {"url", CONFIG_STRING, KEY(url), NULL, 1, UPLOAD_URL_BYTES_MAX, CONFIG_REQUIRED,
     "uploads below this URL use the entry"},
    {"endpoint", CONFIG_STRING, KEY(endpoint), "", 0, 1023, 0, "s3: URL of the server"},
    {"region", CONFIG_STRING, KEY(region), "us-east-1", 1, 63, 0, "s3"},
    {"path_style", CONFIG_STRING, KEY(path_style), "auto", 1, 5, 0, "s3: auto, true or false"},
    {"access_key_id", CONFIG_STRING, KEY(access_key_id), "", 0, 255, 0, "s3"},
    {"secret_access_key", CONFIG_STRING, KEY(secret_access_key), "", 0, 1023, CONFIG_SECRET, "s3"},
    {"secret_access_key_file", CONFIG_FILE, KEY(secret_access_key), NULL, 0, 4095, CONFIG_SECRET,
     "s3"},
    {"session_token", CONFIG_STRING, KEY(session_token), "", 0, 8191, CONFIG_SECRET, "s3"},
    {"checksum", CONFIG_STRING, KEY(checksum), "md5", 1, 8, 0, "s3: md5, sha256 or none"},
    {"ca_file", CONFIG_STRING, KEY(ca_file), "", 0, 4095, 0, "s3"},
    {"username", CONFIG_STRING, KEY(username), "", 0, UPLOAD_NAME_BYTES_MAX, 0, "sftp"},
    {"password", CONFIG_STRING, KEY(password), "", 0, 1023, CONFIG_SECRET, "sftp"},
    {"password_file", CONFIG_FILE, KEY(password), NULL, 0, 4095, CONFIG_SECRET, "sftp"},
    {"key_file", CONFIG_STRING, KEY(key_file), "", 0, 4095, 0, "sftp"},
    {"known_hosts", CONFIG_STRING, KEY(known_hosts), "/etc/ssh/ssh_known_hosts", 1, 4095, 0,
     "sftp"},
    {"parallel", CONFIG_U32, KEY(parallel), "4", 1, TARGET_PARALLEL_MAX, 0, "parts at a time"},
    {"stale_after", CONFIG_DURATION_MS, KEY(stale_after_ms), "7d", 3600000, 365 * DAY_MS, 0,
     "older unfinished uploads are aborted"},
    {0},
};

void target_settings_release(struct target_settings *settings)
{
    config_release(settings_keys, settings);
}

/* ---- configuration ---- */

static bool is_word(const char *word, const char *const *words)
{
    for (; *words != NULL; words++) {
        if (strcmp(word, *words) == 0)
            return true;
    }
    return false;
}

static int check_words(const struct target_settings *settings, struct error *err)
{
    static const char *const styles[] = {"auto", "true", "false", NULL};
    static const char *const checksums[] = {"md5", "sha256", "none", NULL};

    if (!is_word(settings->path_style, styles))
        return error_set(err, ERR_INVALID, "path_style: must be auto, true or false");
    if (!is_word(settings->checksum, checksums))
        return error_set(err, ERR_INVALID, "checksum: must be md5, sha256 or none");
    return 0;
}

static int check_complete(const struct target_settings *settings, const struct upload_url *url,
                          struct error *err)
{
    if (strcmp(url->scheme, "s3") == 0) {
        if (settings->access_key_id[0] == '\0' || settings->secret_access_key[0] == '\0')
            return error_set(err, ERR_INVALID, "access_key_id or secret_access_key is missing");
        return 0;
    }
    if (settings->password[0] == '\0' && settings->key_file[0] == '\0')
        return error_set(err, ERR_INVALID, "key_file or password is missing");
    if (url->user[0] == '\0' && settings->username[0] == '\0')
        return error_set(err, ERR_INVALID, "username is missing, here and in the URL");
    return 0;
}

/* YAML's plain true and false arrive as booleans. */
static json_t *normal_entry(const json_t *entry)
{
    json_t *copy = json_deep_copy(entry);
    const json_t *style = json_object_get(copy, "path_style");

    if (json_is_boolean(style))
        json_put(copy, "path_style", json_string(json_is_true(style) ? "true" : "false"));
    return copy;
}

static int read_entry(const char *name, const json_t *entry, struct target_settings *out,
                      struct upload_url *out_url, struct error *err)
{
    json_t *copy;
    int rc;

    if (!json_is_object(entry))
        return error_set(err, ERR_INVALID, "uploads.%.64s: must be a map of settings", name);
    copy = normal_entry(entry);
    rc = config_from_json(settings_keys, copy, out, err);
    json_decref(copy);
    if (rc < 0)
        return error_wrap(err, "uploads.%.64s", name);
    if (upload_url_parse(out->url, out_url, err) == 0 && check_words(out, err) == 0 &&
        check_complete(out, out_url, err) == 0)
        return 0;
    target_settings_release(out);
    return error_wrap(err, "uploads.%.64s", name);
}

int target_settings_check(const json_t *uploads, struct error *err)
{
    const char *name;
    json_t *entry;

    if (uploads == NULL || json_is_null(uploads))
        return 0;
    if (!json_is_object(uploads))
        return error_set(err, ERR_INVALID, "uploads: must be a map of targets");
    json_object_foreach(json_unconst(uploads), name, entry)
    {
        struct target_settings settings;
        struct upload_url url;
        if (read_entry(name, entry, &settings, &url, err) < 0)
            return -1;
        target_settings_release(&settings);
    }
    return 0;
}

/* Does url lie below base? User and port count only where the entry names them. */
static bool is_below(const struct upload_url *url, const struct upload_url *base)
{
    size_t length = strlen(base->path);

    return url->scheme == base->scheme && strcmp(url->host, base->host) == 0 &&
           (base->user[0] == '\0' || strcmp(url->user, base->user) == 0) &&
           (base->port == 0 || url->port == base->port) &&
           (length == 0 || (strncmp(url->path, base->path, length) == 0 &&
                            (url->path[length] == '\0' || url->path[length] == '/')));
}

static const char *environment(const char *name, const char *fallback)
{
    const char *value = secure_getenv(name);

    return value != NULL && value[0] != '\0' ? value : fallback;
}

static int from_environment(const struct upload_url *url, struct target_settings *out,
                            struct error *err)
{
    autofree char *text = upload_url_text(url, "");
    json_t *entry;
    int rc;

    if (strcmp(url->scheme, "s3") != 0 || environment("AWS_ACCESS_KEY_ID", NULL) == NULL ||
        environment("AWS_SECRET_ACCESS_KEY", NULL) == NULL) {
        return error_set(err, ERR_DENIED,
                         "the exporter has no credentials for '%.200s': add an entry below "
                         "'uploads' to its configuration%s",
                         text,
                         strcmp(url->scheme, "s3") == 0
                             ? ", or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to its environment"
                             : "");
    }
    entry = json_object();
    json_set_text(entry, "url", text);
    json_set_text(entry, "access_key_id", environment("AWS_ACCESS_KEY_ID", ""));
    json_set_text(entry, "secret_access_key", environment("AWS_SECRET_ACCESS_KEY", ""));
    json_set_text(entry, "session_token", environment("AWS_SESSION_TOKEN", ""));
    json_set_text(entry, "region", environment("AWS_REGION", "us-east-1"));
    json_set_text(entry, "endpoint", environment("AWS_ENDPOINT_URL", ""));
    rc = config_from_json(settings_keys, entry, out, err);
    json_decref(entry);
    return rc < 0 ? error_wrap(err, "AWS_* in the exporter's environment") : 0;
}

int target_settings_find(const json_t *uploads, const struct upload_url *url,
                         struct target_settings *out, struct error *err)
{
    size_t best_length = 0;
    bool found = false;
    const char *name;
    json_t *entry;

    json_object_foreach(json_unconst(uploads), name, entry)
    {
        struct target_settings settings;
        struct upload_url base;
        if (read_entry(name, entry, &settings, &base, err) < 0) {
            if (found)
                target_settings_release(out);
            return -1;
        }
        if (!is_below(url, &base) || (found && strlen(base.path) <= best_length)) {
            target_settings_release(&settings);
            continue;
        }
        if (found)
            target_settings_release(out);
        *out = settings;
        found = true;
        best_length = strlen(base.path);
    }
    return found ? 0 : from_environment(url, out, err);
}

/* ---- targets ---- */

int target_open(const struct target_options *options, struct target **out, struct error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(classes); i++) {
        if (strcmp(classes[i]->scheme, options->url->scheme) == 0)
            return classes[i]->open(options, out, err);
    }
    return error_set(err, ERR_NOT_AVAILABLE, "upload to %s:// is not available",
                     options->url->scheme);
}

void target_close(struct target *target)
{
    if (target != NULL)
        target->base.class->close(target);
}

int target_check(const struct target *target, struct error *err)
{
    const atomic_bool *stopped = target->base.options.stopped;

    return stopped != NULL && atomic_load(stopped)
               ? error_set(err, ERR_CANCELLED, "the upload was stopped")
               : 0;
}

int target_pay(struct target *target, uint64_t bytes, struct error *err)
{
    int64_t start_ns = clock_mono_ns();
    int rc = rate_take(target->base.options.rate, bytes, target->base.options.stopped, err);

    atomic_fetch_add(&target->base.rate_wait_ns, (uint64_t)(clock_mono_ns() - start_ns));
    return rc;
}

bool target_retry(struct target *target, uint32_t attempt, int64_t wait_ms, struct error *err)
{
    struct error stop = ERROR_NONE;
    int64_t until_ms;

    if (!error_is_retryable(err) || attempt + 1 >= TARGET_TRIES)
        return false;
    if (wait_ms <= 0)
        wait_ms = clock_backoff_ms(attempt, TARGET_BACKOFF_MS, TARGET_BACKOFF_MAX);
    until_ms = clock_mono_ms() + wait_ms;
    do {
        if (target_check(target, &stop) < 0) {
            *err = stop;
            return false;
        }
        clock_sleep_ms(WAIT_STEP_MS);
    } while (clock_mono_ms() < until_ms);
    error_clear(err);
    return true;
}

char *target_key(const struct target *target, const char *name)
{
    const char *path = target->base.options.url->path;

    return xasprintf("%s%s%s", path, path[0] == '\0' ? "" : "/", name);
}
