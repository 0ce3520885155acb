#include "services/exporter/providers/vsphere/nfc_lease.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/log.h"
#include "services/exporter/providers/vsphere/property.h"

#define POLL_MS_MIN        INT64_C(100)
#define POLL_MS_MAX        INT64_C(2000)
#define TIMEOUT_S_MAX      86400
#define URL_BYTES_MAX      2048
#define COMPARE_TRIES      3
#define COMPARE_BACKOFF_MS 500
#define ANY_HOST           "https://*" /* the host that /sdk was asked at */

void nfc_lease_release(struct nfc_lease *lease)
{
    free(lease->id);
    free(lease->key);
    free(lease->url);
    free(lease->thumbprint);
    *lease = (struct nfc_lease){0};
}

/* ---- calls ---- */

/* A method of the lease without parameters, or with `percent`. */
static int lease_call(struct provider_session *session, const char *method, const char *id,
                      const char *percent, struct soap_reply *out, struct error *err)
{
    auto_strbuf request;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, method, "HttpNfcLease", id);
    if (percent != NULL)
        soap_add(&request, "percent", percent);
    soap_end(&request, method);
    return session_call(session, method, &request, 0, out, err);
}

int nfc_lease_start(struct provider_session *session, const char *snapshot, char **out_id,
                    struct error *err)
{
    auto_soap_reply reply = {0};
    auto_strbuf request;
    const char *id;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "ExportSnapshot", "VirtualMachineSnapshot", snapshot);
    soap_end(&request, "ExportSnapshot");
    if (session_call(session, "ExportSnapshot", &request, 0, &reply, err) < 0) {
        /* InvalidState: another export of the VM holds it, ours of a moment ago maybe. */
        if (err->code == ERR_CONFLICT)
            err->code = ERR_UNAVAILABLE;
        return -1;
    }
    id = soap_text(reply.response, "returnval");
    if (!soap_id_is_sane(id))
        return error_set(err, ERR_PROTOCOL, "ExportSnapshot: the answer names no lease");
    *out_id = xstrdup(id);
    return 0;
}

int nfc_lease_renew(struct provider_session *session, const char *id, unsigned int percent,
                    struct error *err)
{
    auto_soap_reply reply = {0};
    char text[16];

    (void)snprintf(text, sizeof text, "%u", percent);
    return lease_call(session, "HttpNfcLeaseProgress", id, text, &reply, err);
}

static const char *const state_paths[] = {"state", NULL};
static const struct property_set state_set = {"HttpNfcLease", state_paths};

/* Is there nothing left to end? */
static bool is_over(struct provider_session *session, const char *id)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;
    struct error ignored = ERROR_NONE;
    const char *state;

    if (property_get(session, &state_set, id, &reply, &object, &ignored) < 0)
        return ignored.code == ERR_NOT_FOUND;
    state = property_text(object, "state");
    return strcmp(state, "done") == 0 || strcmp(state, "error") == 0;
}

int nfc_lease_end(struct provider_session *session, const char *id, bool complete,
                  struct error *err)
{
    auto_soap_reply reply = {0};
    const char *method = complete ? "HttpNfcLeaseComplete" : "HttpNfcLeaseAbort";

    if (lease_call(session, method, id, NULL, &reply, err) == 0)
        return 0;
    /* A lease that timed out or was ended by somebody else refuses with InvalidState or Timedout.
     */
    if (err->code != ERR_NOT_FOUND && !is_over(session, id))
        return -1;
    error_clear(err);
    return 0;
}

/* ---- what a lease says ---- */

/* Does the text end in "/VirtualLsiLogicController0:1"? */
static bool ends_in(const char *text, const char *end)
{
    size_t length = strlen(text);
    size_t wanted = strlen(end);

    return length >= wanted && strcmp(text + length - wanted, end) == 0;
}

static bool is_disk(const xmlNode *device)
{
    return soap_child(device, "disk") == NULL || soap_bool(device, "disk");
}

/* The only disk of the lease whose member `name` ends so. NULL: none or several. */
static const xmlNode *device_find(const xmlNode *info, const char *name, const char *end)
{
    const xmlNode *found = NULL;
    size_t count = 0;

    for (const xmlNode *device = soap_child(info, "deviceUrl");
         device != NULL && count < NFC_DEVICES_MAX; device = soap_next(device), count++) {
        if (!is_disk(device) || !ends_in(soap_text(device, name), end))
            continue;
        if (found != NULL)
            return NULL;
        found = device;
    }
    return found;
}

