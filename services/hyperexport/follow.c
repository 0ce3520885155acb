/* Follows a job until it is final: a progress bar on a terminal, else a plain line every ten
 * seconds. A gateway that does not answer for a while is no reason to give up: the job goes on
 * without it. */
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>

#include "command.h"
#include "common/clock.h"
#include "common/json.h"
#include "progress.h"

#define POLL_MS         400
#define PLAIN_LINE_MS   10000
#define GATEWAY_AWAY_MS 600000 /* a restart of the host takes minutes */
#define CANCEL_WAIT_MS  30000  /* transfer stopped, snapshot removed */
#define ROWS_MAX        13

struct watch {
    struct program *program;
    const char *job_id;
    bool owned;
    bool bar_shown;
    bool away;             /* told that the gateway does not answer */
    char waits_for[256];   /* told why it is pending */
    int64_t plain_line_ms; /* when the last one was printed */
    int64_t answer_ms;     /* of the last answer */
};

static bool is_final(const char *status)
{
    return strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 ||
           strcmp(status, "cancelled") == 0;
}

static size_t terminal_columns(void)
{
    struct winsize size;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_col < 20)
        return 80;
    return size.ws_col;
}

static void clear_bar(struct watch *watch)
{
    if (watch->bar_shown)
        (void)fputs("\r\033[K", stderr);
    watch->bar_shown = false;
}

static void tell(struct watch *watch, const char *text)
{
    clear_bar(watch);
    if (!watch->program->quiet)
        (void)fprintf(stderr, "%s\n", text);
}

static void show_progress(struct watch *watch, const json_t *progress)
{
    const struct program *program = watch->program;
    auto_strbuf line = {0};

    if (program->quiet)
        return;
    strbuf_init(&line, PROGRESS_LINE_BYTES_MAX);
    if (program->terminal) {
        progress_bar(&line, progress, terminal_columns() - 1, program->style.utf8);
        (void)fprintf(stderr, "\r%s\033[K", line.data);
        (void)fflush(stderr);
        watch->bar_shown = true;
    } else if (watch->plain_line_ms == 0 ||
               clock_mono_ms() - watch->plain_line_ms >= PLAIN_LINE_MS) {
        progress_words(&line, progress);
        (void)fprintf(stderr, "%s\n", line.data);
        watch->plain_line_ms = clock_mono_ms();
    }
}

/* Of a job that waits for its next try, or for a worker. */
static void tell_waiting(struct watch *watch)
{
    autofree char *path = output_path("/api/v1/jobs/", watch->job_id, "");
    auto_json *job = NULL;
    struct error none = ERROR_NONE;
    const char *why;
    auto_strbuf line = {0};

    if (api_get(watch->program->api, path, &job, &none) < 0)
        return;
    why = json_str(job, "error");
    if (why[0] == '\0')
        why = json_str(job, "pending_reason");
    if (why[0] == '\0' || strncmp(why, watch->waits_for, sizeof watch->waits_for - 1) == 0)
        return;
    (void)snprintf(watch->waits_for, sizeof watch->waits_for, "%s", why);
    strbuf_init(&line, PROGRESS_LINE_BYTES_MAX);
    strbuf_add(&line,
               json_str(job, "error")[0] != '\0' ? "waits, and will be tried again: " : "waits: ");
    text_add_clean(&line, watch->waits_for, true);
    tell(watch, line.data);
}

/* 1 when the job is final, 0 when not (or nobody answered), -1. */
static int look(struct watch *watch, struct error *err)
{
    autofree char *path = output_path("/api/v1/jobs/", watch->job_id, "/progress");
    auto_json *progress = NULL;

    if (api_get(watch->program->api, path, &progress, err) == 0) {
        if (watch->away)
            tell(watch, "the gateway answers again");
        watch->away = false;
        watch->answer_ms = clock_mono_ms();
        if (is_final(json_str(progress, "status")))
            return 1;
        if (strcmp(json_str(progress, "status"), "pending") == 0 ||
            strcmp(json_str(progress, "substatus"), "paused") == 0)
            tell_waiting(watch);
        show_progress(watch, progress);
        return 0;
    }
    if (err->code == ERR_CANCELLED) {
        error_clear(err);
        return 0; /* the caller looks at the signal */
    }
    if (!error_is_retryable(err) || clock_mono_ms() - watch->answer_ms > GATEWAY_AWAY_MS)
        return error_wrap(err, "job %.64s goes on, but cannot be followed", watch->job_id);
    if (!watch->away)
        tell(watch, "the gateway does not answer, the job goes on; asking again");
    watch->away = true;
    error_clear(err);
    return 0;
}

