/* Encrypted files: round trips, and everything that may happen to them. */
#include "tests/unit/common/unit.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "common/crypt_file.h"
#include "common/paths.h"

static char dir[64];
static struct crypt_key *key;

static char *at(const char *name)
{
    return xasprintf("%s/%s", dir, name);
}

static int start(void **state)
{
    uint8_t bytes[CRYPT_KEY_BYTES_MIN];

    (void)state;
    (void)snprintf(dir, sizeof dir, "/tmp/hsdk-crypt-XXXXXX");
    assert_non_null(mkdtemp(dir));
    memset(bytes, 7, sizeof bytes);
    key = crypt_key_new(bytes, sizeof bytes);
    return 0;
}

static int end(void **state)
{
    static const char *const names[] = {"plain", "plain.enc", "out", "out.partial", "k"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        autofree char *path = at(names[i]);
        (void)unlink(path);
    }
    crypt_key_free(key);
    return rmdir(dir);
}

/* A file of so many bytes, encrypted; the cipher text. Caller frees. */
static uint8_t *encrypt(size_t size, size_t *out_size)
{
    autofree char *plain = at("plain");
    autofree char *cipher = at("plain.enc");
    autofree uint8_t *bytes = xmalloc(size + 1);
    struct error err = ERROR_NONE;
    char *text = NULL;

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 251);
    assert_ok(file_write_atomic(plain, bytes, size, 0600, &err), err);
    assert_ok(crypt_encrypt_file(plain, cipher, key, NULL, &err), err);
    assert_ok(file_read(cipher, 16 * MIB, &text, out_size, &err), err);
    return (uint8_t *)text;
}

static void put(const uint8_t *bytes, size_t size)
{
    autofree char *cipher = at("plain.enc");
    struct error err = ERROR_NONE;

    assert_ok(file_write_atomic(cipher, bytes, size, 0600, &err), err);
}

static void assert_refused(enum error_code code, const char *text)
{
    autofree char *cipher = at("plain.enc");
    autofree char *out = at("out");
    autofree char *partial = at("out.partial");
    struct error err = ERROR_NONE;

    assert_fails(crypt_decrypt_file(cipher, out, key, &err), err, code, text);
    assert_int_equal(access(out, F_OK), -1);
    assert_int_equal(access(partial, F_OK), -1);
}

static void every_size_comes_back(void **state)
{
    static const size_t sizes[] = {0,
                                   1,
                                   CRYPT_CHUNK_BYTES - 1,
                                   CRYPT_CHUNK_BYTES,
                                   CRYPT_CHUNK_BYTES + 1,
                                   3 * (size_t)CRYPT_CHUNK_BYTES,
                                   3 * (size_t)CRYPT_CHUNK_BYTES + 100};
    autofree char *plain = at("plain");
    autofree char *cipher = at("plain.enc");
    autofree char *out = at("out");

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct error err = ERROR_NONE;
        size_t size = 0;
        size_t back_size = 0;
        autofree uint8_t *bytes = encrypt(sizes[i], &size);
        autofree char *wanted = NULL;
        autofree char *back = NULL;
        struct stat st;
        assert_ok(crypt_decrypt_file(cipher, out, key, &err), err);
        assert_ok(file_read(plain, 16 * MIB, &wanted, &size, &err), err);
        assert_ok(file_read(out, 16 * MIB, &back, &back_size, &err), err);
        assert_int_equal(size, back_size);
        assert_memory_equal(wanted, back, size);
        assert_int_equal(stat(out, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0600);
        assert_fails(crypt_decrypt_file(cipher, out, key, &err), err, ERR_CONFLICT, "exists");
        assert_int_equal(unlink(out), 0);
    }
}

static void every_damage_is_refused_and_leaves_no_file(void **state)
{
    size_t chunk = CRYPT_CHUNK_BYTES + 17;
    size_t size = 0;
    autofree uint8_t *bytes = encrypt(3 * (size_t)CRYPT_CHUNK_BYTES, &size);
    autofree uint8_t *other = xmalloc(size + 1);

    (void)state;
    assert_int_equal(size, CRYPT_HEADER_BYTES + 3 * chunk);
    for (size_t i = 0; i < size; i += i < 80 ? 1 : 7919) { /* every header byte, then samples */
        memcpy(other, bytes, size);
        other[i] ^= 0x10;
        put(other, size);
        assert_refused((i >= 16 && i < 32) || (i >= 56 && i < 64) ? ERR_DENIED : ERR_CORRUPT, "");
    }
    put(bytes, size - 1);
    assert_refused(ERR_CORRUPT, "damaged or cut");
    put(bytes, size - chunk);
    assert_refused(ERR_CORRUPT, "cut short");
    put(bytes, CRYPT_HEADER_BYTES);
    assert_refused(ERR_CORRUPT, "cut short");
    put(bytes, 63);
    assert_refused(ERR_CORRUPT, "no encrypted file");
    memcpy(other, bytes, size);
    other[size] = 0;
    put(other, size + 1);
    assert_refused(ERR_CORRUPT, "behind its end");
    memcpy(other + CRYPT_HEADER_BYTES, bytes + CRYPT_HEADER_BYTES + chunk, chunk);
    memcpy(other + CRYPT_HEADER_BYTES + chunk, bytes + CRYPT_HEADER_BYTES, chunk);
    put(other, size);
    assert_refused(ERR_CORRUPT, "damaged");
}

