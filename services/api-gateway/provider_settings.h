/* Settings of a provider as users give them: names checked, secrets parted from the rest and
 * sealed at once for the workers of that kind (audience "provider:<kind>"). */
#ifndef GATEWAY_PROVIDER_SETTINGS_H
#define GATEWAY_PROVIDER_SETTINGS_H

#include "common/seal.h"
#include "common/fields.h"

#define PROVIDER_KIND_MAX          31
#define PROVIDER_SETTING_BYTES_MAX 4095
#define PROVIDER_SECRET_BYTES_MAX  16384 /* a service account file is 3 KiB */

extern const char *const provider_kinds[];       /* built into this suite (generated) */
extern const char *const provider_kinds_known[]; /* of the reference */

struct provider_settings {
    char kind[PROVIDER_KIND_MAX + 1];
    bool enabled;
    json_t *settings; /* object, without secrets; owned */
    json_t *secrets;  /* object; empty = none given; owned */
};
void provider_settings_release(struct provider_settings *settings);
#define auto_provider_settings CLEANUP(provider_settings_release) struct provider_settings

/* Is this a name that a provider may have? */
bool provider_name_is_right(const char *name);
/* input: object of the settings, with "kind" (default: name, when that is a kind) and "enabled".
 * from_file: of the configuration file, where "password_file" names a file to read. Others must
 * not make the server read files. */
MUST_CHECK int provider_settings_read(const char *name, const json_t *input, bool from_file,
                                      struct provider_settings *out, struct field_problem *problem,
                                      struct error *err);
/* May stored secrets be used together with these changed settings? Only what does not decide whom
 * the password is shown to. NULL: yes; else the name of the setting that forbids it. */
const char *provider_setting_needs_secret(const json_t *before, const json_t *after);
/* The secrets sealed for the kind, as bytea text; caller frees. */
char *provider_secrets_seal(const struct seal_master *master, const char *kind,
                            const json_t *secrets, char key_id[SEAL_KEY_ID_SIZE]);

#endif
