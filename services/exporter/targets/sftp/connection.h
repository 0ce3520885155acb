/* SSH connections to one server: host key checked against known_hosts, login by key file or
 * password, kept for the next request. Used by sftp.c only.
 *
 * libssh, not libssh2: Debian 12's libssh2 1.10 cannot sign with RSA keys as today's servers want
 * it (rsa-sha2-256), and libssh gets Debian's security updates. */
#ifndef EXPORTER_SFTP_CONNECTION_H
#define EXPORTER_SFTP_CONNECTION_H

#include <libssh/libssh.h>
#include <libssh/sftp.h>

#include "services/exporter/targets/target.h"

struct sftp_connection {
    ssh_session ssh;
    sftp_session sftp;
    size_t write_bytes; /* of one packet that the server surely takes */
};

struct sftp_server { /* thread-safe */
    struct target *target;
    pthread_mutex_t mutex; /* guards idle */
    struct sftp_connection *idle[TARGET_PARALLEL_MAX];
    size_t idle_count;
};

void sftp_server_init(struct sftp_server *server, struct target *target);
void sftp_server_release(struct sftp_server *server);

/* ERR_DENIED: login or host key refused; ERR_UNAVAILABLE: not reachable. */
MUST_CHECK int sftp_take(struct sftp_server *server, struct sftp_connection **out,
                         struct error *err);
/* Back for the next one; broken: closed. */
void sftp_give(struct sftp_server *server, struct sftp_connection *connection, bool broken);
/* What the last call on the connection failed with. */
int sftp_failed(struct sftp_connection *connection, const char *what, struct error *err);

#endif