/* Taking another disk's address would be a wrong disk that looks right: no guesses here. */
static int device_of(const xmlNode *info, const struct vm_disk *disk, const xmlNode **out,
                     struct error *err)
{
    autofree char *end = xasprintf("/%s%" PRIu32 ":%" PRIu32, devices_controller_type(disk),
                                   disk->controller_bus, disk->unit);
    const xmlNode *device = device_find(info, "key", end);

    if (device == NULL)
        device = device_find(info, "targetId", end);
    if (device == NULL) {
        return error_set(err, ERR_PROTOCOL,
                         "the export lease has no address for '%.64s' (it should end in '%.80s')",
                         disk->label, end);
    }
    *out = device;
    return 0;
}

/* Same host and port as origin? */
static int is_origin(const char *url, const char *origin, bool *out, struct error *err)
{
    CURLU *parts[2] = {curl_url(), curl_url()};
    char *host[2] = {NULL, NULL};
    char *port[2] = {NULL, NULL};
    bool ok = parts[0] != NULL && parts[1] != NULL;

    for (int i = 0; i < 2 && ok; i++) {
        ok = curl_url_set(parts[i], CURLUPART_URL, i == 0 ? url : origin, 0) == CURLUE_OK &&
             curl_url_get(parts[i], CURLUPART_HOST, &host[i], 0) == CURLUE_OK &&
             curl_url_get(parts[i], CURLUPART_PORT, &port[i], CURLU_DEFAULT_PORT) == CURLUE_OK;
    }
    if (ok)
        *out = strcasecmp(host[0], host[1]) == 0 && strcmp(port[0], port[1]) == 0;
    for (int i = 0; i < 2; i++) {
        curl_free(host[i]);
        curl_free(port[i]);
        curl_url_cleanup(parts[i]);
    }
    return ok ? 0 : error_set(err, ERR_PROTOCOL, "the export lease has a broken address");
}

static int url_read(const char *url, const char *origin, struct nfc_lease *out, struct error *err)
{
    size_t any = strlen(ANY_HOST);

    if (strncmp(url, "https://", 8) != 0 || strlen(url) > URL_BYTES_MAX) {
        return error_set(err, ERR_PROTOCOL,
                         "the export lease's address of the disk is no https address");
    }
    if (strncmp(url, ANY_HOST, any) == 0) {
        const char *path = strchr(url + any, '/');
        out->own_host = true;
        out->url = xasprintf("%s%s", origin, path == NULL ? "/" : path);
        return 0;
    }
    out->url = xstrdup(url);
    return is_origin(url, origin, &out->own_host, err);
}

int nfc_lease_read(const xmlNode *info, const char *origin, const struct vm_disk *disk,
                   struct nfc_lease *out, struct error *err)
{
    uint64_t seconds = soap_u64(info, "leaseTimeout", 0);
    const xmlNode *device = NULL;

    if (device_of(info, disk, &device, err) < 0 ||
        url_read(soap_text(device, "url"), origin, out, err) < 0)
        return -1;
    if (seconds == 0 || seconds > TIMEOUT_S_MAX)
        seconds = NFC_TIMEOUT_S;
    out->timeout_ms = (int64_t)seconds * 1000;
    out->key = xstrdup(soap_text(device, "key"));
    out->thumbprint = xstrdup(soap_text(device, "sslThumbprint"));
    if (!checked_mul_u64(soap_u64(info, "totalDiskCapacityInKB", 0), KIB, &out->capacity_bytes))
        out->capacity_bytes = 0;
    return 0;
}

static const char *const lease_paths[] = {"state", "info", "error", NULL};
static const struct property_set lease_set = {"HttpNfcLease", lease_paths};

