/* The section "uploads" of the configuration, and the state file of an upload. */
#include "services/exporter/targets/upload.h"

#include <openssl/evp.h>
#include <string.h>

#include "common/autos.h"
#include "common/config_tables.h"
#include "common/json.h"
#include "services/exporter/formats/running_sha256.h"
#include "tests/unit/common/unit.h"

#define SHA "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

static json_t *json_of(const char *text)
{
    struct error err = ERROR_NONE;
    json_t *json = NULL;

    if (json_parse(text, strlen(text), MIB, &json, &err) < 0)
        fail_msg("%s", err.message);
    return json;
}

static const char uploads_text[] =
    "{\"all\": {\"url\": \"s3://bucket\", \"access_key_id\": \"a\", \"secret_access_key\": \"s\"},"
    " \"part\": {\"url\": \"s3://bucket/deep/er\", \"access_key_id\": \"b\","
    "  \"secret_access_key\": \"s\", \"path_style\": false, \"parallel\": 9},"
    " \"nas\": {\"url\": \"sftp://nas\", \"username\": \"u\", \"password\": \"p\"}}";

static void the_entry_with_the_longest_path_is_used(void **state)
{
    static const struct {
        const char *url;
        const char *key;
    } wanted[] = {{"s3://bucket/x", "a"},
                  {"s3://bucket/deep", "a"},
                  {"s3://bucket/deep/erx", "a"},
                  {"s3://bucket/deep/er", "b"},
                  {"s3://bucket/deep/er/x", "b"}};
    auto_json *uploads = json_of(uploads_text);
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(target_settings_check(uploads, &err), 0);
    for (size_t i = 0; i < ARRAY_LEN(wanted); i++) {
        auto_target_settings settings = {0};
        struct upload_url url;
        assert_int_equal(upload_url_parse(wanted[i].url, &url, &err), 0);
        assert_int_equal(target_settings_find(uploads, &url, &settings, &err), 0);
        assert_string_equal(settings.access_key_id, wanted[i].key);
    }
}

static void without_an_entry_there_are_no_credentials(void **state)
{
    auto_json *uploads = json_of(uploads_text);
    struct target_settings settings;
    struct error err = ERROR_NONE;
    struct upload_url url;

    (void)state;
    (void)unsetenv("AWS_ACCESS_KEY_ID");
    assert_int_equal(upload_url_parse("sftp://other/x", &url, &err), 0);
    assert_fails(target_settings_find(uploads, &url, &settings, &err), err, ERR_DENIED,
                 "sftp://other/x");
    error_clear(&err);
    assert_int_equal(upload_url_parse("s3://bucket2/x", &url, &err), 0);
    assert_fails(target_settings_find(uploads, &url, &settings, &err), err, ERR_DENIED,
                 "AWS_ACCESS_KEY_ID");
}

