/* See upload_stream.h. Threads: the caller's; the feeder, which waits for parts to become final,
 * hashes them in order (but for those that are held back), and queues them; the sending threads
 * (sender.h). All that they share is guarded by the sender's mutex. */
#include "services/exporter/targets/upload_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/running_sha256.h"
#include "services/exporter/targets/sender.h"

#define STATE_MODE 0640

struct upload_stream {
    struct target *target;
    const struct upload_stream_spec *spec;
    struct target_object object;
    uint64_t part_size;
    size_t part_count;
    struct upload_mark *marks; /* of the parts, by the feeder */
    char *id;
    size_t state_bytes; /* of the state file that are whole */
    uint64_t needs;
    size_t needs_count;           /* parts before it */
    struct running_sha256 *whole; /* the feeder's; NULL with head_last */
    size_t cursor;                /* the feeder's: parts before it were fed, or skipped: */
    bool *skipped;                /* held back when it came by */
    pthread_t feeder;
    int state_fd;
    bool feeding;
    bool published; /* the object is there, only nobody wrote it down */
    bool done;      /* it is there, and its size and digest are known: */
    char sha256[DIGEST_HEX_SIZE];
    uint64_t done_size;

    struct sender sender; /* its mutex guards the rest */
    bool *there;          /* parts that are stored and noted */
    bool *held;           /* parts that still change, however final what follows is */
    size_t held_more;     /* one of them, by upload_stream_hold; 0: none */
    size_t first_missing; /* neither there nor held */
    uint64_t final;
    uint64_t checked; /* final by a checkpoint: may be punched */
    bool worthless;   /* what is there cannot be gone on with */
    bool ended;       /* the file is complete: object.size is its size */
    bool fed;         /* the feeder is through */
};

static const struct target_class *class_of(const struct upload_stream *stream)
{
    return stream->target->base.class;
}

static struct target_part *part_of(struct upload_stream *stream, size_t index)
{
    return &stream->sender.parts[index];
}

/* ---- state file ---- */

static json_t *head_line(const struct upload_stream *stream)
{
    autofree char *url = upload_url_text(stream->target->base.options.url, "");
    json_t *line = json_object();

    json_set_text(line, "url", url);
    json_set_text(line, "name", stream->spec->name);
    json_put(line, "size", json_integer((json_int_t)stream->spec->size_max));
    json_put(line, "part_size", json_integer((json_int_t)stream->part_size));
    json_set_text(line, "identity", stream->spec->identity);
    json_set_text(line, "id", stream->id);
    return line;
}

static json_t *part_line(const struct target_part *part, const struct upload_mark *mark,
                         uint64_t part_size)
{
    char hex[DIGEST_HEX_SIZE];
    json_t *line = json_object();

    hex_encode(part->sha256, sizeof part->sha256, hex);
    json_put(line, "part", json_integer((json_int_t)part->number));
    json_set_text(line, "sha256", hex);
    hex_encode(part->md5, sizeof part->md5, hex);
    json_set_text(line, "md5", hex);
    json_set_text(line, "tag", part->tag);
    if (part->size != part_size)
        json_put(line, "size", json_integer((json_int_t)part->size));
    if (mark->known) {
        hex_encode(mark->after, sizeof mark->after, hex);
        json_set_text(line, "after", hex);
    }
    if (mark->local)
        json_put(line, "local", json_true());
    return line;
}

static json_t *done_line(const struct upload_stream *stream)
{
    json_t *line = json_object();

    json_put(line, "done", json_true());
    json_put(line, "size", json_integer((json_int_t)stream->object.size));
    json_set_text(line, "sha256", stream->sha256);
    return line;
}

/* NULL: there is none, or it speaks of something else. */
static struct upload_state *state_load(const struct upload_stream *stream)
{
    autofree char *url = upload_url_text(stream->target->base.options.url, "");
    auto_upload_state *state = NULL;
    struct error none = ERROR_NONE;
    autofree char *text = NULL;
    size_t size = 0;

    if (file_read(stream->spec->state_path, UPLOAD_STATE_BYTES_MAX, &text, &size, &none) < 0 ||
        upload_state_parse(text, size, &state, &none) < 0 || state->identity == NULL ||
        strcmp(state->identity, stream->spec->identity) != 0 || strcmp(state->url, url) != 0 ||
        strcmp(state->name, stream->spec->name) != 0 || state->size != stream->spec->size_max ||
        state->part_size != stream->part_size)
        return NULL;
    return STEAL(state);
}