/* After a signal. */
static int end_early(struct watch *watch)
{
    struct program *program = watch->program;
    struct error why = ERROR_NONE;
    auto_json *body =
        json_pack("{s:[s],s:s}", "job_ids", watch->job_id, "reason", "interrupted at the terminal");
    int64_t until = clock_mono_ms() + CANCEL_WAIT_MS;

    if (!watch->owned) {
        clear_bar(watch);
        if (!program->quiet)
            (void)fprintf(stderr, "not watching any more, job %s goes on\n", watch->job_id);
        return interrupt_exit_status();
    }
    tell(watch, "interrupted: cancelling the job (once more ends at once)");
    api_set_cancelled(program->api, NULL);
    if (api_call(program->api,
                 &(struct api_request){.method = "POST", .path = "/jobs/cancel", .body = body},
                 NULL, &why) < 0) {
        (void)error_wrap(&why, "job %.64s could not be cancelled", watch->job_id);
        output_error(why.message);
        return interrupt_exit_status();
    }
    while (clock_mono_ms() < until) {
        int state = look(watch, &why);
        if (state != 0)
            break;
        clock_sleep_ms(POLL_MS);
    }
    clear_bar(watch);
    if (!program->quiet)
        (void)fprintf(stderr, "job %s cancelled\n", watch->job_id);
    return interrupt_exit_status();
}

/* What a failed job means for scripts (CLI reference 1.1). */
static int status_of_job(const json_t *job)
{
    const char *status = json_str(job, "status");
    const char *phase = json_str(job, "phase");
    struct error failure = ERROR_NONE;

    if (strcmp(status, "completed") == 0)
        return EXIT_DONE;
    if (strcmp(status, "cancelled") == 0)
        return EXIT_EXPORT;
    if (strcmp(phase, "converting") == 0 || strcmp(phase, "importing") == 0)
        return EXIT_CONVERSION;
    if (strcmp(phase, "uploading") == 0)
        return EXIT_UPLOAD;
    failure.code = error_code_from_name(json_str(job, "error_code"));
    if (failure.code == ERR_CORRUPT || failure.code == ERR_NOT_AVAILABLE)
        return exit_status_of(&failure);
    if (strcmp(phase, "connecting") == 0 && exit_status_of(&failure) == EXIT_CONNECTION)
        return EXIT_CONNECTION;
    return EXIT_EXPORT;
}

struct summary {
    struct text_row rows[ROWS_MAX];
    size_t count;
};

static void add_row(struct summary *summary, const char *label, const char *value)
{
    if (value != NULL && value[0] != '\0' && summary->count < ROWS_MAX)
        summary->rows[summary->count++] = (struct text_row){.label = label, .value = value};
}

static const char *vm_of(const json_t *job)
{
    const char *name = json_str(job, "vm_name");

    return name[0] == '\0' ? json_str(job, "vm_path") : name;
}

/* The box after an export (CLI reference 6.4). */
static void show_box(const struct program *program, const json_t *job)
{
    const json_t *result = json_object_get(job, "result");
    const json_t *conversion = json_object_get(result, "conversion");
    const json_t *domain = json_object_get(result, "libvirt_domain");
    uint64_t bytes = json_u64(result, "transferred_bytes");
    const json_t *duration = json_object_get(result, "duration_seconds");
    double seconds = json_is_number(duration) ? json_number_value(duration) : 0;
    size_t files = json_array_size(json_object_get(result, "files"));
    char size[TEXT_NUMBER_SIZE];
    char took[TEXT_NUMBER_SIZE];
    char speed[TEXT_NUMBER_SIZE] = "";
    char count[TEXT_NUMBER_SIZE];
    struct summary summary = {0};
    auto_strbuf modes;
    auto_strbuf out;

    strbuf_init(&modes, TEXT_BYTES_MAX);
    incremental_summary(json_object_get(result, "incremental"), &modes);
    text_size(json_u64(result, "total_size"), size);
    text_duration((uint64_t)(seconds + 0.5), took);
    if (seconds > 0)
        (void)snprintf(speed, sizeof speed, "%.1f MB/s", (double)bytes / seconds / (double)MIB);
    (void)snprintf(count, sizeof count, "%zu", files);
    add_row(&summary, "VM Name", vm_of(job));
    add_row(&summary, "Job", json_str(job, "job_id"));
    add_row(&summary, "Duration", took);
    add_row(&summary, "Total Size", size);
    add_row(&summary, "Average Speed", speed);
    add_row(&summary, "Files", count);
    add_row(&summary, "Incremental", modes.data);
    if (!json_is_false(json_object_get(result, "local_kept")))
        add_row(&summary, "Output", json_str(result, "output_path"));
    add_row(&summary, "Uploaded To", json_str(result, "uploaded_to"));
    add_row(&summary, "Manifest", json_str(result, "manifest_path"));
    add_row(&summary, "Conversion", json_str(conversion, "path_used"));
    add_row(&summary, "Domain", json_str(domain, "name"));
    add_row(&summary, "Libvirt", json_str(domain, "uri"));
    strbuf_init(&out, TEXT_BYTES_MAX);
    text_box(&out, "Export Completed", false, summary.rows, summary.count, &program->style);
    output_text(&out);
}