static void wrong_entries_are_named_without_their_secrets(void **state)
{
    static const struct {
        const char *entry;
        const char *part;
    } wrong[] = {
        {"{\"url\": \"s3://bucket\", \"access_key_id\": \"a\"}", "secret_access_key is missing"},
        {"{\"url\": \"sftp://h\", \"username\": \"u\"}", "key_file or password"},
        {"{\"url\": \"sftp://h\", \"password\": \"hunter2\"}", "username is missing"},
        {"{\"url\": \"gs://b\"}", "not available"},
        {"{\"access_key_id\": \"a\"}", "url"},
        {"{\"url\": \"s3://bucket\", \"wings\": 2}", "wings"},
        {"{\"url\": \"s3://bucket\", \"access_key_id\": \"a\", \"secret_access_key\": "
         "\"hunter2\", \"checksum\": \"crc\"}",
         "checksum"},
        {"{\"url\": \"s3://bucket\", \"access_key_id\": \"a\", \"secret_access_key\": "
         "\"hunter2\", \"path_style\": \"maybe\"}",
         "path_style"},
        {"{\"url\": \"s3://bucket\", \"parallel\": 99}", "parallel"},
        {"[]", "map"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        autofree char *text = xasprintf("{\"mine\": %s}", wrong[i].entry);
        auto_json *uploads = json_of(text);
        struct error err = ERROR_NONE;
        if (target_settings_check(uploads, &err) == 0)
            fail_msg("accepted: %s", text);
        assert_int_equal(err.code, strstr(text, "gs:") != NULL ? ERR_NOT_AVAILABLE : ERR_INVALID);
        if (strstr(err.message, "uploads.mine") == NULL ||
            strstr(err.message, wrong[i].part) == NULL)
            fail_msg("'%s' does not tell '%s'", err.message, wrong[i].part);
        assert_null(strstr(err.message, "hunter2"));
    }
}

/* The file's reader refuses other keys, so each of its list must be known here. */
static void every_key_of_the_file_is_known(void **state)
{
    (void)state;
    for (size_t i = 0; config_upload_keys[i] != NULL; i++) {
        autofree char *text = xasprintf("{\"mine\": {\"%s\": {}}}", config_upload_keys[i]);
        auto_json *uploads = json_of(text);
        struct error err = ERROR_NONE;
        assert_fails(target_settings_check(uploads, &err), err, ERR_INVALID, "wrong type");
    }
}

/* ---- the state file ---- */

#define HEAD                                                                                  \
    "{\"url\":\"s3://b\",\"name\":\"n\",\"size\":25,\"part_size\":10,\"sha256\":\"" SHA "\"," \
    "\"id\":\"u1\"}\n"
#define PART2 "{\"part\":2,\"sha256\":\"" SHA "\",\"tag\":\"t\"}\n"

static void a_state_tells_the_parts_that_are_there(void **state)
{
    static const char text[] = HEAD PART2 "{\"part\":3,\"sha";
    auto_upload_state *read = NULL;
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(upload_state_parse(text, strlen(text), &read, &err), 0);
    assert_string_equal(read->id, "u1");
    assert_int_equal(read->part_count, 3);
    assert_string_equal(read->parts[0].tag, "");
    assert_string_equal(read->parts[1].tag, "t");
    assert_true(read->parts[2].offset == 20 && read->parts[2].size == 5);
    assert_false(read->done);
    assert_int_equal(read->whole_bytes, strlen(HEAD PART2));
}

static void a_damaged_state_is_none(void **state)
{
    static const char *const wrong[] = {
        "",
        "{\"url\"",
        "[]\n",
        "nonsense\n",
        "{\"size\":-1,\"part_size\":1,\"sha256\":\"" SHA "\"}\n",
        "{\"size\":1,\"part_size\":0,\"sha256\":\"" SHA "\"}\n",
        "{\"size\":100000,\"part_size\":1,\"sha256\":\"" SHA "\"}\n",
        "{\"size\":1,\"part_size\":1,\"sha256\":\"12\"}\n",
        HEAD "{\"part\":4,\"sha256\":\"" SHA "\",\"tag\":\"t\"}\n",
        HEAD "{\"part\":0,\"sha256\":\"" SHA "\",\"tag\":\"t\"}\n",
        HEAD "{\"part\":1,\"sha256\":\"" SHA "\",\"tag\":\"\"}\n",
        HEAD "{\"part\":1,\"sha256\":\"\",\"tag\":\"t\"}\n",
        HEAD "{\"part\":1,\"sha256\":\"" SHA "\",\"tag\":\"t\",\"size\":0}\n",
        HEAD "garbage\n" PART2,
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct upload_state *read = NULL;
        struct error err = ERROR_NONE;
        assert_fails(upload_state_parse(wrong[i], strlen(wrong[i]), &read, &err), err, ERR_CORRUPT,
                     "state file");
    }
}

#define GROWING                                                                           \
    "{\"url\":\"s3://b\",\"name\":\"n\",\"size\":25,\"part_size\":10,\"identity\":\"x\"," \
    "\"id\":\"u1\"}\n"
#define MD5 "d41d8cd98f00b204e9800998ecf8427e"

static void the_state_of_a_growing_file_tells_more(void **state)
{
    static const char text[] =
        GROWING "{\"part\":1,\"sha256\":\"" SHA "\",\"md5\":\"" MD5 "\",\"tag\":\"t\",\"after\":"
                "\"" SHA "\"}\n"
                "{\"part\":2,\"sha256\":\"" SHA "\",\"md5\":\"" MD5 "\",\"tag\":\"t\","
                "\"local\":true}\n"
                "{\"done\":true,\"size\":14,\"sha256\":\"" SHA "\"}\n";
    static const char *const wrong[] = {
        GROWING "{\"part\":1,\"sha256\":\"" SHA "\",\"tag\":\"t\"}\n",
        GROWING "{\"part\":1,\"sha256\":\"" SHA "\",\"md5\":\"" MD5 "\",\"tag\":\"t\",\"after\":"
                "\"12\"}\n",
        GROWING "{\"done\":true}\n",
        GROWING "{\"done\":true,\"size\":26,\"sha256\":\"" SHA "\"}\n",
        GROWING "{\"done\":true,\"size\":14}\n",
    };
    auto_upload_state *read = NULL;
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(upload_state_parse(text, strlen(text), &read, &err), 0);
    assert_string_equal(read->identity, "x");
    assert_true(read->marks[0].known && !read->marks[0].local);
    assert_true(!read->marks[1].known && read->marks[1].local && !read->marks[2].known);
    assert_true(read->done && read->done_size == 14);
    assert_string_equal(read->sha256, SHA);
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct upload_state *none = NULL;
        assert_fails(upload_state_parse(wrong[i], strlen(wrong[i]), &none, &err), err, ERR_CORRUPT,
                     "state file");
        error_clear(&err);
    }
}

