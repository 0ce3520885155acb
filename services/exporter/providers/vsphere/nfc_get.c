#include "services/exporter/providers/vsphere/nfc_get.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"

#define RECEIVE_BYTES        ((long)(256 * KIB))
#define BUFFER_BYTES         ((size_t)(2 * MIB)) /* what arrives between two reads */
#define ERROR_BODY_BYTES_MAX ((size_t)(64 * KIB))
#define POLL_MS              100

static_assert(BUFFER_BYTES > 4 * (size_t)RECEIVE_BYTES, "libcurl hands over less than that");

struct nfc_get {
    struct http_options http;
    const atomic_bool *over;
    CURLM *multi;
    CURL *curl;
    bool added;
    bool paused;
    bool done;
    CURLcode code; /* when done */
    long status;   /* of the answer whose body comes */
    uint8_t *data; /* BUFFER_BYTES; first to last are there to be read */
    size_t first;
    size_t last;
    size_t discarded;
    uint64_t received;
    EVP_MD_CTX *sha1;
};

static size_t on_body(char *data, size_t unit, size_t count, void *arg)
{
    struct nfc_get *get = arg;
    size_t size = unit * count;

    (void)curl_easy_getinfo(get->curl, CURLINFO_RESPONSE_CODE, &get->status);
    if (get->status != 200) {
        get->discarded += size;
        return get->discarded > ERROR_BODY_BYTES_MAX ? 0 : size;
    }
    if (size > BUFFER_BYTES - (get->last - get->first)) {
        get->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (size > BUFFER_BYTES - get->last) {
        memmove(get->data, get->data + get->first, get->last - get->first);
        get->last -= get->first;
        get->first = 0;
    }
    memcpy(get->data + get->last, data, size);
    get->last += size;
    get->received += size;
    return EVP_DigestUpdate(get->sha1, data, size) == 1 ? size : 0;
}

/* Certificate and cookie: the lease names the first for its host, the second is for ours alone. */
static int set_peer(struct nfc_get *get, struct provider_session *session,
                    const struct nfc_lease *lease, struct error *err)
{
    bool pinned = session->http.thumbprint != NULL; /* by the settings */
    uint64_t generation = 0;

    get->http = session->http;
    get->http.timeout_ms = 0;
    get->http.cancelled = session->cancelled;
    if (!lease->own_host)
        get->http.thumbprint = NULL;
    if (lease->thumbprint[0] != '\0' && !(pinned && lease->own_host)) {
        get->http.thumbprint = lease->thumbprint;
        get->http.insecure = false;
    }
    if (http_handle_new(&get->http, &get->curl, err) < 0)
        return -1;
    if (lease->own_host) {
        autofree char *cookie = session_cookie(session, &generation);
        if (curl_easy_setopt(get->curl, CURLOPT_COOKIE, cookie) != CURLE_OK)
            return error_set(err, ERR_INTERNAL, "libcurl refuses the session cookie");
    }
    return 0;
}

/* Waiting readers notice a stall themselves; a transfer that nobody drives is none. */
static int set_request(struct nfc_get *get, const char *url, struct error *err)
{
    CURL *curl = get->curl;

    if (curl_easy_setopt(curl, CURLOPT_URL, url) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, 0L) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, get) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, RECEIVE_BYTES) != CURLE_OK ||
        curl_multi_add_handle(get->multi, curl) != CURLM_OK)
        return error_set(err, ERR_INTERNAL, "libcurl lacks an option for the disk's stream");
    get->added = true;
    return 0;
}

int nfc_get_new(struct provider_session *session, const struct nfc_lease *lease,
                const atomic_bool *over, struct nfc_get **out, struct error *err)
{
    struct nfc_get *get = xcalloc(1, sizeof *get);

    get->over = over;
    get->data = xmalloc(BUFFER_BYTES);
    get->sha1 = EVP_MD_CTX_new();
    http_global_init();
    get->multi = curl_multi_init();
    if (get->sha1 == NULL || get->multi == NULL)
        abort(); /* out of memory, as in xmalloc */
    if (EVP_DigestInit_ex(get->sha1, EVP_sha1(), NULL) != 1) {
        nfc_get_free(get);
        return error_set(err, ERR_INTERNAL, "there is no SHA-1");
    }
    if (set_peer(get, session, lease, err) < 0 || set_request(get, lease->url, err) < 0) {
        nfc_get_free(get);
        return -1;
    }
    *out = get;
    return 0;
}

