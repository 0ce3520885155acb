/* One logged-in session with a vCenter or ESXi host: discovery, login, keep-alive, re-login.
 *
 * The engine gives a session to one thread at a time, but readers (folder.h) come from other
 * threads when the server no longer takes their cookie. Therefore:
 *   call_mutex   guards everything but the next line; held during a call, because the handle and
 *                the login belong together and a reader that needs the login waits for it anyway;
 *   cookie_mutex guards cookie, generation; never held over I/O. Taken after call_mutex. */
#ifndef VSPHERE_SESSION_H
#define VSPHERE_SESSION_H

#include "common/http_client.h"
#include "services/exporter/engine/provider.h"
#include "services/exporter/providers/vsphere/soap.h"

#define SESSION_IDLE_MS_MAX                                              \
    INT64_C(300000) /* servers drop sessions after 30 min, some after 10 \
                     */

struct vsphere_config {
    char *host;
    char *username;
    char *password;
    char *thumbprint;
    char *ca_file;
    bool insecure;
    char *datacenter;
    int64_t timeout_ms;
};

/* What RetrieveServiceContent says: managed object ids differ between vCenter and ESXi. */
struct service_content {
    char *root_folder;
    char *property_collector;
    char *view_manager;
    char *session_manager;
    char *full_name;
    char *api_version;
    bool is_vcenter;
};

struct inventory_names;
struct vsphere_tags;

struct provider_session {
    const struct vsphere_config *config;
    const atomic_bool *cancelled;
    char *origin; /* "https://host:port" */

    pthread_mutex_t call_mutex;
    struct http_options http;
    CURL *curl;
    bool shielded; /* see session_shield */
    bool discovered;
    bool logged_in;
    char soap_action[48];
    struct service_content content;
    _Atomic int64_t last_call_ms;

    pthread_mutex_t cookie_mutex;
    char *cookie;        /* "vmware_soap_session=..." */
    uint64_t generation; /* rises with every login */

    struct inventory_names *names; /* folders, datacenters, networks; inventory.c */
    struct vsphere_tags *tags;     /* login and names of tags; tags.c */
};

/* Checks the settings and makes the handle; no traffic yet. */
MUST_CHECK int session_new(const struct vsphere_config *config, const atomic_bool *cancelled,
                           struct provider_session **out, struct error *err);
/* Logs out if logged in. NULL-safe. */
void session_free(struct provider_session *session);

/* First contact: service content, no login. */
MUST_CHECK int session_discover(struct provider_session *session, struct error *err);
/* Discovers and logs in when that is not done yet. */
MUST_CHECK int session_login(struct provider_session *session, struct error *err);

/* The object dies with the login (a view, a paging token): when the session expired, the call is
 * not repeated and fails with ERR_UNAVAILABLE. */
#define SESSION_CALL_BOUND 1U
/* One call; `request` is a finished envelope. When the session has expired, logs in and repeats
 * once (the server did nothing in that case). Faults come as errors; out->fault says which it was.
 */
MUST_CHECK int session_call(struct provider_session *session, const char *method,
                            const struct strbuf *request, unsigned int flags,
                            struct soap_reply *out, struct error *err);

/* While true, calls go on although `cancelled` is set: what was made must be taken away. */
MUST_CHECK int session_shield(struct provider_session *session, bool on, struct error *err);
/* ERR_CANCELLED when the task was cancelled and the session is not shielded. */
MUST_CHECK int session_check_cancelled(const struct provider_session *session, struct error *err);
/* Sleeps, unless that happens. */
MUST_CHECK int session_nap(const struct provider_session *session, int64_t ms, struct error *err);

/* For readers, from any thread. */
/* A copy of the cookie (caller frees) and its generation. */
char *session_cookie(struct provider_session *session, uint64_t *out_generation);
/* The server refused the cookie of this generation: a new login, unless another thread was first.
 */
MUST_CHECK int session_relogin(struct provider_session *session, uint64_t generation,
                               struct error *err);
/* Touches the session when it was idle for SESSION_IDLE_MS_MAX; never waits for another call. */
void session_keep_alive(struct provider_session *session);

#endif