/* "verified: <dir> (<bytes read>)" */
static void show_verified(const json_t *result)
{
    char size[TEXT_NUMBER_SIZE];
    auto_strbuf out;

    text_size(json_u64(result, "bytes_checked"), size);
    strbuf_init(&out, TEXT_BYTES_MAX);
    strbuf_add(&out, "verified: ");
    text_add_clean(&out, json_str(result, "path"), true);
    strbuf_addf(&out, " (%s read)\n", size);
    if (json_str(result, "evidence")[0] != '\0')
        output_pair(&out, "evidence", json_str(result, "evidence"));
    if (json_object_get(result, "content_checked") != NULL) { /* of an encrypted export */
        output_pair(&out, "content_checked",
                    json_is_true(json_object_get(result, "content_checked")) ? "true" : "false");
    }
    if (json_str(result, "content_note")[0] != '\0')
        output_pair(&out, "content_note", json_str(result, "content_note"));
    output_text(&out);
}

/* What a verification found: one line each on standard error. */
static void show_problems(const json_t *result)
{
    const json_t *problem;
    size_t i;

    json_array_foreach(json_object_get(result, "problems"), i, problem)
    {
        output_error(json_str(problem, "message"));
    }
}

/* "uploaded: <url>" per object */
static void add_uploaded(struct strbuf *out, const json_t *result)
{
    const json_t *url;
    size_t i;

    json_array_foreach(json_object_get(result, "uploaded"), i, url)
    {
        strbuf_add(out, "uploaded: ");
        text_add_clean(out, json_string_value(url) == NULL ? "" : json_string_value(url), true);
        strbuf_addc(out, '\n');
    }
}

static void show_success(const struct program *program, const json_t *job)
{
    const json_t *result = json_object_get(job, "result");
    const char *domain = json_str(json_object_get(result, "libvirt_domain"), "name");
    char size[TEXT_NUMBER_SIZE];
    auto_strbuf out = {0};

    if (strcmp(json_str(job, "kind"), "verify") == 0) {
        show_verified(result);
        return;
    }
    if (strcmp(json_str(job, "kind"), "cleanup") == 0) {
        cleanup_show(result);
        return;
    }
    if (!program->quiet) {
        show_box(program, job);
        return;
    }
    text_size(json_u64(result, "total_size"), size);
    strbuf_init(&out, TEXT_BYTES_MAX);
    strbuf_add(&out, "success: ");
    text_add_clean(&out, vm_of(job), true);
    strbuf_add(&out, " exported to ");
    text_add_clean(&out,
                   json_str(result, json_is_false(json_object_get(result, "local_kept"))
                                        ? "uploaded_to"
                                        : "output_path"),
                   true);
    strbuf_addf(&out, " (%s)\n", size);
    if (json_str(result, "manifest_path")[0] != '\0') {
        strbuf_add(&out, "manifest: ");
        text_add_clean(&out, json_str(result, "manifest_path"), true);
        strbuf_addc(&out, '\n');
    }
    incremental_pairs(json_object_get(result, "incremental"), &out);
    if (domain[0] != '\0') {
        strbuf_add(&out, "domain: ");
        text_add_clean(&out, domain, true);
        strbuf_addc(&out, '\n');
    }
    add_uploaded(&out, result);
    output_text(&out);
}

/* What the job went on without, on standard error. */
static void show_hooks_failed(const json_t *result)
{
    const json_t *hook;
    size_t i;

    json_array_foreach(json_object_get(result, "hooks_failed"), i, hook)
    {
        autofree char *text = xasprintf("the job went on without its %s: %s",
                                        json_str(hook, "type"), json_str(hook, "error"));
        output_error(text);
    }
}

static int show_end(struct watch *watch, struct error *err)
{
    const struct program *program = watch->program;
    autofree char *path = output_path("/api/v1/jobs/", watch->job_id, "");
    auto_json *job = NULL;
    const char *status;

    if (api_get(program->api, path, &job, err) < 0)
        return -1;
    status = json_str(job, "status");
    if (program->json)
        output_json(job);
    if (strcmp(status, "completed") == 0) {
        if (!program->json)
            show_success(program, job);
        show_hooks_failed(json_object_get(job, "result"));
    } else if (strcmp(status, "cancelled") == 0) {
        output_error("the job was cancelled");
    } else {
        autofree char *text = xasprintf("%s (job %s, 'hyperexport jobs logs %s' tells more)",
                                        json_str(job, "error"), watch->job_id, watch->job_id);
        show_problems(json_object_get(job, "result"));
        output_error(text);
    }
    return status_of_job(job);
}

int follow_job(struct program *program, const char *job_id, bool owned, struct error *err)
{
    struct watch watch = {
        .program = program, .job_id = job_id, .owned = owned, .answer_ms = clock_mono_ms()};

    api_set_cancelled(program->api, interrupt_flag());
    for (;;) {
        int state;
        if (interrupt_exit_status() != 0)
            return end_early(&watch);
        state = look(&watch, err);
        if (state < 0) {
            clear_bar(&watch);
            return -1;
        }
        if (state > 0)
            break;
        clock_sleep_ms(POLL_MS);
    }
    clear_bar(&watch);
    return show_end(&watch, err);
}
