/* Submits one export and follows it. */
#include <string.h>

#include "command.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/json.h"

#define SUBMIT_TRIES   6 /* with the pauses below: half a minute */
#define SUBMIT_BASE_MS 500
#define SUBMIT_MAX_MS  8000

/* Without a typed key, what the environment has is a passphrase; without that, key "default". */
static int add_encryption(struct program *program, json_t *body, struct error *err)
{
    const struct command_line *line = program->line;
    json_t *encrypt;

    if (!flag_on(line, FLAG_ENCRYPT))
        return 0;
    encrypt = json_object();
    (void)json_object_set_new(body, "encrypt", encrypt);
    if (flag_given(line, FLAG_ENCRYPT_METHOD))
        json_set_text(encrypt, "method", flag_text(line, FLAG_ENCRYPT_METHOD));
    if (flag_given(line, FLAG_ENCRYPT_KEY)) {
        json_set_text(encrypt, "key_ref", flag_text(line, FLAG_ENCRYPT_KEY));
        return 0;
    }
    return body_add_passphrase(program, encrypt, true, err);
}

static void add_libvirt(json_t *body, const struct command_line *line)
{
    json_t *libvirt;

    if (!flag_on(line, FLAG_LIBVIRT))
        return;
    libvirt = json_object();
    body_add_text(libvirt, "uri", line, FLAG_LIBVIRT_URI);
    body_add_bool(libvirt, "autostart", line, FLAG_LIBVIRT_AUTOSTART);
    body_add_text(libvirt, "bridge", line, FLAG_LIBVIRT_BRIDGE);
    body_add_text(libvirt, "pool", line, FLAG_LIBVIRT_POOL);
    (void)json_object_set_new(body, "libvirt", libvirt);
}

static void add_options(json_t *body, const struct command_line *line)
{
    auto_json *options = json_object();

    body_add_number(options, "parallel_downloads", line, FLAG_PARALLEL);
    if (flag_on(line, FLAG_POWER_OFF)) {
        (void)json_object_set_new(options, "shutdown_vm", json_true());
        (void)json_object_set_new(options, "shutdown_on_error", json_string("power_off"));
        body_add_text(options, "shutdown_timeout", line, FLAG_SHUTDOWN_TIMEOUT);
        body_add_bool(options, "power_on_after", line, FLAG_POWER_ON_AFTER);
    }
    body_add_bool(options, "remove_cdrom", line, FLAG_REMOVE_CDROM);
    if (json_object_size(options) > 0)
        (void)json_object_set(body, "options", options);
}

