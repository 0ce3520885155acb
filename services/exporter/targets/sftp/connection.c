/* See connection.h. */
#include "services/exporter/targets/sftp/connection.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#define CONNECT_SECONDS     10L
#define SILENT_SECONDS      60           /* a server that syncs a disk may be quiet for a while */
#define WRITE_BYTES         (32 * 1024)  /* every server takes packets of 34000 bytes */
#define WRITE_BYTES_OPENSSH (128 * 1024) /* OpenSSH takes 256 KiB */
#define DEFAULT_PORT        22

void sftp_server_init(struct sftp_server *server, struct target *target)
{
    *server = (struct sftp_server){.target = target};
    (void)pthread_mutex_init(&server->mutex, NULL);
}

static void disconnect(struct sftp_connection *connection)
{
    if (connection->sftp != NULL)
        sftp_free(connection->sftp);
    if (connection->ssh != NULL) {
        ssh_disconnect(connection->ssh);
        ssh_free(connection->ssh);
    }
    free(connection);
}
DEFINE_AUTO(sftp_connection, struct sftp_connection, disconnect)

void sftp_server_release(struct sftp_server *server)
{
    for (size_t i = 0; i < server->idle_count; i++)
        disconnect(server->idle[i]);
    (void)pthread_mutex_destroy(&server->mutex);
}

static const char *user_of(const struct target_options *options)
{
    return options->url->user[0] != '\0' ? options->url->user : options->settings->username;
}

static int set_options(ssh_session ssh, const struct target_options *options, struct error *err)
{
    unsigned int port = options->url->port == 0 ? DEFAULT_PORT : options->url->port;
    long timeout = CONNECT_SECONDS;
    int no = 0;

    /* The account's own ~/.ssh/config and agent have no say here. */
    if (ssh_options_set(ssh, SSH_OPTIONS_PROCESS_CONFIG, &no) < 0 ||
        ssh_options_set(ssh, SSH_OPTIONS_HOST, options->url->host) < 0 ||
        ssh_options_set(ssh, SSH_OPTIONS_PORT, &port) < 0 ||
        ssh_options_set(ssh, SSH_OPTIONS_USER, user_of(options)) < 0 ||
        ssh_options_set(ssh, SSH_OPTIONS_TIMEOUT, &timeout) < 0 ||
        ssh_options_set(ssh, SSH_OPTIONS_KNOWNHOSTS, options->settings->known_hosts) < 0 ||
        ssh_options_set(ssh, SSH_OPTIONS_GLOBAL_KNOWNHOSTS, options->settings->known_hosts) < 0)
        return error_set(err, ERR_INVALID, "sftp: %.300s", ssh_get_error(ssh));
    return 0;
}

/* "SHA256:..." of the key that the server showed. */
static char *fingerprint(ssh_session ssh)
{
    ssh_key key = NULL;
    unsigned char *hash = NULL;
    size_t size = 0;
    char *text = NULL;
    char *copy;

    if (ssh_get_server_publickey(ssh, &key) == SSH_OK &&
        ssh_get_publickey_hash(key, SSH_PUBLICKEY_HASH_SHA256, &hash, &size) == 0)
        text = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, size);
    copy = xstrdup(text == NULL ? "unknown" : text);
    ssh_string_free_char(text);
    ssh_clean_pubkey_hash(&hash);
    ssh_key_free(key);
    return copy;
}

static int check_host_key(ssh_session ssh, const struct target_options *options, struct error *err)
{
    autofree char *shown = NULL;
    const char *host = options->url->host;
    const char *file = options->settings->known_hosts;
    enum ssh_known_hosts_e state = ssh_session_is_known_server(ssh);

    if (state == SSH_KNOWN_HOSTS_OK)
        return 0;
    shown = fingerprint(ssh);
    if (state == SSH_KNOWN_HOSTS_CHANGED || state == SSH_KNOWN_HOSTS_OTHER) {
        return error_set(
            err, ERR_DENIED,
            "sftp: '%.200s' shows another host key (%.64s) than '%.100s' has: somebody "
            "may listen in, nothing was sent",
            host, shown, file);
    }
    return error_set(err, ERR_DENIED,
                     "sftp: the host key of '%.200s' (%.64s) is not in '%.100s': check it and add "
                     "it (ssh-keyscan)",
                     host, shown, file);
}

static int login_result(int result, ssh_session ssh, const struct target_options *options,
                        const char *how, struct error *err)
{
    if (result == SSH_AUTH_SUCCESS)
        return 0;
    if (result == SSH_AUTH_ERROR) {
        return error_set(err, ERR_UNAVAILABLE, "sftp: login at '%.128s': %.200s",
                         options->url->host, ssh_get_error(ssh));
    }
    return error_set(err, ERR_DENIED, "sftp: '%.128s' refuses the %s of user '%.64s'",
                     options->url->host, how, user_of(options));
}

