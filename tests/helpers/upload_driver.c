/* Upload targets without the services around them: one action per call, for tests.
 *
 *   upload_driver SPEC.json
 *
 * SPEC: {"uploads": {<configuration>}, "url", "action": "upload" | "fetch" | "sweep" | "abort",
 *   "name", and for upload "file", "state", "old_id"; for abort "id"; for sweep "age_ms"}.
 * Prints one JSON line: {"ok": true, ...} or {"ok": false, "code", "error"}. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/http_client.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/targets/upload.h"

#define SPEC_BYTES_MAX  ((size_t)MIB)
#define FETCH_BYTES_MAX ((size_t)MIB)

static int may_write(void *arg, struct error *err)
{
    (void)arg;
    (void)err;
    return 0;
}

static int note_id(void *arg, const char *id, struct error *err)
{
    (void)err;
    json_set_text(arg, "id", id);
    return 0;
}

static void progress(void *arg, uint64_t bytes)
{
    (void)arg;
    (void)bytes;
}

static int run_upload(struct target *target, const json_t *spec, json_t *answer, struct error *err)
{
    const char *path = json_str(spec, "file");
    char sha256[DIGEST_HEX_SIZE];
    struct stat st;
    struct upload_file file = {
        .path = path,
        .object = {.name = json_str(spec, "name")},
        .sha256 = sha256,
        .state_path = json_str(spec, "state")[0] == '\0' ? NULL : json_str(spec, "state"),
        .old_id = json_str(spec, "old_id"),
        .may_write = may_write,
        .note_id = note_id,
        .progress = progress,
        .arg = answer,
    };

    if (stat(path, &st) < 0 || file_sha256(path, sha256, err) < 0)
        return -1;
    file.object.size = (uint64_t)st.st_size;
    return upload_file(target, &file, err);
}

static int act(struct target *target, const json_t *spec, json_t *answer, struct error *err)
{
    const char *action = json_str(spec, "action");
    const struct target_object object = {.name = json_str(spec, "name")};
    size_t size = 0;

    if (strcmp(action, "upload") == 0)
        return run_upload(target, spec, answer, err);
    if (strcmp(action, "fetch") == 0) {
        autofree char *text = NULL;
        if (upload_fetch(target, object.name, FETCH_BYTES_MAX, &text, &size, err) < 0)
            return -1;
        json_set_text(answer, "text", text);
        return 0;
    }
    if (strcmp(action, "abort") == 0)
        return target->base.class->abort(target, &object, json_str(spec, "id"), err);
    if (target->base.class->sweep(target, (int64_t)json_u64(spec, "age_ms"), &size, err) < 0)
        return -1;
    json_put(answer, "swept", json_integer((json_int_t)size));
    return 0;
}

static int run(const char *path, json_t *answer, struct error *err)
{
    auto_json *spec = NULL;
    autofree char *text = NULL;
    auto_target_settings settings = {0};
    auto_target *target = NULL;
    struct upload_url url;
    size_t text_size = 0;

    if (file_read(path, SPEC_BYTES_MAX, &text, &text_size, err) < 0 ||
        json_parse(text, text_size, SPEC_BYTES_MAX, &spec, err) < 0 ||
        target_settings_check(json_object_get(spec, "uploads"), err) < 0 ||
        upload_url_parse(json_str(spec, "url"), &url, err) < 0 ||
        target_settings_find(json_object_get(spec, "uploads"), &url, &settings, err) < 0)
        return -1;
    const struct target_options options = {.url = &url, .settings = &settings};
    if (target_open(&options, &target, err) < 0)
        return -1;
    return act(target, spec, answer, err);
}

int main(int argc, char **argv)
{
    auto_json *answer = json_object();
    autofree char *line = NULL;
    struct error err = ERROR_NONE;

    if (argc != 2) {
        (void)fprintf(stderr, "usage: upload_driver SPEC.json\n");
        return 64;
    }
    http_global_init();
    if (run(argv[1], answer, &err) < 0) {
        json_put(answer, "ok", json_false());
        json_set_text(answer, "code", error_code_name(err.code));
        json_set_text(answer, "error", err.message);
    } else {
        json_put(answer, "ok", json_true());
    }
    line = json_text(answer);
    (void)printf("%s\n", line);
    return 0;
}