static json_t *job_body(const struct command_line *line)
{
    json_t *body = json_object();

    body_add_text(body, "template", line, FLAG_TEMPLATE);
    body_add_text(body, "vm_path", line, FLAG_VM);
    body_add_text(body, "provider", line, FLAG_PROVIDER);
    body_add_text(body, "output_path", line, FLAG_OUTPUT);
    body_add_text(body, "format", line, FLAG_FORMAT);
    body_add_text(body, "method", line, FLAG_METHOD);
    body_add_bool(body, "verify", line, FLAG_VERIFY);
    body_add_bool(body, "incremental", line, FLAG_INCREMENTAL);
    body_add_bool(body, "force_full", line, FLAG_FORCE_FULL);
    body_add_bool(body, "enable_cbt", line, FLAG_ENABLE_CBT);
    body_add_text(body, "incremental_max_age", line, FLAG_INCREMENTAL_MAX_AGE);
    body_add_bool(body, "compress", line, FLAG_COMPRESS);
    body_add_text(body, "compression", line, FLAG_COMPRESSION);
    body_add_number(body, "compression_level", line, FLAG_COMPRESSION_LEVEL);
    body_add_bool(body, "snapshot", line, FLAG_SNAPSHOT);
    body_add_text(body, "snapshot_name", line, FLAG_SNAPSHOT_NAME);
    body_add_bool(body, "snapshot_memory", line, FLAG_SNAPSHOT_MEMORY);
    body_add_bool(body, "snapshot_quiesce", line, FLAG_SNAPSHOT_QUIESCE);
    body_add_text(body, "snapshot_on_error", line, FLAG_SNAPSHOT_ON_ERROR);
    body_add_bool(body, "delete_snapshot", line, FLAG_DELETE_SNAPSHOT);
    body_add_bool(body, "consolidate_snapshots", line, FLAG_CONSOLIDATE_SNAPSHOTS);
    body_add_text(body, "upload", line, FLAG_UPLOAD);
    body_add_bool(body, "keep_local", line, FLAG_KEEP_LOCAL);
    body_add_bool(body, "stream_upload", line, FLAG_STREAM_UPLOAD);
    body_add_text(body, "upload_on_error", line, FLAG_UPLOAD_ON_ERROR);
    body_add_number(body, "bandwidth_limit_mbps", line, FLAG_BANDWIDTH_LIMIT);
    body_add_bandwidth(body, line);
    body_add_text(body, "deadline", line, FLAG_DEADLINE);
    if (!flag_given(line, FLAG_DAEMON_SCHEDULE)) /* else it is the schedule's */
        body_add_list(body, "depends_on", line, FLAG_DEPENDS_ON, ',');
    body_add_list(body, "time_windows", line, FLAG_TIME_WINDOWS, ';');
    body_add_text(body, "on_window_end", line, FLAG_ON_WINDOW_END);
    add_options(body, line);
    if (flag_on(line, FLAG_CONVERT)) {
        (void)json_object_set_new(
            body, "hyper2kvm_integration",
            json_pack("{s:b,s:b,s:b}", "enabled", 1, "daemon_mode", 0, "auto_convert", 1));
    }
    add_libvirt(body, line);
    return body;
}

/* The same key with every try: a submit whose answer was lost is not done twice. */
static int submit(struct program *program, const json_t *body, json_t **out, struct error *err)
{
    char key[UUID_SIZE];
    const struct api_request request = {
        .method = "POST", .path = "/api/v1/jobs", .body = body, .idempotency_key = key};

    uuid_new(key);
    for (uint32_t i = 0;; i++) {
        if (api_call(program->api, &request, out, err) == 0)
            return 0;
        if (!error_is_retryable(err) || i + 1 == SUBMIT_TRIES || interrupt_exit_status() != 0)
            return -1;
        error_clear(err);
        clock_sleep_ms(SUBMIT_BASE_MS + clock_backoff_ms(i, SUBMIT_BASE_MS, SUBMIT_MAX_MS));
    }
}

static void tell_submitted(const struct program *program, const json_t *answer, bool detached)
{
    auto_strbuf out = {0};

    if (detached && program->json) {
        output_json(answer);
        return;
    }
    if (!detached && (program->quiet || program->json))
        return;
    strbuf_init(&out, TEXT_BYTES_MAX);
    strbuf_add(&out, "job-id: ");
    text_add_clean(&out, json_str(answer, "job_id"), true);
    strbuf_addc(&out, '\n');
    output_text(&out);
}

/* The newest job of the VM, as the gateway lists it. */
static int newest_job(struct program *program, json_t **out, struct error *err)
{
    const struct command_line *line = program->line;
    auto_json *page = NULL;
    auto_strbuf path;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_add(&path, "/api/v1/jobs?limit=1");
    api_path_add(&path, "vm", flag_text(line, FLAG_VM));
    api_path_add(&path, "provider", flag_text(line, FLAG_PROVIDER));
    if (api_get(program->api, path.data, &page, err) < 0)
        return -1;
    *out = json_incref(json_array_get(json_object_get(page, "jobs"), 0));
    return *out != NULL ? 0
                        : error_set(err, ERR_NOT_FOUND,
                                    "there is no earlier export of '%.200s' to go on with",
                                    flag_text(line, FLAG_VM));
}

