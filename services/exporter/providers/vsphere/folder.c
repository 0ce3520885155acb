#include "services/exporter/providers/vsphere/folder.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/autos.h"
#include "common/parse.h"

#define READ_BUFFER_BYTES    ((long)(512 * KIB)) /* below 256 KiB the callbacks cost more than TLS */
#define ERROR_BODY_BYTES_MAX ((size_t)(64 * KIB)) /* of an answer that is an error page */

void folder_file_release(struct folder_file *file)
{
    free(file->url);
    free(file->path);
    *file = (struct folder_file){0};
}

/* ---- one connection ---- */

/* What the headers of the last answer said. */
struct answer {
    long status;
    bool has_length, has_range, encoded;
    uint64_t length;
    struct folder_range range;
    char etag[FOLDER_VALIDATOR_BYTES_MAX];
    char last_modified[FOLDER_VALIDATOR_BYTES_MAX];
};

struct folder_reader {
    struct provider_session *session;
    const struct folder_file *file; /* NULL while locating */
    struct http_options http;
    CURL *curl;
    uint64_t generation; /* of the cookie in use */

    /* The request under way. */
    unsigned char *buffer; /* or, when NULL, take gets the bytes */
    int (*take)(void *arg, const void *data, size_t length, struct error *err);
    void *take_arg;
    size_t size; /* wanted, or room when not ranged */
    size_t got;
    uint64_t offset;
    bool ranged; /* the answer must be exactly that range; else any 200 up to size bytes */
    size_t discarded;
    struct answer answer;
    struct error error; /* what the callbacks found wrong */
};

static void header_copy(char *out, const char *value)
{
    (void)snprintf(out, FOLDER_VALIDATOR_BYTES_MAX, "%s", value);
}

static void header_take(struct answer *answer, const char *name, const char *value)
{
    struct error ignored = ERROR_NONE;

    if (strcasecmp(name, "content-length") == 0) {
        answer->has_length = parse_u64(name, value, 0, UINT64_MAX, &answer->length, &ignored) == 0;
    } else if (strcasecmp(name, "content-range") == 0) {
        answer->has_range = folder_range_parse(value, &answer->range);
    } else if (strcasecmp(name, "content-encoding") == 0) {
        answer->encoded = strcasecmp(value, "identity") != 0;
    } else if (strcasecmp(name, "etag") == 0) {
        header_copy(answer->etag, value);
    } else if (strcasecmp(name, "last-modified") == 0) {
        header_copy(answer->last_modified, value);
    }
}

static size_t on_header(char *data, size_t unit, size_t count, void *arg)
{
    struct folder_reader *reader = arg;
    struct http_header header;

    if (!http_header_read(data, unit * count, &header))
        return unit * count;
    if (header.name == NULL) { /* a new answer: forget an interim one */
        reader->answer = (struct answer){.status = header.status};
    } else {
        header_take(&reader->answer, header.name, header.value);
    }
    return unit * count;
}

/* Is this the same file as before? Validators that one side does not have say nothing. */
static int validators_compare(const struct folder_file *file, const struct answer *answer,
                              struct error *err)
{
    if (file->etag[0] != '\0' && answer->etag[0] != '\0' && strcmp(file->etag, answer->etag) != 0) {
        return error_set(err, ERR_SOURCE_CHANGED, "'%s' changed: its ETag was %s and is %s now",
                         file->path, file->etag, answer->etag);
    }
    if (file->last_modified[0] != '\0' && answer->last_modified[0] != '\0' &&
        strcmp(file->last_modified, answer->last_modified) != 0) {
        return error_set(err, ERR_SOURCE_CHANGED, "'%s' changed: modified '%s', was '%s'",
                         file->path, answer->last_modified, file->last_modified);
    }
    return 0;
}