static int open_state(struct upload_stream *stream, struct error *err)
{
    const char *path = stream->spec->state_path;

    stream->state_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, STATE_MODE);
    if (stream->state_fd < 0 || ftruncate(stream->state_fd, (off_t)stream->state_bytes) < 0)
        return error_set_errno(err, errno, "state file '%.200s' cannot be written", path);
    if (stream->state_bytes > 0)
        return 0;
    return state_line_append(stream->state_fd, head_line(stream), err);
}

/* ---- what an earlier attempt left ---- */

static void forget(struct upload_stream *stream)
{
    for (size_t i = 0; i < stream->part_count; i++)
        part_of(stream, i)->tag[0] = '\0';
    memset(stream->marks, 0, stream->part_count * sizeof *stream->marks);
    stream->needs = 0;
    stream->needs_count = 0;
    stream->state_bytes = 0;
    stream->published = false;
    stream->done = false;
    if (stream->state_fd >= 0)
        (void)close(fd_steal(&stream->state_fd));
    (void)unlink(stream->spec->state_path);
}

/* Removes what is there under our name and begins. `id`: the unfinished upload that is known of;
 * NULL: none, so whatever stands there is not ours. */
static int begin_anew(struct upload_stream *stream, const char *id, struct error *err)
{
    const struct target_class *class = class_of(stream);
    bool exists = false;

    forget(stream);
    if (stream->spec->may_write(stream->spec->arg, err) < 0 ||
        (id != NULL && class->abort(stream->target, &stream->object, id, err) < 0) ||
        class->exists(stream->target, &stream->object, &exists, err) < 0)
        return -1;
    if (exists && id == NULL) {
        return error_set(err, ERR_CONFLICT, "'%.200s' exists at the target and is not replaced",
                         stream->spec->name);
    }
    if (exists && class->remove(stream->target, stream->spec->name, err) < 0)
        return -1;
    free(STEAL(stream->id));
    if (class->begin(stream->target, &stream->object, stream->part_count, &stream->id, err) < 0 ||
        stream->spec->note_id(stream->spec->arg, stream->id, err) < 0)
        return -1;
    return open_state(stream, err);
}

/* The parts of the state, and how far they need the writer. false: one that is gone from the file
 * says nothing of the SHA-256 behind it. */
static bool take_state(struct upload_stream *stream, const struct upload_state *state)
{
    stream->id = xstrdup(state->id);
    stream->state_bytes = state->whole_bytes;
    memcpy(stream->sender.parts, state->parts, stream->part_count * sizeof *state->parts);
    memcpy(stream->marks, state->marks, stream->part_count * sizeof *state->marks);
    stream->done = state->done;
    stream->done_size = state->done_size;
    memcpy(stream->sha256, state->sha256, sizeof stream->sha256);
    for (size_t i = 0; i < stream->part_count; i++) {
        if (part_of(stream, i)->tag[0] == '\0' || stream->marks[i].local)
            continue;
        stream->needs_count = i + 1;
        stream->needs = part_of(stream, i)->offset + part_of(stream, i)->size;
    }
    return stream->needs_count == 0 || stream->spec->head_last ||
           stream->marks[stream->needs_count - 1].known;
}

/* Every part that is gone from the file must be at the target. false in *out: one is not. */
static int look_for_parts(struct upload_stream *stream, bool *out, struct error *err)
{
    autofree bool *noted = xcalloc(stream->part_count, sizeof *noted);

    for (size_t i = 0; i < stream->part_count; i++)
        noted[i] = part_of(stream, i)->tag[0] != '\0' && !stream->marks[i].local;
    if (class_of(stream)->held(stream->target, &stream->object, stream->id, stream->sender.parts,
                               stream->part_count, err) < 0)
        return -1;
    *out = true;
    for (size_t i = 0; i < stream->part_count; i++)
        *out = *out && (!noted[i] || part_of(stream, i)->tag[0] != '\0');
    return 0;
}

/* true in *out: what the earlier attempt stored is there. */
static int recall(struct upload_stream *stream, const struct upload_state *state, bool *out,
                  struct error *err)
{
    bool exists = false;

    *out = false;
    if (!take_state(stream, state))
        return 0;
    if (!stream->done) {
        if (look_for_parts(stream, out, err) == 0)
            return 0;
        if (err->code != ERR_NOT_FOUND)
            return -1;
        error_clear(err); /* the upload is gone: because it was completed? */
    }
    if (class_of(stream)->exists(stream->target, &stream->object, &exists, err) < 0)
        return -1;
    memcpy(stream->sender.parts, state->parts, stream->part_count * sizeof *state->parts);
    stream->published = exists && !stream->done;
    *out = exists;
    return 0;
}

