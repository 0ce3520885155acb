/* See export_key.h. */
#include "services/exporter/engine/export_key.h"

#include <string.h>

#include "common/paths.h"
#include "services/exporter/formats/mf.h"

int export_key_load(const struct exporter *exporter, const char *name, struct crypt_key **out,
                    struct error *err)
{
    const char *key_dir = exporter->export.encryption_key_dir;
    autofree char *path = NULL;

    if (key_dir[0] == '\0') {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "exports cannot be encrypted here: export.encryption_key_dir is not set");
    }
    if (!file_name_is_plain(name))
        return error_set(err, ERR_INVALID, "'%.64s' is no name of a key", name);
    path = xasprintf("%s/%s.key", key_dir, name);
    if (crypt_key_load(path, out, err) < 0)
        return error_wrap(err, "encryption key '%.64s'", name);
    return 0;
}

static int open_sealed(const struct seal_key *key, const char *hex, char **out, struct error *err)
{
    size_t size = strlen(hex) / 2;
    autofree uint8_t *sealed = NULL;

    if (size > SEAL_OVERHEAD_BYTES + CRYPT_PASSPHRASE_BYTES_MAX)
        return error_set(err, ERR_INVALID, EXPORT_SPEC_PASSPHRASE " is too long");
    sealed = xmalloc(size + 1);
    if (!hex_decode(hex, sealed, size))
        return error_set(err, ERR_INVALID, EXPORT_SPEC_PASSPHRASE " is not hex text");
    return seal_open(key, sealed, size, out, &size, err);
}

int export_key_unseal(const struct exporter *exporter, const char *sealed_hex,
                      struct crypt_key **out, struct error *err)
{
    auto_seal_key *key = NULL;
    auto_secret *passphrase = NULL;

    /* Looked for when it is needed: keys exported by an older gateway lack it. */
    if (seal_key_load(exporter->key_dir, SEAL_EXPORTS, &key, err) < 0 ||
        open_sealed(key, sealed_hex, &passphrase, err) < 0)
        return error_wrap(err, "the passphrase of the job");
    return crypt_key_from_passphrase(passphrase, out, err);
}