static void keys_are_told_apart_and_must_be_private(void **state)
{
    autofree char *path = at("k");
    auto_crypt_key *other = NULL;
    struct error err = ERROR_NONE;
    size_t size = 0;
    autofree uint8_t *bytes = encrypt(10, &size);
    autofree char *cipher = at("plain.enc");
    autofree char *out = at("out");
    char hex[65];

    (void)state;
    assert_ok(file_write_atomic(path, "0123456789012345678901234567890", 31, 0600, &err), err);
    assert_fails(crypt_key_load(path, &other, &err), err, ERR_INVALID, "31 bytes");
    assert_ok(file_write_atomic(path, "01234567890123456789012345678901", 32, 0640, &err), err);
    assert_fails(crypt_key_load(path, &other, &err), err, ERR_DENIED, "0600");
    assert_int_equal(chmod(path, 0600), 0);
    assert_ok(crypt_key_load(path, &other, &err), err);
    assert_fails(crypt_decrypt_file(cipher, out, other, &err), err, ERR_DENIED, "another key");
    assert_ok(crypt_plain_sha256(cipher, key, NULL, hex, &err), err);
    assert_int_equal(strlen(hex), 64);
}

static void a_passphrase_opens_what_it_closed(void **state)
{
    struct error err = ERROR_NONE;
    auto_crypt_key *phrase = NULL;
    auto_crypt_key *same = NULL;
    auto_crypt_key *wrong = NULL;
    auto_crypt_key *bad = NULL;
    size_t size = 0;
    autofree uint8_t *first = NULL;
    autofree uint8_t *second = NULL;
    autofree char *cipher = at("plain.enc");
    autofree char *out = at("out");
    bool wants = false;
    char hex[65];

    (void)state;
    assert_ok(crypt_key_from_passphrase("correct horse", &phrase, &err), err);
    assert_ok(crypt_key_from_passphrase("correct horse", &same, &err), err);
    assert_ok(crypt_key_from_passphrase("correct Horse", &wrong, &err), err);
    assert_fails(crypt_key_from_passphrase("seven77", &bad, &err), err, ERR_INVALID, "8 to 1024");
    crypt_key_free(key);
    key = STEAL(phrase); /* end() frees it */
    first = encrypt(100000, &size);
    second = encrypt(100000, &size);
    assert_int_equal(first[8], 2);
    assert_true(first[9] >= 3 && first[10] >= 6);         /* passes, 64 MiB */
    assert_memory_equal(first + 16, second + 16, 16);     /* stretched once: one salt ... */
    assert_memory_not_equal(first + 32, second + 32, 24); /* ... but never one nonce */
    assert_memory_not_equal(first + 64, second + 64, 1000);
    assert_ok(crypt_wants_passphrase(cipher, &wants, &err), err);
    assert_true(wants);
    assert_ok(crypt_decrypt_file(cipher, out, same, &err), err);
    assert_int_equal(unlink(out), 0);
    assert_ok(crypt_plain_sha256(cipher, key, NULL, hex, &err), err);
    assert_fails(crypt_decrypt_file(cipher, out, wrong, &err), err, ERR_DENIED, "wrong passphrase");
    assert_fails(crypt_key_check(cipher, wrong, &err), err, ERR_DENIED, "wrong passphrase");
    assert_ok(crypt_key_check(cipher, same, &err), err);
    /* a header that asks for hours or for all memory is not obeyed */
    second[9] = 255;
    put(second, size);
    assert_refused(ERR_CORRUPT, "cannot read");
    second[9] = 4;
    second[10] = 11;
    put(second, size);
    assert_refused(ERR_CORRUPT, "cannot read");
}

static void a_key_file_is_no_passphrase(void **state)
{
    struct error err = ERROR_NONE;
    auto_crypt_key *phrase = NULL;
    size_t size = 0;
    autofree uint8_t *bytes = encrypt(10, &size);
    autofree char *cipher = at("plain.enc");
    bool wants = true;

    (void)state;
    assert_ok(crypt_key_from_passphrase("correct horse", &phrase, &err), err);
    assert_ok(crypt_wants_passphrase(cipher, &wants, &err), err);
    assert_false(wants);
    assert_fails(crypt_key_check(cipher, phrase, &err), err, ERR_DENIED, "with a key file");
    bytes[8] = 2;
    bytes[9] = 3;
    put(bytes, size);
    assert_refused(ERR_DENIED, "with a passphrase");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_size_comes_back, start, end),
        cmocka_unit_test_setup_teardown(every_damage_is_refused_and_leaves_no_file, start, end),
        cmocka_unit_test_setup_teardown(a_passphrase_opens_what_it_closed, start, end),
        cmocka_unit_test_setup_teardown(a_key_file_is_no_passphrase, start, end),
        cmocka_unit_test_setup_teardown(keys_are_told_apart_and_must_be_private, start, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
