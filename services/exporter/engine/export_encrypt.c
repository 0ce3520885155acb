/* Encryption at rest: every file of the export becomes <name>.enc, which is decrypted and compared
 * before the plan names it. The plain files stay partial and go with the sweep behind the commit.
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "services/exporter/engine/export_key.h"
#include "services/exporter/engine/export_run.h"

int export_encryption_open(struct export_run *run, struct error *err)
{
    const struct export_options *options = &run->options;

    if (options->passphrase != NULL && options->encrypt_key != NULL)
        return error_set(err, ERR_INVALID, "an export is encrypted with one key, not with two");
    if (options->passphrase != NULL)
        return export_key_unseal(run->exporter, options->passphrase, &run->encrypt_key, err);
    return options->encrypt_key == NULL
               ? 0
               : export_key_load(run->exporter, options->encrypt_key, &run->encrypt_key, err);
}

static int check_space(const struct export_run *run, struct error *err)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < run->file_count; i++)
        sum += run->files[i].size;
    if (local_check_space(run->dir, sum, err) < 0) {
        return error_wrap(err, "the encrypted files stand beside the plain ones until both are "
                               "complete");
    }
    return 0;
}

static int encrypt_one(struct export_run *run, struct export_file *file, struct error *err)
{
    const atomic_bool *stopped = worker_task_stopped(run->task);
    autofree char *name = xasprintf("%s" CRYPT_SUFFIX, file->name);
    autofree char *from = local_partial_path(run->dir, file->name, run->generation);
    autofree char *to = local_partial_path(run->dir, name, run->generation);
    char hex[DIGEST_HEX_SIZE];
    struct stat st;

    if (export_may_write(run, err) < 0 ||
        crypt_encrypt_file(from, to, run->encrypt_key, stopped, err) < 0 ||
        crypt_plain_sha256(to, run->encrypt_key, stopped, hex, err) < 0)
        return -1;
    if (strcmp(hex, file->sha256) != 0) {
        return error_set(err, ERR_CORRUPT, "'%.200s' decrypts to something else than '%.200s'",
                         name, file->name);
    }
    if (stat(to, &st) < 0)
        return error_set(err, ERR_CORRUPT, "'%.200s' is gone", to);
    file->plain_name = STEAL(file->name);
    file->plain_size = file->size;
    memcpy(file->plain_sha256, file->sha256, sizeof hex);
    file->name = STEAL(name);
    file->size = (uint64_t)st.st_size;
    return file_sha256_until(to, stopped, file->sha256, err);
}

int export_encrypt(struct export_run *run, struct error *err)
{
    if (run->encrypt_key == NULL)
        return 0;
    export_phase(run, "encrypting");
    if (check_space(run, err) < 0)
        return -1;
    for (size_t i = 0; i < run->file_count; i++) {
        if (encrypt_one(run, &run->files[i], err) < 0)
            return error_wrap(err, "encrypting");
    }
    worker_task_log(run->task, LOG_LEVEL_INFO, "%zu files encrypted with %s%s%s, and read back",
                    run->file_count,
                    run->options.encrypt_key == NULL ? "the job's passphrase" : "key '",
                    run->options.encrypt_key == NULL ? "" : run->options.encrypt_key,
                    run->options.encrypt_key == NULL ? "" : "'");
    return 0;
}
