/* See submit_check.h. */
#include "common/submit_check.h"

#include <string.h>

#include "common/bandwidth.h"
#include "common/crypt_file.h"
#include "common/json.h"
#include "common/libvirt_wish.h"
#include "common/may_fail.h"
#include "common/upload_url.h"

const char *const submit_formats[] = {"ovf", "ova", "vmdk", "raw", "qcow2", NULL};
const char *const submit_formats_later[] = {"vhd", "vhdx", NULL};
static const char *const methods[] = {"auto", "nfc", NULL};
static const char *const methods_later[] = {"web", "govc", "ovftool", "vddk", "ctl", "agent", NULL};
/* Words that are routes below /jobs/: a job of that name could not be asked for. */
static const char *const reserved_ids[] = {"submit", "query",    "cancel", "stats", "eta",
                                           "logs",   "progress", "list",   NULL};

int submit_check_word(const char *field, const char *word, const char *const *known,
                      const char *const *later, struct field_problem *problem, struct error *err)
{
    const char *near;

    if (word_in(word, known))
        return 0;
    if (word_in(word, later)) {
        return field_fail(problem, 422, field, err, ERR_NOT_AVAILABLE,
                          "'%s': '%s' is not available in this version", field, word);
    }
    near = nearest_word(word, known);
    return field_fail(problem, 400, field, err, ERR_INVALID, "'%s': '%s' is not known%s%s%s", field,
                      word, near == NULL ? "" : ", did you mean '", near == NULL ? "" : near,
                      near == NULL ? "" : "'");
}

int submit_split_export_method(json_t *job, struct field_problem *problem, struct error *err)
{
    const char *value = field_text(job, "export_method", NULL);
    const char *target;
    const json_t *before;

    if (value == NULL)
        return 0;
    if (word_in(value, submit_formats) || word_in(value, submit_formats_later)) {
        target = "format";
    } else if (word_in(value, methods) || word_in(value, methods_later)) {
        target = "method";
    } else {
        return submit_check_word("export_method", value, submit_formats, submit_formats_later,
                                 problem, err);
    }
    before = json_object_get(job, target);
    if (before != NULL && !json_equal(before, json_object_get(job, "export_method"))) {
        return field_fail(problem, 400, "export_method", err, ERR_INVALID,
                          "'export_method' is another name of '%s', which has a different value",
                          target);
    }
    (void)json_object_set(job, target, json_object_get(job, "export_method"));
    (void)json_object_del(job, "export_method");
    return 0;
}

static int check_id(const char *id, struct field_problem *problem, struct error *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "._-";

    if (id == NULL)
        return 0;
    if (strspn(id, allowed) != strlen(id) || id[0] == '.' || id[0] == '-') {
        return field_fail(problem, 400, "id", err, ERR_INVALID,
                          "'id' may hold letters, digits, '.', '_' and '-' and must not begin with "
                          "'.' or '-'");
    }
    if (word_in(id, reserved_ids))
        return field_fail(problem, 400, "id", err, ERR_INVALID, "'id': '%s' is reserved", id);
    return 0;
}

void submit_retry_delays(const struct submit_settings *settings, const json_t *retry,
                         int64_t *out_initial, int64_t *out_max)
{
    *out_initial = field_duration_ms(retry, "initial_delay", settings->retry->initial_delay_ms);
    *out_max = field_duration_ms(retry, "max_delay", settings->retry->max_delay_ms);
    if (*out_initial > *out_max && json_object_get(retry, "initial_delay") == NULL)
        *out_initial = *out_max;
    if (*out_initial > *out_max && json_object_get(retry, "max_delay") == NULL)
        *out_max = *out_initial;
}

static int check_retry(const struct submit_settings *settings, const json_t *job,
                       struct field_problem *problem, struct error *err)
{
    int64_t initial = 0;
    int64_t max = 0;

    submit_retry_delays(settings, json_object_get(job, "retry"), &initial, &max);
    if (initial > max) {
        return field_fail(problem, 422, "retry.initial_delay", err, ERR_INVALID,
                          "'retry.initial_delay' of %lld ms is over max_delay of %lld ms",
                          (long long)initial, (long long)max);
    }
    return 0;
}

static int check_free_size(const json_t *job, struct field_problem *problem, struct error *err)
{
    static const char *const names[] = {"metadata", "tags"};
    size_t size = 0;

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        const json_t *value = json_object_get(job, names[i]);
        if (value != NULL)
            size += json_dumpb(value, NULL, 0, JSON_COMPACT);
        if (size > SUBMIT_FREE_BYTES_MAX) {
            return field_fail(problem, 400, names[i], err, ERR_INVALID,
                              "'metadata' and 'tags' together are over %llu bytes",
                              (unsigned long long)SUBMIT_FREE_BYTES_MAX);
        }
    }
    return 0;
}

