/* See answer.h. */
#include "services/exporter/targets/s3/answer.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "common/parse.h"
#include "common/xml.h"

/* NULL: not acceptable. Caller frees. */
static xmlDoc *document_read(const char *data, size_t size)
{
    struct error ignored = ERROR_NONE;
    xmlDoc *doc = NULL;

    /* White space before the XML declaration keeps a slow Complete's connection alive. */
    while (size > 0 && strchr(" \t\r\n", *data) != NULL && *data != '\0') {
        data++;
        size--;
    }
    if (size == 0 || size > S3_ANSWER_BYTES_MAX ||
        xml_parse(data, size, S3_ANSWER_DEPTH_MAX, &doc, &ignored) < 0)
        return NULL;
    return doc;
}

static bool is_element(const xmlNode *node, const char *name)
{
    return node->type == XML_ELEMENT_NODE && strcmp((const char *)node->name, name) == 0;
}

static const char *text_of(const xmlNode *parent, const char *name)
{
    for (const xmlNode *node = parent->children; node != NULL; node = node->next) {
        if (!is_element(node, name))
            continue;
        for (const xmlNode *child = node->children; child != NULL; child = child->next) {
            if (child->type == XML_TEXT_NODE && child->content != NULL)
                return (const char *)child->content;
        }
        return "";
    }
    return "";
}

bool s3_error_read(const char *data, size_t size, struct s3_error *out)
{
    auto_xmldoc *doc = document_read(data, size);
    const xmlNode *root = doc == NULL ? NULL : xmlDocGetRootElement(doc);

    *out = (struct s3_error){0};
    if (root == NULL || !is_element(root, "Error"))
        return false;
    (void)snprintf(out->code, sizeof out->code, "%s", text_of(root, "Code"));
    (void)snprintf(out->message, sizeof out->message, "%s", text_of(root, "Message"));
    (void)snprintf(out->region, sizeof out->region, "%s", text_of(root, "Region"));
    return true;
}

/* ---- values ---- */

static int bounded_copy(const char *what, const char *text, char *out, size_t size,
                        struct error *err)
{
    size_t length = strlen(text);

    if (length >= size)
        return error_set(err, ERR_PROTOCOL, "the server's %s is over %zu bytes", what, size - 1);
    memcpy(out, text, length + 1);
    return 0;
}

static int number(const char *what, const char *text, uint64_t max, uint64_t *out,
                  struct error *err)
{
    struct error bad = ERROR_NONE;

    if (parse_u64(what, text, 0, max, out, &bad) < 0) {
        return error_set(err, ERR_PROTOCOL, "the server's %s is no number from 0 to %llu", what,
                         (unsigned long long)max);
    }
    return 0;
}

static int read_part(const xmlNode *node, struct s3_listed_part *out, struct error *err)
{
    uint64_t part = 0;

    if (number("PartNumber", text_of(node, "PartNumber"), 10000, &part, err) < 0 ||
        number("Size", text_of(node, "Size"), INT64_MAX, &out->size, err) < 0)
        return -1;
    out->number = (uint32_t)part;
    return bounded_copy("ETag", text_of(node, "ETag"), out->etag, sizeof out->etag, err);
}

/* "2026-03-01T02:03:04.000Z"; 0 when it is something else: such an upload is never stale. */
static int64_t time_of(const char *text)
{
    struct tm tm = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    time_t seconds;

    if (rest == NULL)
        return 0;
    seconds = timegm(&tm);
    return seconds <= 0 ? 0 : (int64_t)seconds * 1000;
}

static int read_upload(const xmlNode *node, struct s3_listed_upload *out, struct error *err)
{
    out->initiated_ms = time_of(text_of(node, "Initiated"));
    if (bounded_copy("Key", text_of(node, "Key"), out->key, sizeof out->key, err) < 0)
        return -1;
    return bounded_copy("UploadId", text_of(node, "UploadId"), out->id, sizeof out->id, err);
}

static size_t count_of(const xmlNode *root, const char *name)
{
    size_t count = 0;

    for (const xmlNode *node = root->children; node != NULL; node = node->next)
        count += is_element(node, name);
    return count;
}

static int read_lists(const xmlNode *root, struct s3_answer *out, struct error *err)
{
    size_t parts = count_of(root, "Part");
    size_t uploads = count_of(root, "Upload");

    if (parts > S3_PAGE_MAX || uploads > S3_PAGE_MAX) {
        return error_set(err, ERR_PROTOCOL, "the server lists more than %d items at once",
                         S3_PAGE_MAX);
    }
    out->parts = xcalloc(parts + 1, sizeof *out->parts);
    out->uploads = xcalloc(uploads + 1, sizeof *out->uploads);
    for (const xmlNode *node = root->children; node != NULL; node = node->next) {
        if (is_element(node, "Part") && read_part(node, &out->parts[out->part_count++], err) < 0)
            return -1;
        if (is_element(node, "Upload") &&
            read_upload(node, &out->uploads[out->upload_count++], err) < 0)
            return -1;
    }
    return 0;
}

static int read_root(const xmlNode *root, struct s3_answer *out, struct error *err)
{
    const char *next_part = text_of(root, "NextPartNumberMarker");
    uint64_t part = 0;

    if (bounded_copy("UploadId", text_of(root, "UploadId"), out->upload_id, sizeof out->upload_id,
                     err) < 0 ||
        bounded_copy("NextKeyMarker", text_of(root, "NextKeyMarker"), out->next_key,
                     sizeof out->next_key, err) < 0 ||
        bounded_copy("NextUploadIdMarker", text_of(root, "NextUploadIdMarker"), out->next_id,
                     sizeof out->next_id, err) < 0 ||
        (next_part[0] != '\0' && number("NextPartNumberMarker", next_part, 10000, &part, err) < 0))
        return -1;
    out->next_part = (uint32_t)part;
    out->truncated = strcmp(text_of(root, "IsTruncated"), "true") == 0;
    out->completed = is_element(root, "CompleteMultipartUploadResult");
    return read_lists(root, out, err);
}

int s3_answer_read(const char *data, size_t size, struct s3_answer *out, struct error *err)
{
    auto_xmldoc *doc = document_read(data, size);

    *out = (struct s3_answer){0};
    if (doc == NULL)
        return error_set(err, ERR_PROTOCOL, "the answer is not the XML of an S3 server");
    if (read_root(xmlDocGetRootElement(doc), out, err) == 0)
        return 0;
    s3_answer_release(out);
    return -1;
}

void s3_answer_release(struct s3_answer *answer)
{
    free(answer->parts);
    free(answer->uploads);
    *answer = (struct s3_answer){0};
}