static int look(struct upload_stream *stream, bool *out_anew, struct error *err)
{
    auto_upload_state *state = state_load(stream);
    autofree char *id = stream->spec->old_id == NULL ? NULL : xstrdup(stream->spec->old_id);
    bool there = false;

    if (state != NULL && recall(stream, state, &there, err) < 0)
        return -1;
    *out_anew = !there;
    if (there)
        return open_state(stream, err);
    if (state != NULL) {
        free(id);
        id = xstrdup(state->id);
    }
    return begin_anew(stream, id, err);
}

/* ---- open, close ---- */

static int note_part(void *arg, const struct target_part *part, struct error *err);
static void skip_there(struct upload_stream *stream);

static int check_order(const struct target *target, const struct upload_stream_spec *spec,
                       struct error *err)
{
    const struct target_class *class = target->base.class;

    if (!spec->head_last || class->any_order)
        return 0;
    return error_set(err, ERR_NOT_AVAILABLE,
                     "stream_upload: the front of '%.200s' is written last, and %s:// takes the "
                     "parts of an object only in order: choose format ovf, vmdk or raw, or leave "
                     "stream_upload out",
                     spec->name, class->scheme);
}

int upload_stream_open(struct target *target, const struct upload_stream_spec *spec,
                       struct upload_stream **out, bool *out_anew, struct error *err)
{
    auto_upload_stream *stream = NULL;

    if (check_order(target, spec, err) < 0)
        return -1;
    stream = xcalloc(1, sizeof *stream);
    stream->target = target;
    stream->spec = spec;
    stream->object =
        (struct target_object){.name = spec->name, .size = spec->size_max, .in_parts = true};
    stream->part_size = target->base.class->part_size(spec->size_max);
    stream->state_fd = -1;
    stream->sender.target = target;
    stream->sender.object = &stream->object;
    stream->sender.fd = -1;
    stream->sender.note = note_part;
    stream->sender.arg = stream;
    sender_init(&stream->sender);
    stream->part_count = parts_make(target, spec->size_max, &stream->sender.parts, err);
    if (stream->part_count == 0)
        return -1;
    stream->marks = xcalloc(stream->part_count, sizeof *stream->marks);
    stream->there = xcalloc(stream->part_count, sizeof *stream->there);
    stream->held = xcalloc(stream->part_count, sizeof *stream->held);
    stream->skipped = xcalloc(stream->part_count, sizeof *stream->skipped);
    stream->held[0] = spec->head_last;
    skip_there(stream);
    if (!spec->head_last)
        stream->whole = running_sha256_new();
    if (look(stream, out_anew, err) < 0)
        return error_wrap(err, "upload");
    *out = STEAL(stream);
    return 0;
}

static void join(struct upload_stream *stream)
{
    if (stream->feeding)
        (void)pthread_join(stream->feeder, NULL);
    stream->feeding = false;
    sender_join(&stream->sender);
}

void upload_stream_close(struct upload_stream *stream)
{
    struct error ended = ERROR_NONE;

    if (stream == NULL)
        return;
    (void)error_set(&ended, ERR_CANCELLED, "the upload was ended");
    sender_fail(&stream->sender, &ended);
    join(stream);
    if (stream->worthless)
        forget(stream);
    sender_release(&stream->sender);
    if (stream->sender.fd >= 0)
        (void)close(stream->sender.fd);
    if (stream->state_fd >= 0)
        (void)close(stream->state_fd);
    running_sha256_free(stream->whole);
    free(stream->sender.parts);
    free(stream->marks);
    free(stream->there);
    free(stream->held);
    free(stream->skipped);
    free(stream->id);
    free(stream);
}

/* ---- parts that are stored ---- */

/* Mutex held, or no threads. */
static void skip_there(struct upload_stream *stream)
{
    while (stream->first_missing < stream->part_count &&
           (stream->there[stream->first_missing] || stream->held[stream->first_missing]))
        stream->first_missing++;
}

/* Mutex held. */
static void mark_there(struct upload_stream *stream, size_t index)
{
    stream->there[index] = true;
    skip_there(stream);
}