void nfc_get_free(struct nfc_get *get)
{
    if (get == NULL)
        return;
    if (get->added)
        (void)curl_multi_remove_handle(get->multi, get->curl);
    if (get->curl != NULL)
        curl_easy_cleanup(get->curl);
    if (get->multi != NULL)
        (void)curl_multi_cleanup(get->multi);
    EVP_MD_CTX_free(get->sha1);
    free(get->data);
    free(get);
}

static void note_end(struct nfc_get *get)
{
    int left = 0;

    for (const CURLMsg *msg = curl_multi_info_read(get->multi, &left); msg != NULL;
         msg = curl_multi_info_read(get->multi, &left)) {
        if (msg->msg == CURLMSG_DONE) {
            get->done = true;
            get->code = msg->data.result;
        }
    }
}

/* One step of the transfer: what can be done now, and a short wait when that is nothing. */
static int drive(struct nfc_get *get, struct error *err)
{
    int running = 0;

    if (get->paused) {
        get->paused = false;
        if (curl_easy_pause(get->curl, CURLPAUSE_CONT) != CURLE_OK)
            return error_set(err, ERR_UNAVAILABLE, "the disk's stream cannot go on");
    }
    if (curl_multi_perform(get->multi, &running) != CURLM_OK)
        return error_set(err, ERR_INTERNAL, "libcurl cannot drive the disk's stream");
    note_end(get);
    if (!get->done && get->first == get->last &&
        curl_multi_poll(get->multi, NULL, 0, POLL_MS, NULL) != CURLM_OK)
        return error_set(err, ERR_INTERNAL, "libcurl cannot wait for the disk's stream");
    return 0;
}

static int status_error(long status, struct error *err)
{
    if (status == 401 || status == 403) {
        return error_set(err, ERR_DENIED,
                         "the disk's stream: HTTP %ld; the account needs the privilege VApp.Export",
                         status);
    }
    /* 404: the lease is over */
    if (status == 404 || status == 408 || status == 429 || status >= 500)
        return error_set(err, ERR_UNAVAILABLE, "the disk's stream: HTTP %ld", status);
    return error_set(err, ERR_PROTOCOL,
                     "the disk's stream: HTTP %ld is no answer that a lease's address gives",
                     status);
}

/* The transfer is over: did it end as it should? */
static int end_check(struct nfc_get *get, struct error *err)
{
    (void)curl_easy_getinfo(get->curl, CURLINFO_RESPONSE_CODE, &get->status);
    if (get->code == CURLE_PARTIAL_FILE || get->code == CURLE_GOT_NOTHING) {
        return error_set(err, ERR_UNAVAILABLE, "the disk's stream broke off after %ju bytes",
                         (uintmax_t)get->received);
    }
    if (get->code != CURLE_OK && !(get->code == CURLE_WRITE_ERROR && get->discarded > 0))
        return http_error_set(err, get->curl, get->code, "the disk's stream");
    return get->status == 200 ? 0 : status_error(get->status, err);
}

/* Until there are bytes (0) or the end (0, get->done). */
static int fill(struct nfc_get *get, struct error *err)
{
    int64_t deadline = clock_mono_ms() + NFC_STALL_MS_MAX;

    while (get->first == get->last && !get->done) {
        if (drive(get, err) < 0)
            return -1;
        if (get->first < get->last || get->done)
            break;
        if (atomic_load(get->over))
            return error_set(err, ERR_UNAVAILABLE, "the disk's stream is over");
        if (clock_mono_ms() >= deadline) {
            return error_set(err, ERR_TIMEOUT, "the disk's stream stands still after %ju bytes",
                             (uintmax_t)get->received);
        }
    }
    return get->first < get->last ? 0 : end_check(get, err);
}

int nfc_get_read(void *arg, void *buffer, size_t length, size_t *out_got, struct error *err)
{
    struct nfc_get *get = arg;
    uint8_t *out = buffer;
    size_t got = 0;

    while (got < length) {
        size_t n;
        if (fill(get, err) < 0)
            return -1;
        n = (size_t)min_u64(length - got, get->last - get->first);
        if (n == 0)
            break;
        memcpy(out + got, get->data + get->first, n);
        get->first += n;
        got += n;
    }
    if (get->first == get->last)
        get->first = get->last = 0;
    *out_got = got;
    return 0;
}

int nfc_get_digest(struct nfc_get *get, struct nfc_sent *out, struct error *err)
{
    uint8_t raw[EVP_MAX_MD_SIZE];
    unsigned int size = 0;

    if (EVP_DigestFinal_ex(get->sha1, raw, &size) != 1 || 2 * (size_t)size + 1 != sizeof out->sha1)
        return error_set(err, ERR_INTERNAL, "SHA-1 of the disk's stream failed");
    hex_encode(raw, size, out->sha1);
    out->size_bytes = get->received;
    return 0;
}