bool submit_wants_compression(const json_t *job)
{
    return field_bool(job, "compress", json_object_get(job, "compression") != NULL);
}

static int check_conversion(const json_t *job, struct field_problem *problem, struct error *err)
{
    static const char *const targets[] = {"qcow2", "raw", NULL};
    static const char *const none[] = {NULL};
    const json_t *conversion = json_object_get(job, "hyper2kvm_integration");
    const char *target = field_text(conversion, "target_format", "qcow2");

    return submit_check_word("hyper2kvm_integration.target_format", target, targets, none, problem,
                             err);
}

bool submit_wants_import(const json_t *job)
{
    const json_t *wish = json_object_get(job, "libvirt");

    return wish != NULL && field_bool(wish, "define", true);
}

static int check_import(const struct submit_settings *settings, const json_t *job,
                        struct field_problem *problem, struct error *err)
{
    const json_t *conversion = json_object_get(job, "hyper2kvm_integration");

    if (!submit_wants_import(job))
        return 0;
    if (!field_bool(conversion, "enabled", false) ||
        !field_bool(conversion, "auto_convert", true)) {
        return field_fail(problem, 422, "libvirt", err, ERR_INVALID,
                          "'libvirt' needs a conversion: set 'hyper2kvm_integration.enabled'");
    }
    return libvirt_wish_check(settings->libvirt, json_object_get(job, "libvirt"), "libvirt.",
                              problem, err);
}

bool submit_wants_restore_point(const json_t *job)
{
    return field_bool(job, "incremental", false) || field_bool(job, "force_full", false);
}

/* Only qcow2 can hold less than a disk, so that is the format unless another is asked for. */
static int check_incremental(json_t *job, struct field_problem *problem, struct error *err)
{
    bool by_age = json_object_get(job, "incremental_max_age") != NULL;
    bool by_days = json_object_get(job, "max_full_age_days") != NULL;

    if (by_age && by_days) {
        return field_fail(problem, 400, "max_full_age_days", err, ERR_INVALID,
                          "'max_full_age_days' and 'incremental_max_age' say the same: give one");
    }
    if (!submit_wants_restore_point(job)) {
        const char *name = by_age ? "incremental_max_age" : "max_full_age_days";
        return !by_age && !by_days ? 0
                                   : field_fail(problem, 400, name, err, ERR_INVALID,
                                                "'%s' means nothing without 'incremental'", name);
    }
    if (!field_bool(job, "keep_local", true)) {
        return field_fail(problem, 422, "keep_local", err, ERR_NOT_AVAILABLE,
                          "the next incremental export goes on from the local files of this one");
    }
    if (json_object_get(job, "format") == NULL)
        json_set_text(job, "format", "qcow2");
    if (strcmp(field_text(job, "format", ""), "ova") == 0) {
        return field_fail(problem, 422, "incremental", err, ERR_NOT_AVAILABLE,
                          "an OVA is one file, of which nothing can stay as it was: choose ovf, "
                          "vmdk, raw or qcow2");
    }
    return 0;
}

/* VMDKs are compressed anyway; a raw image becomes zstd frames. */
static int check_compression(const json_t *job, struct field_problem *problem, struct error *err)
{
    static const char *const codecs[] = {"zlib", "zstd", NULL};
    static const char *const none[] = {NULL};

    if (submit_check_word("compression", field_text(job, "compression", codecs[0]), codecs, none,
                          problem, err) < 0)
        return -1;
    if (submit_wants_compression(job) && strcmp(field_text(job, "format", "ovf"), "raw") == 0 &&
        strcmp(field_text(job, "compression", SUBMIT_COMPRESSION), "zstd") != 0) {
        return field_fail(problem, 422, "compression", err, ERR_NOT_AVAILABLE,
                          "format raw is compressed with zstd: leave 'compression' out, or choose "
                          "qcow2");
    }
    return 0;
}