/* Past 2^29 bytes, where the count of bits takes its second word, and through every save. */
static void a_running_digest_survives_being_put_away(void **state)
{
    struct running_sha256 *sha = running_sha256_new();
    autofree uint8_t *piece = xcalloc(1, 8 * MIB);
    EVP_MD_CTX *whole = EVP_MD_CTX_new();
    uint8_t raw[DIGEST_BYTES];
    uint8_t saved[DIGEST_BYTES];
    char hex[DIGEST_HEX_SIZE];
    char wanted[DIGEST_HEX_SIZE];

    (void)state;
    assert_int_equal(EVP_DigestInit_ex(whole, EVP_sha256(), NULL), 1);
    for (uint64_t at = 0; at < 600 * MIB; at += 8 * MIB) {
        memset(piece, (int)(at / MIB), 8 * MIB);
        running_sha256_add(sha, piece, 8 * MIB);
        assert_int_equal(EVP_DigestUpdate(whole, piece, 8 * MIB), 1);
        running_sha256_save(sha, saved);
        running_sha256_free(sha);
        sha = running_sha256_new();
        running_sha256_restore(sha, saved, at + 8 * MIB);
    }
    running_sha256_add(sha, "tail", 4);
    assert_int_equal(EVP_DigestUpdate(whole, "tail", 4), 1);
    running_sha256_end(sha, hex);
    assert_int_equal(EVP_DigestFinal_ex(whole, raw, NULL), 1);
    hex_encode(raw, sizeof raw, wanted);
    assert_string_equal(hex, wanted);
    running_sha256_free(sha);
    EVP_MD_CTX_free(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_entry_with_the_longest_path_is_used),
        cmocka_unit_test(without_an_entry_there_are_no_credentials),
        cmocka_unit_test(wrong_entries_are_named_without_their_secrets),
        cmocka_unit_test(every_key_of_the_file_is_known),
        cmocka_unit_test(a_state_tells_the_parts_that_are_there),
        cmocka_unit_test(a_damaged_state_is_none),
        cmocka_unit_test(the_state_of_a_growing_file_tells_more),
        cmocka_unit_test(a_running_digest_survives_being_put_away),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
