/* What this user keeps between runs: session tokens per gateway, in the configuration directory
 * ($XDG_CONFIG_HOME/hypersdk, else ~/.config/hypersdk), file sessions.json, mode 0600. */
#ifndef HYPEREXPORT_SETTINGS_H
#define HYPEREXPORT_SETTINGS_H

#include "common/error.h"

#define SETTINGS_TOKEN_BYTES_MAX    4096
#define SETTINGS_SESSIONS_BYTES_MAX ((size_t)(256 * KIB)) /* a thousand gateways */

/* token_file, else HYPERSDK_TOKEN, else the session stored for url; *out NULL when there is none.
 * A stored session that has expired counts as none. ERR_DENIED: others may read sessions.json. */
MUST_CHECK int settings_token(const char *token_file, const char *url, char **out,
                              struct error *err);
/* Keeps a session; expires_at as the gateway wrote it. *out_path is the file, for the caller. */
MUST_CHECK int settings_store_session(const char *url, const char *username, const char *token,
                                      const char *expires_at, char **out_path, struct error *err);
/* Sessions start with "s." and travel as bearer tokens, everything else is an API key. */
bool settings_token_is_session(const char *token);

/* First line of a file ("-": of standard input) with a secret, without the line end. */
MUST_CHECK int settings_read_secret(const char *path, char **out, struct error *err);
/* Asks on the terminal without echo. */
MUST_CHECK int settings_ask_secret(const char *prompt, char **out, struct error *err);

#endif
