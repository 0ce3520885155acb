/* The examples that AWS publishes for Signature Version 4 with S3. */
#include "services/exporter/targets/s3/sign.h"
#include "services/exporter/targets/target.h"

#include <string.h>

#include "tests/unit/common/unit.h"

#define EMPTY_SHA256 "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define DATE         "20130524T000000Z"

static const struct s3_credentials credentials = {
    "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1"};

static void check(const struct s3_to_sign *request, const char *signed_headers,
                  const char *signature)
{
    struct error err = ERROR_NONE;
    autofree char *got = NULL;
    autofree char *wanted =
        xasprintf("AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/"
                  "aws4_request,SignedHeaders=%s,Signature=%s",
                  signed_headers, signature);

    assert_int_equal(s3_sign(request, &credentials, DATE, &got, &err), 0);
    assert_string_equal(got, wanted);
}

static void add(struct s3_to_sign *request, const char *name, const char *value)
{
    request->headers[request->header_count++] = (struct s3_pair){name, value};
}

static struct s3_to_sign request_of(const char *method, const char *path, const char *sha256)
{
    struct s3_to_sign request = {.method = method, .path = path, .payload_sha256 = sha256};

    add(&request, "x-amz-date", DATE);
    add(&request, "x-amz-content-sha256", sha256);
    add(&request, "host", "examplebucket.s3.amazonaws.com");
    return request;
}

static void a_get_of_a_range_is_signed_as_published(void **state)
{
    struct s3_to_sign request = request_of("GET", "/test.txt", EMPTY_SHA256);

    (void)state;
    add(&request, "range", "bytes=0-9");
    check(&request, "host;range;x-amz-content-sha256;x-amz-date",
          "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

static void a_put_is_signed_as_published(void **state)
{
    autofree char *path = s3_encode_key("/test$file.text");
    struct s3_to_sign request =
        request_of("PUT", path, "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");

    (void)state;
    assert_string_equal(path, "/test%24file.text");
    add(&request, "date", "Fri, 24 May 2013 00:00:00 GMT");
    add(&request, "x-amz-storage-class", "REDUCED_REDUNDANCY");
    check(&request, "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
          "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}

static void a_query_without_value_is_signed_as_published(void **state)
{
    struct s3_to_sign request = request_of("GET", "/", EMPTY_SHA256);

    (void)state;
    request.query[request.query_count++] = (struct s3_pair){"lifecycle", ""};
    check(&request, "host;x-amz-content-sha256;x-amz-date",
          "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
}

static void a_listing_is_signed_as_published_whatever_the_order(void **state)
{
    struct s3_to_sign request = request_of("GET", "/", EMPTY_SHA256);

    (void)state;
    request.query[request.query_count++] = (struct s3_pair){"prefix", "J"};
    request.query[request.query_count++] = (struct s3_pair){"max-keys", "2"};
    check(&request, "host;x-amz-content-sha256;x-amz-date",
          "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

static void keys_are_encoded_once_and_keep_their_slashes(void **state)
{
    autofree char *key = s3_encode_key("a b/\xc3\xbc+&=~%/-_.");

    (void)state;
    assert_string_equal(key, "a%20b/%C3%BC%2B%26%3D~%25/-_.");
}

static void a_request_that_is_too_long_is_refused(void **state)
{
    autofree char *value = xcalloc(S3_SIGNING_BYTES + 1, 1);
    struct s3_to_sign request = request_of("GET", "/", EMPTY_SHA256);
    struct error err = ERROR_NONE;
    char *none = NULL;

    (void)state;
    memset(value, 'x', S3_SIGNING_BYTES);
    add(&request, "x-amz-meta-x", value);
    assert_fails(s3_sign(&request, &credentials, DATE, &none, &err), err, ERR_LIMIT, "signed");
}

static uint64_t parts_of(const struct target_class *class, uint64_t size)
{
    uint64_t part = class->part_size(size);

    assert_true(part % MIB == 0);
    return size / part + (size % part != 0);
}

/* 10,000 parts of 10 MiB would end at 97 GiB. */
static void parts_grow_with_the_object(void **state)
{
    (void)state;
    assert_true(target_s3.part_size(0) == 16 * MIB);
    assert_true(target_s3.part_size(97 * GIB) == 16 * MIB);
    assert_true(target_s3.part_size(UINT64_C(9500) * 16 * MIB) == 16 * MIB);
    assert_true(target_s3.part_size(UINT64_C(9500) * 16 * MIB + 1) == 17 * MIB);
    for (uint64_t size = GIB; size <= UINT64_C(46) * 1024 * GIB; size += size / 3 + 12345) {
        assert_true(parts_of(&target_s3, size) <= TARGET_PARTS_MAX);
        assert_true(parts_of(&target_sftp, size) <= TARGET_PARTS_MAX);
        assert_true(target_s3.part_size(size) <= 5 * GIB);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_get_of_a_range_is_signed_as_published),
        cmocka_unit_test(a_put_is_signed_as_published),
        cmocka_unit_test(a_query_without_value_is_signed_as_published),
        cmocka_unit_test(a_listing_is_signed_as_published_whatever_the_order),
        cmocka_unit_test(keys_are_encoded_once_and_keep_their_slashes),
        cmocka_unit_test(a_request_that_is_too_long_is_refused),
        cmocka_unit_test(parts_grow_with_the_object),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