/* Mutex held, by a sending thread. First the line, then the hole. */
static int note_part(void *arg, const struct target_part *part, struct error *err)
{
    struct upload_stream *stream = arg;
    const struct upload_mark *mark = &stream->marks[part->number - 1];

    if (state_line_append(stream->state_fd, part_line(part, mark, stream->part_size), err) < 0)
        return -1;
    if (!mark->local && fallocate(stream->sender.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                  (off_t)part->offset, (off_t)part->size) < 0)
        return error_set_errno(err, errno, "what was uploaded cannot be cut out of the file");
    mark_there(stream, part->number - 1);
    return 0;
}

/* ---- the feeder ---- */

/* Stored by an earlier attempt, and gone from the file. */
static bool is_gone(struct upload_stream *stream, size_t index)
{
    return index < stream->needs_count && part_of(stream, index)->tag[0] != '\0' &&
           !stream->marks[index].local;
}

/* Mutex held. Up to the end of the file once that is known; by what was cut before. */
static uint64_t end_of(const struct upload_stream *stream, size_t index)
{
    return min_u64((index + 1) * stream->part_size,
                   stream->ended ? stream->object.size : stream->spec->size_max);
}

/* Mutex held. */
static bool is_ready(struct upload_stream *stream, size_t index)
{
    return stream->ended || is_gone(stream, index) || end_of(stream, index) <= stream->final;
}

/* Mutex held. The part to be fed now; false: none yet. */
static bool pick(struct upload_stream *stream, size_t *out)
{
    size_t count = stream->part_count;

    if (stream->ended) /* the parts that there are */
        count = (size_t)round_up_u64(stream->object.size, stream->part_size) / stream->part_size;
    while (stream->cursor < count && stream->held[stream->cursor])
        stream->skipped[stream->cursor++] = true;
    if (stream->cursor < count && is_ready(stream, stream->cursor)) {
        *out = stream->cursor++;
        return true;
    }
    for (size_t i = stream->cursor; i > 0; i--) { /* the first one is the last */
        if (!stream->skipped[i - 1] || (stream->held[i - 1] && !stream->ended) ||
            !is_ready(stream, i - 1))
            continue;
        stream->skipped[i - 1] = false;
        *out = i - 1;
        return true;
    }
    return false;
}

/* Waits until a part is final; false: all are through, or sending has failed. *out_gone: the target
 * has it, the file has not. */
static bool next_part(struct upload_stream *stream, size_t *out, bool *out_gone)
{
    struct target_part *part;
    bool found = false;

    LOCK_SCOPE(&stream->sender.mutex);
    for (;;) {
        found = !stream->sender.failed && pick(stream, out);
        if (found || stream->sender.failed || stream->ended)
            break;
        (void)pthread_cond_wait(&stream->sender.changed, &stream->sender.mutex);
    }
    *out_gone = found && is_gone(stream, *out);
    if (!found || *out_gone)
        return found;
    part = part_of(stream, *out);
    part->size = end_of(stream, *out) - part->offset;
    /* What goes on with the file reads its front. */
    stream->marks[*out].local =
        part->offset + part->size > stream->checked || (stream->spec->head_last && *out == 0);
    return true;
}

static void hash_whole(void *arg, const void *data, size_t size)
{
    running_sha256_add(arg, data, size);
}

/* A part that was there before counts at once. */
static void count_part(struct upload_stream *stream, size_t index)
{
    LOCK_SCOPE(&stream->sender.mutex);
    stream->sender.stored += part_of(stream, index)->size;
    mark_there(stream, index);
    (void)pthread_cond_broadcast(&stream->sender.changed);
}

static int feed_part(struct upload_stream *stream, size_t index, struct part_hash *hash,
                     struct error *err)
{
    struct target_part *part = part_of(stream, index);
    struct upload_mark *mark = &stream->marks[index];
    bool in_order = stream->whole != NULL && index >= stream->needs_count;
    uint8_t noted[DIGEST_BYTES];

    memcpy(noted, part->sha256, sizeof noted);
    hash->take = in_order ? hash_whole : NULL;
    if (part_hash_make(hash, stream->target, stream->sender.fd, part, err) < 0 ||
        stream->spec->may_write(stream->spec->arg, err) < 0)
        return -1;
    mark->known = in_order && part->size % RUNNING_SHA256_BLOCK == 0;
    if (mark->known)
        running_sha256_save(stream->whole, mark->after);
    if (stream->published ||
        (part->tag[0] != '\0' && memcmp(noted, part->sha256, sizeof noted) == 0)) {
        count_part(stream, index);
        return 0;
    }
    part->tag[0] = '\0';
    while (!sender_try_enqueue(&stream->sender, (uint32_t)index))
        continue; /* it waits */
    return 0;
}