/* Before the first byte of a range is believed. */
static int range_answer_check(const struct folder_reader *reader, struct error *err)
{
    const struct answer *answer = &reader->answer;
    const struct folder_range *range = &answer->range;
    const struct folder_file *file = reader->file;

    if (answer->encoded) {
        return error_set(err, ERR_PROTOCOL, "'%s': the server compresses the bytes unasked",
                         file->path);
    }
    if (!answer->has_range) {
        return error_set(err, ERR_PROTOCOL, "'%s': the server sends a part but does not say which",
                         file->path);
    }
    if (range->total != 0 && range->total != file->size_bytes) {
        return error_set(err, ERR_SOURCE_CHANGED,
                         "'%s' changed: it has %" PRIu64 " bytes, had %" PRIu64, file->path,
                         range->total, file->size_bytes);
    }
    if (range->first != reader->offset || range->last - range->first != reader->size - 1) {
        return error_set(err, ERR_PROTOCOL,
                         "'%s': asked for %zu bytes at %" PRIu64 ", the server sends %" PRIu64
                         " to %" PRIu64,
                         file->path, reader->size, reader->offset, range->first, range->last);
    }
    return validators_compare(file, answer, err);
}

/* false: stop the transfer; reader->error may say why. */
static bool body_accept(struct folder_reader *reader)
{
    if (reader->error.code != ERR_NONE)
        return false;
    if (!reader->ranged)
        return true;
    if (reader->answer.status == 200) {
        (void)error_set(&reader->error, ERR_PROTOCOL,
                        "'%s': the server ignores range requests and sends the whole file; a proxy "
                        "in between may be the cause",
                        reader->file->path);
        return false;
    }
    return reader->got > 0 || range_answer_check(reader, &reader->error) == 0;
}

static size_t on_body(char *data, size_t unit, size_t count, void *arg)
{
    struct folder_reader *reader = arg;
    size_t size = unit * count;

    if (reader->answer.status != 200 && reader->answer.status != 206) {
        reader->discarded += size;
        return reader->discarded > ERROR_BODY_BYTES_MAX ? 0 : size;
    }
    if (!body_accept(reader))
        return 0;
    if (size > reader->size - reader->got) {
        (void)error_set(&reader->error, ERR_PROTOCOL,
                        "the server sends more than the %zu bytes that it announced", reader->size);
        return 0;
    }
    if (reader->buffer != NULL) {
        memcpy(reader->buffer + reader->got, data, size);
    } else if (reader->take(reader->take_arg, data, size, &reader->error) < 0) {
        return 0;
    }
    reader->got += size;
    return size;
}

static int reader_options(struct folder_reader *reader, struct error *err)
{
    CURL *curl = reader->curl;

    if (curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_HEADERDATA, reader) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, reader) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, READ_BUFFER_BYTES) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl lacks an option for range reads");
    return 0;
}

int folder_reader_new(struct provider_session *session, const struct folder_file *file,
                      struct folder_reader **out, struct error *err)
{
    struct folder_reader *reader = xcalloc(1, sizeof *reader);

    reader->session = session;
    reader->file = file;
    reader->generation = UINT64_MAX; /* none yet */
    reader->http = session->http;    /* certificates; immutable since session_new */
    reader->http.timeout_ms = 0;     /* a range takes as long as it moves: stalls are detected */
    reader->http.cancelled = session->cancelled;
    if (http_handle_new(&reader->http, &reader->curl, err) < 0 || reader_options(reader, err) < 0) {
        folder_reader_free(reader);
        return -1;
    }
    *out = reader;
    return 0;
}

void folder_reader_free(struct folder_reader *reader)
{
    if (reader == NULL)
        return;
    if (reader->curl != NULL)
        curl_easy_cleanup(reader->curl);
    free(reader);
}