/* 1: ready, *out is filled; 0: not yet. */
static int lease_look(struct provider_session *session, const char *id, const struct vm_disk *disk,
                      struct nfc_lease *out, struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;
    const char *state;

    if (property_get(session, &lease_set, id, &reply, &object, err) < 0)
        return -1;
    state = property_text(object, "state");
    if (strcmp(state, "ready") == 0) {
        return nfc_lease_read(property_value(object, "info"), session->origin, disk, out, err) < 0
                   ? -1
                   : 1;
    }
    if (strcmp(state, "error") == 0) {
        const xmlNode *error = property_value(object, "error");
        struct soap_fault fault;
        soap_fault_read(soap_child(error, "fault"), soap_text(error, "localizedMessage"), &fault);
        return soap_fault_error(&fault, "ExportSnapshot", err);
    }
    if (strcmp(state, "initializing") == 0)
        return 0;
    return error_set(err, ERR_UNAVAILABLE, "the export lease is '%.32s' before it was used", state);
}

int nfc_lease_wait(struct provider_session *session, const char *id, const struct vm_disk *disk,
                   struct nfc_lease *out, struct error *err)
{
    int64_t deadline = clock_mono_ms() + NFC_READY_MS_MAX;
    int64_t pause = POLL_MS_MIN;

    *out = (struct nfc_lease){.id = xstrdup(id)};
    for (;;) {
        int rc = lease_look(session, id, disk, out, err);
        if (rc != 0)
            return rc < 0 ? -1 : 0;
        if (clock_mono_ms() >= deadline) {
            return error_set(err, ERR_TIMEOUT, "the export lease is not ready after %" PRId64 " s",
                             NFC_READY_MS_MAX / 1000);
        }
        if (session_nap(session, pause, err) < 0)
            return -1;
        pause = pause * 2 > POLL_MS_MAX ? POLL_MS_MAX : pause * 2;
    }
}

/* ---- what the host says it sent ---- */

static int entry_compare(const xmlNode *entry, const struct nfc_sent *sent, struct error *err)
{
    const char *sha1 = soap_text(entry, "sha1");
    uint64_t size = soap_u64(entry, "size", sent->size_bytes);
    uint64_t capacity = soap_u64(entry, "capacity", sent->capacity_bytes);

    if (sha1[0] == '\0' && strcasecmp(soap_text(entry, "checksumType"), "sha1") == 0)
        sha1 = soap_text(entry, "checksum");
    if (sha1[0] != '\0' && strcasecmp(sha1, sent->sha1) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "the host sent a file with SHA-1 %.40s, what arrived has %s", sha1,
                         sent->sha1);
    }
    if (size != 0 && size != sent->size_bytes) {
        return error_set(err, ERR_CORRUPT, "the host sent %" PRIu64 " bytes, %" PRIu64 " arrived",
                         size, sent->size_bytes);
    }
    if (capacity != 0 && capacity != sent->capacity_bytes) {
        return error_set(err, ERR_CORRUPT,
                         "the host sent a disk of %" PRIu64 " bytes, one of %" PRIu64 " arrived",
                         capacity, sent->capacity_bytes);
    }
    return 0;
}

int nfc_manifest_compare(const xmlNode *response, const char *key, const struct nfc_sent *sent,
                         struct error *err)
{
    for (const xmlNode *entry = soap_child(response, "returnval"); entry != NULL;
         entry = soap_next(entry)) {
        if (strcmp(soap_text(entry, "key"), key) == 0 && entry_compare(entry, sent, err) < 0)
            return -1;
    }
    return 0;
}

int nfc_lease_compare(struct provider_session *session, const struct nfc_lease *lease,
                      const struct nfc_sent *sent, struct error *err)
{
    for (uint32_t attempt = 0;; attempt++) {
        auto_soap_reply reply = {0};
        if (lease_call(session, "HttpNfcLeaseGetManifest", lease->id, NULL, &reply, err) == 0)
            return nfc_manifest_compare(reply.response, lease->key, sent, err);
        if (err->code == ERR_NOT_AVAILABLE) { /* older servers, and some in front of ESXi */
            LOG(INFO, "vsphere_nfc_manifest_unavailable", F_ERR(err));
            error_clear(err);
            return 0;
        }
        if (!error_is_retryable(err) || attempt + 1 >= COMPARE_TRIES)
            return error_wrap(err, "comparing with what the host says it sent");
        error_clear(err);
        if (session_nap(session, COMPARE_BACKOFF_MS << attempt, err) < 0)
            return -1;
    }
}