static void *feed(void *arg)
{
    struct upload_stream *stream = arg;
    CLEANUP(part_hash_release) struct part_hash hash = {.arg = stream->whole};
    struct error err = ERROR_NONE;
    size_t index = 0;
    bool gone = false;

    part_hash_init(&hash);
    while (err.code == ERR_NONE && next_part(stream, &index, &gone)) {
        if (gone) {
            count_part(stream, index);
        } else if (feed_part(stream, index, &hash, &err) < 0) {
            sender_fail(&stream->sender, &err);
        }
    }
    LOCK_SCOPE(&stream->sender.mutex);
    stream->fed = true;
    (void)pthread_cond_broadcast(&stream->sender.changed);
    return NULL;
}

/* ---- while the file grows ---- */

/* A hole behind the end changes nothing, but tells whether there can be one. */
static int open_file(struct upload_stream *stream, const char *path, struct error *err)
{
    stream->sender.fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (stream->sender.fd < 0)
        return error_set_errno(err, errno, "cannot open '%.256s'", path);
    if (fallocate(stream->sender.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)stream->spec->size_max, (off_t)stream->part_size) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return error_set_errno(err, errno, "cannot punch a hole into '%.256s'", path);
    return error_set(err, ERR_NOT_AVAILABLE,
                     "stream_upload: the file system of '%.200s' cannot free parts of a file: "
                     "choose an output_path on another one, or leave stream_upload out",
                     path);
}

static int fit_writer(struct upload_stream *stream, uint64_t final_bytes, struct error *err)
{
    autofree char *id = NULL;

    if (stream->needs <= final_bytes)
        return 0;
    id = xstrdup(stream->id);
    if (final_bytes == 0) /* it writes all of it again */
        return begin_anew(stream, id, err);
    forget(stream);
    return error_set(err, ERR_UNAVAILABLE,
                     "upload: '%.200s' goes on at %" PRIu64 ", before what the target has of it; "
                     "the next attempt begins anew",
                     stream->spec->name, final_bytes);
}

int upload_stream_begin(struct upload_stream *stream, const char *path, uint64_t final_bytes,
                        struct error *err)
{
    int rc;

    assert(!stream->feeding); /* what was punched out meanwhile is not in the file any more */
    if (fit_writer(stream, final_bytes, err) < 0 || open_file(stream, path, err) < 0)
        return -1;
    stream->sender.id = stream->id;
    stream->final = final_bytes;
    stream->checked = final_bytes;
    if (stream->whole != NULL && stream->needs_count > 0) {
        running_sha256_restore(stream->whole, stream->marks[stream->needs_count - 1].after,
                               stream->needs);
    }
    if (stream->done)
        return 0;
    if (sender_start(&stream->sender, stream->target->base.options.settings->parallel, err) < 0)
        return -1;
    rc = pthread_create(&stream->feeder, NULL, feed, stream);
    stream->feeding = rc == 0;
    return rc == 0 ? 0 : error_set_errno(err, rc, "cannot start a thread");
}

void upload_stream_advance(struct upload_stream *stream, uint64_t final_bytes)
{
    LOCK_SCOPE(&stream->sender.mutex);
    stream->final = max_u64(stream->final, final_bytes);
    stream->checked = stream->final;
    (void)pthread_cond_broadcast(&stream->sender.changed);
}

void upload_stream_hold(struct upload_stream *stream, uint64_t offset)
{
    size_t index = (size_t)(offset / stream->part_size);

    assert(stream->spec->head_last && index < stream->part_count);
    LOCK_SCOPE(&stream->sender.mutex);
    if (stream->held_more > 0)
        stream->held[stream->held_more] = false;
    stream->held_more = index;
    stream->held[index] = true;
    skip_there(stream);
    (void)pthread_cond_broadcast(&stream->sender.changed);
}

/* Mutex held, or no thread is left. A server that forgot the upload does not know it at the next
 * look either: that attempt begins anew. */
static int take_error(const struct upload_stream *stream, struct error *err)
{
    *err = stream->sender.error;
    if (err->code == ERR_NOT_FOUND)
        err->code = ERR_UNAVAILABLE;
    return error_wrap(err, "upload");
}