static int use_cookie(struct folder_reader *reader, struct error *err)
{
    uint64_t generation = 0;
    autofree char *cookie = session_cookie(reader->session, &generation);

    if (generation == reader->generation)
        return 0;
    if (curl_easy_setopt(reader->curl, CURLOPT_COOKIE, cookie) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl refuses the session cookie");
    reader->generation = generation;
    return 0;
}

static int perform_once(struct folder_reader *reader, const char *url, struct error *err)
{
    CURLcode code;

    if (use_cookie(reader, err) < 0)
        return -1;
    reader->got = 0;
    reader->discarded = 0;
    reader->answer = (struct answer){0};
    reader->error = (struct error)ERROR_NONE;
    if (curl_easy_setopt(reader->curl, CURLOPT_URL, url) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl refuses the address of a datastore file");
    code = curl_easy_perform(reader->curl);
    if (reader->error.code != ERR_NONE) {
        *err = reader->error;
        return -1;
    }
    if (code == CURLE_PARTIAL_FILE || code == CURLE_GOT_NOTHING) {
        return error_set(err, ERR_UNAVAILABLE, "the connection ended after %zu of %zu bytes",
                         reader->got, reader->size);
    }
    if (code == CURLE_WRITE_ERROR && reader->discarded > 0)
        return 0; /* an error page that was long enough; its status says it all */
    return code == CURLE_OK ? 0 : http_error_set(err, reader->curl, code, "reading from /folder");
}

static bool is_refused(long status)
{
    return status == 401 || status == 403;
}

/* With a second try under a new login when the server does not take the cookie. */
static int perform(struct folder_reader *reader, const char *url, struct error *err)
{
    session_keep_alive(reader->session);
    if (perform_once(reader, url, err) < 0)
        return -1;
    if (!is_refused(reader->answer.status))
        return 0;
    if (session_relogin(reader->session, reader->generation, err) < 0)
        return error_wrap(err, "the session expired");
    return perform_once(reader, url, err);
}

/* The kind of failure that a status is; `path` for the message. */
static int status_error(const struct answer *answer, const char *path, struct error *err)
{
    long status = answer->status;

    if (is_refused(status)) {
        return error_set(err, ERR_DENIED,
                         "'%s': HTTP %ld; the account needs the privileges Datastore.Browse and "
                         "Datastore.FileManagement",
                         path, status);
    }
    if (status == 404)
        return error_set(err, ERR_NOT_FOUND, "'%s': there is no such file (HTTP 404)", path);
    if (status == 408 || status == 429 || status >= 500)
        return error_set(err, ERR_UNAVAILABLE, "'%s': HTTP %ld", path, status);
    return error_set(err, ERR_PROTOCOL, "'%s': HTTP %ld is no answer that /folder gives", path,
                     status);
}

/* ---- reading ranges ---- */

/* Into reader->buffer, or to reader->take. */
static int read_range(struct folder_reader *reader, size_t length, uint64_t offset,
                      struct error *err)
{
    const struct folder_file *file = reader->file;
    char range[64];

    assert(range_is_inside(offset, length, file->size_bytes));
    (void)snprintf(range, sizeof range, "%" PRIu64 "-%" PRIu64, offset, offset + length - 1);
    reader->size = length;
    reader->offset = offset;
    reader->ranged = true;
    if (curl_easy_setopt(reader->curl, CURLOPT_RANGE, range) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl refuses the range %s", range);
    if (perform(reader, file->url, err) < 0)
        return -1;
    if (reader->answer.status == 416) {
        return error_set(err, ERR_SOURCE_CHANGED, "'%s' changed: it ends before %" PRIu64,
                         file->path, offset + length);
    }
    if (reader->answer.status == 404 || reader->answer.status == 410) {
        return error_set(err, ERR_SOURCE_CHANGED,
                         "'%s' is gone: moved or deleted during the export", file->path);
    }
    if (reader->answer.status != 206) {
        return reader->answer.status == 200
                   ? error_set(err, ERR_PROTOCOL, "'%s': the server ignores range requests",
                               file->path)
                   : status_error(&reader->answer, file->path, err);
    }
    if (reader->got == 0 && range_answer_check(reader, err) < 0)
        return -1;
    if (reader->got != length) {
        return error_set(err, ERR_UNAVAILABLE, "'%s': got %zu of %zu bytes at %" PRIu64, file->path,
                         reader->got, length, offset);
    }
    return 0;
}

int folder_reader_read(struct folder_reader *reader, void *buffer, size_t length, uint64_t offset,
                       struct error *err)
{
    if (length == 0)
        return 0;
    reader->buffer = buffer;
    return read_range(reader, length, offset, err);
}

int folder_reader_stream(struct folder_reader *reader, uint64_t length, uint64_t offset,
                         int (*take)(void *arg, const void *data, size_t length, struct error *err),
                         void *arg, struct error *err)
{
    if (length == 0)
        return 0;
    reader->buffer = NULL;
    reader->take = take;
    reader->take_arg = arg;
    return read_range(reader, (size_t)length, offset, err);
}

/* ---- finding ---- */

/* A whole small file into buffer; *out_size bytes. Any status is success. */
static int fetch(struct folder_reader *reader, const char *url, void *buffer, size_t room,
                 struct error *err)
{
    reader->buffer = buffer;
    reader->size = room;
    reader->offset = 0;
    reader->ranged = false;
    if (curl_easy_setopt(reader->curl, CURLOPT_NOBODY, 0L) != CURLE_OK ||
        curl_easy_setopt(reader->curl, CURLOPT_HTTPGET, 1L) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl cannot GET");
    return perform(reader, url, err);
}

static int head(struct folder_reader *reader, const char *url, struct error *err)
{
    reader->size = 0;
    reader->ranged = false;
    if (curl_easy_setopt(reader->curl, CURLOPT_NOBODY, 1L) != CURLE_OK)
        return error_set(err, ERR_INTERNAL, "libcurl cannot HEAD");
    return perform(reader, url, err);
}

/* What is being located, and how /folder of this server wants its names. */
struct search {
    struct folder_reader *reader;
    const char *datacenter_path;
    char *datastore;
    char *path; /* of the descriptor */
    int encodings;
};

static void search_release(struct search *search)
{
    folder_reader_free(search->reader);
    free(search->datastore);
    free(search->path);
}

static int search_url(const struct search *search, const char *path, int encodings, char **out,
                      struct error *err)
{
    const struct folder_place place = {search->reader->session->origin, search->datacenter_path,
                                       search->datastore};

    return folder_url(&place, path, encodings, out, err);
}

/* HEAD of a path in the encoding that this server understands: vCenter documents two, ESXi and
 * some front ends take one. Names without special characters are the same in both. */
static int search_head(struct search *search, const char *path, char **out_url, struct error *err)
{
    int first = search->encodings;
    autofree char *url = NULL, *other = NULL;

    if (search_url(search, path, first, &url, err) < 0 ||
        search_url(search, path, 3 - first, &other, err) < 0 || head(search->reader, url, err) < 0)
        return -1;
    if (search->reader->answer.status == 404 && strcmp(url, other) != 0) {
        if (head(search->reader, other, err) < 0)
            return -1;
        if (search->reader->answer.status == 200) {
            search->encodings = 3 - first;
            *out_url = STEAL(other);
            return 0;
        }
    }
    *out_url = STEAL(url);
    return 0;
}

/* Path of the flat file by the descriptor, or by the naming convention when there is no text to
 * read (some servers keep the descriptor to themselves). */
static int search_flat_path(struct search *search, uint64_t capacity, char **out, struct error *err)
{
    autofree char *url = NULL, *text = xmalloc(FOLDER_DESCRIPTOR_BYTES_MAX);
    struct folder_reader *reader = search->reader;
    struct folder_descriptor descriptor = {0};
    const char *slash = strrchr(search->path, '/');
    int found = 0;

    if (search_head(search, search->path, &url, err) < 0)
        return -1;
    if (reader->answer.status == 200 && reader->answer.has_length && reader->answer.length > 0 &&
        reader->answer.length <= FOLDER_DESCRIPTOR_BYTES_MAX) {
        if (fetch(reader, url, text, FOLDER_DESCRIPTOR_BYTES_MAX, err) < 0)
            return -1;
        if (reader->answer.status != 200)
            return status_error(&reader->answer, search->path, err);
        found = folder_descriptor_parse(text, reader->got, &descriptor, err);
    } else if (reader->answer.status != 200 && reader->answer.status != 404) {
        return status_error(&reader->answer, search->path, err);
    }
    if (found < 0)
        return -1;
    if (found == 1 && descriptor.size_bytes != capacity) {
        return error_set(err, ERR_CORRUPT,
                         "its descriptor says %" PRIu64 " bytes, the VM's hardware %" PRIu64,
                         descriptor.size_bytes, capacity);
    }
    if (found == 1) {
        *out = xasprintf("%.*s%s", slash == NULL ? 0 : (int)(slash + 1 - search->path),
                         search->path, descriptor.flat_name);
    } else {
        *out = folder_flat_path(search->path);
    }
    if (*out == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "it is a snapshot's delta, or has no flat file by its name");
    }
    return 0;
}

static int search_file(struct search *search, uint64_t capacity, struct folder_file *out,
                       struct error *err)
{
    autofree char *path = NULL;
    const struct answer *answer = &search->reader->answer;

    if (search_flat_path(search, capacity, &path, err) < 0 ||
        search_head(search, path, &out->url, err) < 0)
        return -1;
    out->path = xasprintf("[%s] %s", search->datastore, path);
    if (answer->status == 404) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "there is no file '%s': datastores of vSAN and vVol keep none; move the "
                         "disk to a VMFS or NFS datastore",
                         out->path);
    }
    if (answer->status != 200)
        return status_error(answer, out->path, err);
    if (!answer->has_length)
        return error_set(err, ERR_PROTOCOL, "'%s': the server does not tell its size", out->path);
    if (answer->length != capacity) {
        return error_set(err, ERR_CORRUPT,
                         "'%s' has %" PRIu64 " bytes, the VM's hardware says %" PRIu64, out->path,
                         answer->length, capacity);
    }
    out->size_bytes = capacity;
    header_copy(out->etag, answer->etag);
    header_copy(out->last_modified, answer->last_modified);
    return 0;
}

int folder_locate(struct provider_session *session, const char *datacenter_path,
                  const char *source_path, uint64_t capacity, struct folder_file *out,
                  struct error *err)
{
    CLEANUP(search_release) struct search search = {.datacenter_path = datacenter_path};

    *out = (struct folder_file){0};
    if (session_login(session, err) < 0 ||
        folder_path_split(source_path, &search.datastore, &search.path, err) < 0 ||
        folder_reader_new(session, NULL, &search.reader, err) < 0)
        return -1;
    search.encodings = session->content.is_vcenter ? 2 : 1;
    if (search_file(&search, capacity, out, err) < 0) {
        folder_file_release(out);
        return -1;
    }
    return 0;
}

int folder_compare(struct provider_session *session, const struct folder_file *file,
                   struct error *err)
{
    struct folder_reader *reader = NULL;
    int rc;

    if (session_login(session, err) < 0 || folder_reader_new(session, file, &reader, err) < 0)
        return -1;
    rc = head(reader, file->url, err);
    if (rc == 0) {
        const struct answer *answer = &reader->answer;
        if (answer->status == 404 || answer->status == 410) {
            rc = error_set(err, ERR_SOURCE_CHANGED, "'%s' is gone", file->path);
        } else if (answer->status != 200) {
            rc = status_error(answer, file->path, err);
        } else if (answer->has_length && answer->length != file->size_bytes) {
            rc = error_set(err, ERR_SOURCE_CHANGED,
                           "'%s' changed: it has %" PRIu64 " bytes, had %" PRIu64, file->path,
                           answer->length, file->size_bytes);
        } else {
            rc = validators_compare(file, answer, err);
        }
    }
    folder_reader_free(reader);
    return rc;
}
