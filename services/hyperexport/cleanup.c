/* --cleanup and its schedule. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "common/json.h"
#include "common/parse.h"

/* Bytes with an optional suffix: K, KB, M ... T, TB. */
static int add_size(json_t *body, const char *key, const char *flag,
                    const struct command_line *line, enum flag_id id, struct error *err)
{
    autofree char *text = NULL;
    uint64_t bytes = 0;
    size_t length;

    if (!flag_given(line, id))
        return 0;
    text = xstrdup(flag_text(line, id));
    length = strlen(text);
    if (length > 2 && (text[length - 1] == 'B' || text[length - 1] == 'b'))
        text[length - 1] = '\0';
    if (parse_size_bytes(flag, text, 0, INT64_MAX, &bytes, err) < 0)
        return -1;
    (void)json_object_set_new(body, key, json_integer((json_int_t)bytes));
    return 0;
}

int cleanup_body(const struct command_line *line, json_t **out, struct error *err)
{
    auto_json *body = json_object();

    if (flag_given(line, FLAG_CLEANUP_MAX_AGE))
        json_set_text(body, "max_age", flag_text(line, FLAG_CLEANUP_MAX_AGE));
    if (flag_given(line, FLAG_CLEANUP_MAX_COUNT)) {
        (void)json_object_set_new(body, "max_count",
                                  json_integer(flag_number(line, FLAG_CLEANUP_MAX_COUNT)));
    }
    if (add_size(body, "max_size", "--cleanup-max-size", line, FLAG_CLEANUP_MAX_SIZE, err) < 0 ||
        add_size(body, "min_free", "--cleanup-min-free", line, FLAG_CLEANUP_MIN_FREE, err) < 0)
        return -1;
    body_add_list(body, "preserve", line, FLAG_CLEANUP_PRESERVE, ',');
    if (flag_given(line, FLAG_CLEANUP_DIR))
        json_set_text(body, "dir", flag_text(line, FLAG_CLEANUP_DIR));
    if (flag_given(line, FLAG_CLEANUP_PER_VM))
        (void)json_object_set_new(body, "per_vm", json_boolean(flag_on(line, FLAG_CLEANUP_PER_VM)));
    if (flag_on(line, FLAG_CLEANUP_DRY_RUN))
        (void)json_object_set_new(body, "dry_run", json_true());
    *out = STEAL(body);
    return 0;
}

bool cleanup_is_repeated(const struct command_line *line)
{
    return flag_given(line, FLAG_CLEANUP_SCHEDULE);
}

static int put_schedule(struct program *program, json_t *body, struct error *err)
{
    const char *interval = flag_text(program->line, FLAG_CLEANUP_SCHEDULE);
    const struct api_request request = {
        .method = "PUT", .path = "/api/v1/exports/cleanup/schedule", .body = body};
    auto_json *answer = NULL;

    json_set_text(body, "interval", interval);
    if (api_call(program->api, &request, &answer, err) < 0)
        return -1;
    return output_done(program, answer, "schedule-created: cleanup every %s", interval);
}

int cleanup_command(struct program *program, struct error *err)
{
    auto_json *body = NULL;

    if (cleanup_body(program->line, &body, err) < 0 || api_check(program->api, err) < 0)
        return -1;
    if (cleanup_is_repeated(program->line))
        return put_schedule(program, body, err);
    return submit_and_follow(program, "/api/v1/exports/cleanup", body, err);
}

void cleanup_show(const json_t *result)
{
    const json_t *item;
    auto_strbuf out;
    size_t i;

    strbuf_init(&out, TEXT_BYTES_MAX);
    strbuf_addf(&out, "cleanup: deleted=%" PRIu64 " bytes=%" PRIu64 " preserved=%zu dry_run=%s\n",
                json_u64(result, "deleted_count"), json_u64(result, "deleted_bytes"),
                json_array_size(json_object_get(result, "preserved")),
                json_is_true(json_object_get(result, "dry_run")) ? "true" : "false");
    json_array_foreach(json_object_get(result, "deleted"), i, item)
    {
        strbuf_add(&out, "delete: ");
        text_add_clean(&out, json_str(item, "path"), true);
        strbuf_addf(&out, "\t%" PRIu64 "\t", json_u64(item, "bytes"));
        text_add_clean(&out, json_str(item, "reason"), true);
        strbuf_addc(&out, '\n');
    }
    output_text(&out);
}
