/* Sealing: keys by audience, tampering, files. */
#include "tests/unit/common/unit.h"

#include "common/paths.h"
#include "common/seal.h"

static const char master_hex[] = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

static struct seal_key *derive(const char *audience)
{
    struct error err = ERROR_NONE;
    auto_seal_master *master = NULL;

    assert_ok(seal_master_new(master_hex, &master, &err), err);
    return seal_master_derive(master, audience);
}

static void sealed_secrets_open_with_their_own_key_only(void **state)
{
    struct error err = ERROR_NONE;
    auto_seal_key *vsphere = derive("provider:vsphere");
    auto_seal_key *again = derive("provider:vsphere");
    auto_seal_key *notify = derive("notify");
    autofree uint8_t *sealed = NULL;
    auto_secret *out = NULL;
    auto_secret *none = NULL;
    size_t size = 0;
    size_t out_size = 0;

    (void)state;
    assert_string_equal(seal_key_id(vsphere), seal_key_id(again));
    assert_string_not_equal(seal_key_id(vsphere), seal_key_id(notify));
    assert_int_equal(strlen(seal_key_id(vsphere)), SEAL_KEY_ID_SIZE - 1);
    seal(vsphere, "s3cret", 6, &sealed, &size);
    assert_int_equal(size, 6 + SEAL_OVERHEAD_BYTES);
    assert_ok(seal_open(again, sealed, size, &out, &out_size, &err), err);
    assert_string_equal(out, "s3cret");
    assert_int_equal(out_size, 6);
    assert_fails(seal_open(notify, sealed, size, &none, &out_size, &err), err, ERR_DENIED,
                 seal_key_id(vsphere));
    assert_null(none);
}

static void every_flipped_bit_is_noticed(void **state)
{
    struct error err = ERROR_NONE;
    auto_seal_key *key = derive("upload");
    autofree uint8_t *sealed = NULL;
    char *out = NULL;
    size_t size = 0;
    size_t out_size = 0;

    (void)state;
    seal(key, "x", 1, &sealed, &size);
    for (size_t i = 0; i < size; i++) {
        sealed[i] ^= 1;
        assert_fails(seal_open(key, sealed, size, &out, &out_size, &err), err, ERR_DENIED, "");
        sealed[i] ^= 1;
    }
    for (size_t cut = 0; cut < size; cut++)
        assert_fails(seal_open(key, sealed, cut, &out, &out_size, &err), err, ERR_DENIED, "");
    assert_fails(seal_open(key, sealed, SEAL_OVERHEAD_BYTES + SEAL_SECRET_BYTES_MAX + 1, &out,
                           &out_size, &err),
                 err, ERR_DENIED, "too long");
    assert_null(out);
}

static void empty_and_largest_secrets_work(void **state)
{
    struct error err = ERROR_NONE;
    auto_seal_key *key = derive("bridge");
    autofree char *big = xcalloc(1, SEAL_SECRET_BYTES_MAX);
    autofree uint8_t *sealed = NULL;
    autofree uint8_t *sealed_big = NULL;
    auto_secret *out = NULL;
    auto_secret *out_big = NULL;
    size_t size = 0;
    size_t out_size = 99;

    (void)state;
    seal(key, "", 0, &sealed, &size);
    assert_ok(seal_open(key, sealed, size, &out, &out_size, &err), err);
    assert_int_equal(out_size, 0);
    memset(big, 'b', SEAL_SECRET_BYTES_MAX);
    seal(key, big, SEAL_SECRET_BYTES_MAX, &sealed_big, &size);
    assert_ok(seal_open(key, sealed_big, size, &out_big, &out_size, &err), err);
    assert_int_equal(out_size, SEAL_SECRET_BYTES_MAX);
    assert_memory_equal(out_big, big, SEAL_SECRET_BYTES_MAX);
}

static void the_same_secret_is_never_sealed_the_same_way(void **state)
{
    auto_seal_key *key = derive("notify");
    autofree uint8_t *a = NULL;
    autofree uint8_t *b = NULL;
    size_t size = 0;

    (void)state;
    seal(key, "same", 4, &a, &size);
    seal(key, "same", 4, &b, &size);
    assert_memory_not_equal(a, b, size);
}

