/* The state file of an upload; see upload.h. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "services/exporter/targets/upload.h"

#define LINE_BYTES_MAX 8192 /* URL, name and id of 1 KiB each, escaped */

void upload_state_free(struct upload_state *state)
{
    if (state == NULL)
        return;
    free(state->url);
    free(state->name);
    free(state->id);
    free(state->identity);
    free(state->parts);
    free(state->marks);
    free(state);
}

static int read_sha256(const json_t *line, uint8_t raw[DIGEST_BYTES], struct error *err)
{
    if (!hex_decode(json_str(line, "sha256"), raw, DIGEST_BYTES))
        return error_set(err, ERR_CORRUPT, "state file: a digest is none");
    return 0;
}

static int read_head(const json_t *line, struct upload_state *state, struct error *err)
{
    uint8_t raw[DIGEST_BYTES];
    uint64_t count;

    state->url = xstrdup(json_str(line, "url"));
    state->name = xstrdup(json_str(line, "name"));
    state->id = xstrdup(json_str(line, "id"));
    if (strlen(state->url) > UPLOAD_URL_BYTES_MAX || strlen(state->id) > TARGET_ID_BYTES_MAX ||
        json_get_u64(line, "size", 0, (uint64_t)INT64_MAX, 0, &state->size, err) < 0 ||
        json_get_u64(line, "part_size", 1, (uint64_t)INT64_MAX, 1, &state->part_size, err) < 0) {
        error_clear(err);
        return error_set(err, ERR_CORRUPT, "state file: its first line is none");
    }
    if (json_str(line, "identity")[0] != '\0') {
        state->identity = xstrdup(json_str(line, "identity"));
    } else {
        if (read_sha256(line, raw, err) < 0)
            return -1;
        hex_encode(raw, sizeof raw, state->sha256);
    }
    count = state->size / state->part_size + (state->size % state->part_size != 0);
    if (count > TARGET_PARTS_MAX)
        return error_set(err, ERR_CORRUPT, "state file: more than %d parts", TARGET_PARTS_MAX);
    state->part_count = count == 0 ? 1 : (size_t)count;
    state->parts = xcalloc(state->part_count, sizeof *state->parts);
    if (state->identity != NULL)
        state->marks = xcalloc(state->part_count, sizeof *state->marks);
    for (size_t i = 0; i < state->part_count; i++) {
        struct target_part *part = &state->parts[i];
        part->number = (uint32_t)i + 1;
        part->offset = i * state->part_size;
        part->size = min_u64(state->part_size, state->size - part->offset);
    }
    return 0;
}

static int read_done(const json_t *line, struct upload_state *state, struct error *err)
{
    uint8_t raw[DIGEST_BYTES];

    state->done = true;
    if (state->identity == NULL)
        return 0;
    state->done_size = json_u64(line, "size");
    if (state->done_size == 0 || state->done_size > state->size)
        return error_set(err, ERR_CORRUPT, "state file: the finished object has no size");
    if (read_sha256(line, raw, err) < 0)
        return -1;
    hex_encode(raw, sizeof raw, state->sha256);
    return 0;
}

static int read_mark(const json_t *line, size_t index, struct upload_state *state,
                     struct error *err)
{
    struct upload_mark *mark = &state->marks[index];
    const char *after = json_str(line, "after");

    if (!hex_decode(json_str(line, "md5"), state->parts[index].md5,
                    sizeof state->parts[index].md5) ||
        (after[0] != '\0' && !hex_decode(after, mark->after, sizeof mark->after)))
        return error_set(err, ERR_CORRUPT, "state file: a digest is none");
    mark->known = after[0] != '\0';
    mark->local = json_is_true(json_object_get(line, "local"));
    return 0;
}

static int read_line(const json_t *line, struct upload_state *state, struct error *err)
{
    const char *tag = json_str(line, "tag");
    struct target_part *part;
    uint64_t number = 0;

    if (json_is_true(json_object_get(line, "done")))
        return read_done(line, state, err);
    number = json_u64(line, "part");
    if (number == 0 || number > state->part_count || tag[0] == '\0' ||
        strlen(tag) >= TARGET_TAG_SIZE)
        return error_set(err, ERR_CORRUPT, "state file: a line is no part");
    part = &state->parts[number - 1];
    if (read_sha256(line, part->sha256, err) < 0)
        return -1;
    if (json_get_u64(line, "size", 1, part->size, part->size, &part->size, err) < 0) {
        error_clear(err);
        return error_set(err, ERR_CORRUPT, "state file: a part has an impossible size");
    }
    memcpy(part->tag, tag, strlen(tag) + 1);
    return state->marks == NULL ? 0 : read_mark(line, (size_t)number - 1, state, err);
}

int upload_state_parse(const char *text, size_t size, struct upload_state **out, struct error *err)
{
    auto_upload_state *state = xcalloc(1, sizeof *state);
    const char *end = text + size;
    bool first = true;

    if (size > UPLOAD_STATE_BYTES_MAX)
        return error_set(err, ERR_CORRUPT, "state file is too long");
    /* A line without its end was being written when the process died. */
    for (const char *newline; text < end && (newline = memchr(text, '\n', (size_t)(end - text)));
         text = newline + 1) {
        struct error bad = ERROR_NONE;
        auto_json *line = NULL;
        if (json_parse(text, (size_t)(newline - text), LINE_BYTES_MAX, &line, &bad) < 0 ||
            !json_is_object(line))
            return error_set(err, ERR_CORRUPT, "state file: a line is no JSON object");
        if ((first ? read_head(line, state, err) : read_line(line, state, err)) < 0)
            return -1;
        first = false;
        state->whole_bytes += (size_t)(newline + 1 - text);
    }
    if (first)
        return error_set(err, ERR_CORRUPT, "state file is empty");
    *out = STEAL(state);
    return 0;
}