/* Mutex held. A writer that goes on leaves places unused, each time a few more: once too many. */
static int give_up_size(struct upload_stream *stream, struct error *err)
{
    stream->worthless = true;
    return error_set(err, ERR_UNAVAILABLE,
                     "upload: '%.200s' has grown over %" PRIu64 " bytes by what attempts that were "
                     "cut short left in it; the next attempt begins anew",
                     stream->spec->name, stream->spec->size_max);
}

int upload_stream_has_room(struct upload_stream *stream, uint64_t end, bool *out, struct error *err)
{
    uint64_t window = UPLOAD_STREAM_WINDOW_BYTES + 2 * stream->part_size;
    uint64_t released;

    LOCK_SCOPE(&stream->sender.mutex);
    if (stream->sender.failed)
        return take_error(stream, err);
    if (stream->spec->head_last && end > stream->spec->size_max)
        return give_up_size(stream, err);
    released = stream->first_missing * stream->part_size;
    *out = stream->done || end <= released || end - released <= window;
    return 0;
}

/* ---- the end ---- */

static int send_rest(struct upload_stream *stream, uint64_t size,
                     void (*progress)(void *arg, uint64_t bytes_stored), struct error *err)
{
    uint64_t stored = 0;
    bool fed = false;

    {
        LOCK_SCOPE(&stream->sender.mutex);
        stream->object.size = size;
        stream->ended = true;
        (void)pthread_cond_broadcast(&stream->sender.changed);
    }
    for (;;) {
        bool idle = sender_try_idle(&stream->sender, &stored);
        progress(stream->spec->arg, stored);
        if (idle && fed)
            break;
        LOCK_SCOPE(&stream->sender.mutex);
        fed = stream->fed || stream->sender.failed;
        if (idle && !fed)
            (void)pthread_cond_wait(&stream->sender.changed, &stream->sender.mutex);
    }
    join(stream);
    return stream->sender.failed ? take_error(stream, err) : 0;
}

static int publish(struct upload_stream *stream, struct error *err)
{
    size_t count = (size_t)((stream->object.size + stream->part_size - 1) / stream->part_size);
    const struct object_check check = {.object = &stream->object,
                                       .sha256 = stream->whole == NULL ? NULL : stream->sha256,
                                       .out_sha256 = stream->sha256,
                                       .parts = stream->sender.parts,
                                       .count = count,
                                       .may_write = stream->spec->may_write,
                                       .take = stream->spec->take,
                                       .arg = stream->spec->arg};

    if (stream->spec->may_write(stream->spec->arg, err) < 0 ||
        (!stream->published &&
         class_of(stream)->complete(stream->target, &stream->object, stream->id,
                                    stream->sender.parts, count, err) < 0) ||
        object_check(stream->target, &check, err) < 0) {
        if (err->code == ERR_CORRUPT) { /* nothing there is worth keeping: once more, from 0 on */
            err->code = ERR_UNAVAILABLE;
            forget(stream);
        }
        return error_wrap(err, "upload");
    }
    return state_line_append(stream->state_fd, done_line(stream), err);
}

int upload_stream_finish(struct upload_stream *stream, uint64_t size,
                         void (*progress)(void *arg, uint64_t bytes_stored),
                         char out_sha256[DIGEST_HEX_SIZE], struct error *err)
{
    if (stream->spec->head_last && size > stream->spec->size_max) {
        LOCK_SCOPE(&stream->sender.mutex);
        return give_up_size(stream, err);
    }
    if (size == 0 || size > stream->spec->size_max) {
        return error_set(err, ERR_INTERNAL,
                         "'%.200s' has %" PRIu64 " bytes, it was cut for at most %" PRIu64,
                         stream->spec->name, size, stream->spec->size_max);
    }
    if (stream->done && stream->done_size != size) {
        forget(stream);
        return error_set(err, ERR_UNAVAILABLE,
                         "upload: '%.200s' has %" PRIu64 " bytes now, it was uploaded with "
                         "%" PRIu64 "; the next attempt begins anew",
                         stream->spec->name, size, stream->done_size);
    }
    if (!stream->done) {
        if (send_rest(stream, size, progress, err) < 0)
            return -1;
        if (stream->whole != NULL)
            running_sha256_end(stream->whole, stream->sha256);
        if (publish(stream, err) < 0)
            return -1;
        stream->done = true;
    }
    memcpy(out_sha256, stream->sha256, DIGEST_HEX_SIZE);
    progress(stream->spec->arg, size);
    return 0;
}