static void keys_go_through_their_files(void **state)
{
    struct error err = ERROR_NONE;
    auto_scratch *dir = scratch_make();
    autofree char *keys = xasprintf("%s/keys", dir);
    autofree char *path = xasprintf("%s/provider-vsphere.key", keys);
    auto_seal_key *key = derive("provider:vsphere");
    auto_seal_key *loaded = NULL;
    autofree uint8_t *sealed = NULL;
    auto_secret *out = NULL;
    struct stat st;
    size_t size = 0;

    (void)state;
    assert_ok(seal_key_save(key, keys, &err), err);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_ok(seal_key_load(keys, "provider:vsphere", &loaded, &err), err);
    assert_string_equal(seal_key_id(loaded), seal_key_id(key));
    seal(key, "abc", 3, &sealed, &size);
    assert_ok(seal_open(loaded, sealed, size, &out, &size, &err), err);
    assert_string_equal(out, "abc");
}

static void wrong_key_material_is_refused(void **state)
{
    struct error err = ERROR_NONE;
    auto_scratch *dir = scratch_make();
    autofree char *junk = scratch_file(dir, "notify.key", "not hex\n");
    struct seal_key *key = NULL;
    struct seal_master *master = NULL;

    (void)state;
    assert_fails(seal_master_new("00ff", &master, &err), err, ERR_INVALID, "64 hex digits");
    assert_fails(seal_master_new("", &master, &err), err, ERR_INVALID, "64 hex digits");
    assert_fails(seal_key_load(dir, "notify", &key, &err), err, ERR_INVALID, "not 64 hex digits");
    assert_fails(seal_key_load(dir, "upload", &key, &err), err, ERR_NOT_FOUND, "--export-keys");
    assert_fails(seal_key_load(dir, "../x", &key, &err), err, ERR_INVALID, "no audience");
    assert_fails(seal_key_load(dir, "", &key, &err), err, ERR_INVALID, "no audience");
    assert_null(key);
    assert_null(master);
    secret_free(NULL);
    seal_key_free(NULL);
    seal_master_free(NULL);
}

/* Key and signature of `openssl genpkey -algorithm ed25519` would differ each time: these are the
 * first test vector of RFC 8032. */
static void a_signature_is_that_of_the_standard(void **state)
{
    static const char seed[] = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    static const char wanted_public[] =
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    static const char wanted[] = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
                                 "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";
    char dir[] = "/tmp/hsdk-seal-XXXXXX";
    struct error err = ERROR_NONE;
    auto_seal_key *key = NULL;
    uint8_t public_key[SEAL_PUBLIC_BYTES];
    uint8_t signature[SEAL_SIGNATURE_BYTES];
    char hex[2 * SEAL_SIGNATURE_BYTES + 1];
    autofree char *pem = NULL;

    (void)state;
    assert_non_null(mkdtemp(dir));
    autofree char *path = xasprintf("%s/evidence.key", dir);
    assert_ok(file_write_atomic(path, seed, strlen(seed), 0600, &err), err);
    assert_ok(seal_key_load(dir, SEAL_EVIDENCE, &key, &err), err);
    seal_public(key, public_key);
    hex_encode(public_key, sizeof public_key, hex);
    assert_string_equal(hex, wanted_public);
    seal_sign(key, "", 0, signature);
    hex_encode(signature, sizeof signature, hex);
    assert_string_equal(hex, wanted);
    assert_true(seal_signature_fits(public_key, "", 0, signature));
    signature[5] ^= 1;
    assert_false(seal_signature_fits(public_key, "", 0, signature));
    pem = seal_public_pem(key);
    assert_non_null(strstr(pem, "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="));
    (void)unlink(path);
    (void)rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sealed_secrets_open_with_their_own_key_only),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(empty_and_largest_secrets_work),
        cmocka_unit_test(the_same_secret_is_never_sealed_the_same_way),
        cmocka_unit_test(keys_go_through_their_files),
        cmocka_unit_test(wrong_key_material_is_refused),
        cmocka_unit_test(a_signature_is_that_of_the_standard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