static int login(ssh_session ssh, const struct target_options *options, struct error *err)
{
    const struct target_settings *settings = options->settings;
    ssh_key key = NULL;
    int result;

    if (settings->key_file[0] == '\0') {
        return login_result(ssh_userauth_password(ssh, NULL, settings->password), ssh, options,
                            "password", err);
    }
    if (ssh_pki_import_privkey_file(settings->key_file, NULL, NULL, NULL, &key) != SSH_OK) {
        return error_set(err, ERR_DENIED,
                         "sftp: key file '%.200s' cannot be read (it must be a private key without "
                         "passphrase)",
                         settings->key_file);
    }
    result = ssh_userauth_publickey(ssh, NULL, key);
    ssh_key_free(key);
    if (result != SSH_AUTH_SUCCESS && result != SSH_AUTH_ERROR && settings->password[0] != '\0') {
        return login_result(ssh_userauth_password(ssh, NULL, settings->password), ssh, options,
                            "key and password", err);
    }
    return login_result(result, ssh, options, "key", err);
}

/* libssh waits for ever for an answer; the socket does not. */
static void limit_silence(ssh_session ssh)
{
    struct timeval limit = {.tv_sec = SILENT_SECONDS};
    long timeout = SILENT_SECONDS;
    int on = 1;

    (void)ssh_options_set(ssh, SSH_OPTIONS_TIMEOUT, &timeout);
    (void)setsockopt(ssh_get_fd(ssh), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    (void)setsockopt(ssh_get_fd(ssh), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    (void)setsockopt(ssh_get_fd(ssh), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

static int connect_new(const struct target_options *options, struct sftp_connection **out,
                       struct error *err)
{
    CLEANUP(sftp_connection_auto)
    struct sftp_connection *connection = xcalloc(1, sizeof *connection);

    connection->ssh = ssh_new();
    if (connection->ssh == NULL)
        abort(); /* out of memory */
    if (set_options(connection->ssh, options, err) < 0)
        return -1;
    if (ssh_connect(connection->ssh) != SSH_OK) {
        return error_set(err, ERR_UNAVAILABLE, "sftp: '%.128s': %.300s", options->url->host,
                         ssh_get_error(connection->ssh));
    }
    if (check_host_key(connection->ssh, options, err) < 0 ||
        login(connection->ssh, options, err) < 0)
        return -1;
    connection->sftp = sftp_new(connection->ssh);
    if (connection->sftp == NULL || sftp_init(connection->sftp) != SSH_OK) {
        return error_set(err, ERR_NOT_AVAILABLE, "sftp: '%.128s' has no SFTP: %.200s",
                         options->url->host, ssh_get_error(connection->ssh));
    }
    limit_silence(connection->ssh);
    connection->write_bytes =
        ssh_get_openssh_version(connection->ssh) != 0 ? WRITE_BYTES_OPENSSH : WRITE_BYTES;
    *out = STEAL(connection);
    return 0;
}

int sftp_take(struct sftp_server *server, struct sftp_connection **out, struct error *err)
{
    {
        LOCK_SCOPE(&server->mutex);
        if (server->idle_count > 0) {
            *out = server->idle[--server->idle_count];
            return 0;
        }
    }
    return connect_new(&server->target->base.options, out, err);
}

void sftp_give(struct sftp_server *server, struct sftp_connection *connection, bool broken)
{
    if (!broken) {
        LOCK_SCOPE(&server->mutex);
        if (server->idle_count < TARGET_PARALLEL_MAX) {
            server->idle[server->idle_count++] = connection;
            return;
        }
    }
    disconnect(connection);
}

int sftp_failed(struct sftp_connection *connection, const char *what, struct error *err)
{
    int code = sftp_get_error(connection->sftp);

    switch (code) {
    case SSH_FX_NO_SUCH_FILE:
    case SSH_FX_NO_SUCH_PATH:
        return error_set(err, ERR_NOT_FOUND, "sftp: '%.300s' does not exist", what);
    case SSH_FX_PERMISSION_DENIED:
    case SSH_FX_WRITE_PROTECT:
        return error_set(err, ERR_DENIED, "sftp: no right to write or read '%.300s'", what);
    case SSH_FX_FILE_ALREADY_EXISTS:
        return error_set(err, ERR_CONFLICT, "sftp: '%.300s' exists already", what);
    case SSH_FX_FAILURE: /* all that version 3 says of a full disk and much else */
        return error_set(err, ERR_LIMIT, "sftp: '%.300s': the server failed (is its disk full?)",
                         what);
    default:
        return error_set(err, ERR_UNAVAILABLE, "sftp: '%.200s': %.200s", what,
                         ssh_get_error(connection->ssh));
    }
}