/* What reads the export afterwards would find it encrypted. */
static int check_encrypt(const json_t *job, struct field_problem *problem, struct error *err)
{
    static const char *const methods_now[] = {CRYPT_METHOD, NULL};
    static const char *const not_yet[] = {"aes256", "gpg", NULL};
    const json_t *encrypt = json_object_get(job, "encrypt");
    const char *key = field_text(encrypt, "key_ref", SUBMIT_KEY_REF);

    if (encrypt == NULL)
        return 0;
    if (submit_check_word("encrypt.method", field_text(encrypt, "method", CRYPT_METHOD),
                          methods_now, not_yet, problem, err) < 0)
        return -1;
    if (strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") !=
        strlen(key)) {
        return field_fail(problem, 400, "encrypt.key_ref", err, ERR_INVALID,
                          "'encrypt.key_ref' may hold letters, digits, '_' and '-'");
    }
    if (json_object_get(encrypt, "key_ref") != NULL &&
        json_object_get(encrypt, "passphrase") != NULL) {
        return field_fail(problem, 400, "encrypt.passphrase", err, ERR_INVALID,
                          "'encrypt.key_ref' and 'encrypt.passphrase' are two keys: give one");
    }
    if (submit_wants_restore_point(job)) {
        return field_fail(problem, 422, "encrypt", err, ERR_NOT_AVAILABLE,
                          "an incremental export cannot be encrypted: the next one reads and goes "
                          "on from the plain files of this one. Leave out 'incremental', or put "
                          "the directory on an encrypted file system");
    }
    if (field_bool(json_object_get(job, "hyper2kvm_integration"), "enabled", false)) {
        return field_fail(problem, 422, "encrypt", err, ERR_NOT_AVAILABLE,
                          "an encrypted export cannot be converted: the converter reads the plain "
                          "files. Leave out 'hyper2kvm_integration' or 'encrypt', or convert what "
                          "hyperexport decrypt gives back");
    }
    return 0;
}

/* Nothing of the export stays on the server, so nothing there can read it afterwards. */
static const char *reader_of_local_files(const json_t *job)
{
    if (submit_wants_restore_point(job))
        return "incremental";
    if (json_object_get(job, "encrypt") != NULL)
        return "encrypt";
    if (field_bool(json_object_get(job, "hyper2kvm_integration"), "enabled", false))
        return "hyper2kvm_integration";
    return NULL;
}

static int check_stream_upload(json_t *job, struct field_problem *problem, struct error *err)
{
    const char *reader = reader_of_local_files(job);

    if (!field_bool(job, "stream_upload", false))
        return 0;
    if (json_object_get(job, "upload") == NULL) {
        return field_fail(problem, 400, "stream_upload", err, ERR_INVALID,
                          "'stream_upload' needs 'upload': where should it go?");
    }
    if (field_bool(job, "keep_local", false)) {
        return field_fail(problem, 400, "keep_local", err, ERR_INVALID,
                          "'stream_upload' makes no local files that 'keep_local' could keep: "
                          "leave one of them out");
    }
    if (reader != NULL) {
        return field_fail(problem, 422, "stream_upload", err, ERR_NOT_AVAILABLE,
                          "'stream_upload' leaves no local files, and '%s' reads them: leave out "
                          "one of them",
                          reader);
    }
    json_put(job, "keep_local", json_false());
    return 0;
}

/* Whether there are credentials for it is the exporter's to say: it alone has them. */
static int check_upload(const json_t *job, struct field_problem *problem, struct error *err)
{
    const char *url = field_text(job, "upload", NULL);
    bool keep_local = field_bool(job, "keep_local", true);
    bool converts = field_bool(json_object_get(job, "hyper2kvm_integration"), "enabled", false);
    struct error why = ERROR_NONE;
    struct upload_url parsed;

    if (url != NULL && upload_url_parse(url, &parsed, &why) < 0) {
        return field_fail(problem, why.code == ERR_NOT_AVAILABLE ? 422 : 400, "upload", err,
                          why.code, "'upload': %.400s", why.message);
    }
    if (!keep_local && url == NULL) {
        return field_fail(problem, 400, "keep_local", err, ERR_INVALID,
                          "'keep_local': false needs 'upload', or nothing would be left");
    }
    if (!keep_local && converts) {
        return field_fail(problem, 422, "keep_local", err, ERR_INVALID,
                          "'keep_local': false leaves nothing to convert: leave out "
                          "'hyper2kvm_integration' or keep the local files");
    }
    return 0;
}

int submit_check_rules(const struct submit_settings *settings, json_t *job,
                       struct field_problem *problem, struct error *err)
{
    if (submit_check_word("format", field_text(job, "format", "ovf"), submit_formats,
                          submit_formats_later, problem, err) < 0 ||
        submit_check_word("method", field_text(job, "method", "auto"), methods, methods_later,
                          problem, err) < 0 ||
        check_id(field_text(job, "id", NULL), problem, err) < 0 ||
        bandwidth_check(job, problem, err) < 0 || check_retry(settings, job, problem, err) < 0 ||
        check_conversion(job, problem, err) < 0 || check_import(settings, job, problem, err) < 0 ||
        check_stream_upload(job, problem, err) < 0 || check_incremental(job, problem, err) < 0 ||
        check_compression(job, problem, err) < 0 || check_upload(job, problem, err) < 0 ||
        may_fail_check(job, problem, err) < 0 || check_encrypt(job, problem, err) < 0)
        return -1;
    return check_free_size(job, problem, err);
}