/* A job that failed or was cancelled starts again from what it left behind, with its own options;
 * one that still runs is only followed. */
static int resume(struct program *program, json_t **out, struct error *err)
{
    autofree char *path = NULL;
    auto_json *job = NULL;
    auto_json *nothing = json_object();
    const char *status;

    if (newest_job(program, &job, err) < 0)
        return -1;
    status = json_str(job, "status");
    if (strcmp(status, "completed") == 0) {
        return error_set(err, ERR_CONFLICT,
                         "the last export of '%.200s' (job %.64s) is complete: export it again "
                         "without --resume",
                         flag_text(program->line, FLAG_VM), json_str(job, "job_id"));
    }
    if (strcmp(status, "failed") != 0 && strcmp(status, "cancelled") != 0) {
        *out = STEAL(job);
        return 0;
    }
    path = output_path("/api/v1/jobs/", json_str(job, "job_id"), "/retry");
    return api_call(program->api,
                    &(struct api_request){.method = "POST", .path = path, .body = nothing}, out,
                    err);
}

/* The clean-up that the job asked for; its failure does not undo the export. */
static int follow_cleanup(struct program *program, const char *job_id, struct error *err)
{
    autofree char *path = output_path("/api/v1/jobs/", job_id, "");
    auto_json *job = NULL;
    const char *cleanup;
    int status;

    if (api_get(program->api, path, &job, err) < 0)
        return -1;
    cleanup = json_str(json_object_get(job, "result"), "cleanup_job_id");
    if (cleanup[0] == '\0')
        return error_set(err, ERR_PROTOCOL, "job %.64s names no clean-up", job_id);
    status = follow_job(program, cleanup, true, err);
    return status == EXIT_DONE || interrupt_exit_status() != 0 ? status : EXIT_AFTERWARDS;
}

static int follow_all(struct program *program, const char *job_id, bool cleans, struct error *err)
{
    struct error why = ERROR_NONE;
    int status = follow_job(program, job_id, true, err);

    if (status != EXIT_DONE || !cleans)
        return status;
    status = follow_cleanup(program, job_id, &why);
    if (status >= 0)
        return status;
    output_error(why.message);
    return EXIT_AFTERWARDS;
}

int export_command(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;
    bool detached = flag_on(line, FLAG_DETACH) ||
                    (flag_on(line, FLAG_USE_DAEMON) && !flag_on(line, FLAG_WATCH));
    bool cleans = cleanup_wanted(line) && !cleanup_is_repeated(line);
    auto_json *body = job_body(line);
    auto_json *answer = NULL;

    if (cleans) {
        json_t *rules = NULL;
        if (cleanup_body(line, &rules, err) < 0)
            return -1;
        (void)json_object_set_new(body, "cleanup", rules);
    }
    if (add_encryption(program, body, err) < 0)
        return -1;
    if (flag_given(line, FLAG_DAEMON_SCHEDULE))
        return schedule_create(program, STEAL(body), err);
    if (flag_on(line, FLAG_RESUME) &&
        json_object_size(body) > (flag_given(line, FLAG_PROVIDER) ? 2 : 1)) {
        return error_set(err, ERR_INVALID,
                         "--resume goes on with the options of the earlier job: give it --vm and "
                         "--provider only");
    }
    if (api_check(program->api, err) < 0)
        return -1;
    if ((flag_on(line, FLAG_RESUME) ? resume(program, &answer, err)
                                    : submit(program, body, &answer, err)) < 0)
        return -1;
    if (json_str(answer, "job_id")[0] == '\0')
        return error_set(err, ERR_PROTOCOL, "the gateway's answer names no job");
    tell_submitted(program, answer, detached);
    return detached ? EXIT_DONE : follow_all(program, json_str(answer, "job_id"), cleans, err);
}
