/* export.json as a stranger may have written it. */
#include "tests/unit/exporter/formats/disk_fixture.h"

#include "common/json.h"
#include "services/exporter/engine/export_record.h"

#define SHA "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

static json_t *good(void)
{
    json_t *json =
        json_pack("{s:i, s:s, s:[{s:s}], s:[{s:s, s:s, s:s, s:i}]}", "record_version", 1,
                  "export_id", "exp-0123456789abcdef", "disks", "disk_id", "2000", "files", "name",
                  "web-disk1.raw", "type", "disk", "sha256", SHA, "size", 10);

    assert_non_null(json);
    return json;
}

static json_t *first_file(json_t *document)
{
    return json_array_get(json_object_get(document, "files"), 0);
}

static void set(json_t *object, const char *key, json_t *value)
{
    assert_int_equal(json_object_set_new(object, key, value), 0);
}

static enum error_code parse_json(json_t *document)
{
    autofree char *text = json_text(document);
    struct export_record *record = NULL;
    struct error err = ERROR_NONE;

    json_decref(document);
    if (export_record_parse(text, strlen(text), &record, &err) == 0)
        assert_string_equal(record->files[0].name, "web-disk1.raw");
    export_record_free(record);
    return err.code;
}

static void a_good_record_is_read(void **state)
{
    (void)state;
    assert_int_equal(parse_json(good()), ERR_NONE);
}

static void names_with_directories_do_not_get_in(void **state)
{
    static const char *const names[] = {"../x", "a/b", "", ".", "..", "export.json", "a\nb"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        json_t *document = good();
        set(first_file(document), "name", json_string(names[i]));
        assert_int_equal(parse_json(document), ERR_CORRUPT);
    }
}

static void a_name_twice_is_refused(void **state)
{
    json_t *document = good();

    (void)state;
    assert_int_equal(json_array_append_new(json_object_get(document, "files"),
                                           json_deep_copy(first_file(document))),
                     0);
    assert_int_equal(parse_json(document), ERR_CORRUPT);
}

static void files_need_size_type_and_digest(void **state)
{
    static const char *const keys[] = {"size", "type", "sha256"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        json_t *document = good();
        assert_int_equal(json_object_del(first_file(document), keys[i]), 0);
        assert_int_equal(parse_json(document), ERR_CORRUPT);
        document = good();
        set(first_file(document), keys[i], json_integer(-1));
        assert_int_equal(parse_json(document), ERR_CORRUPT);
    }
}

static void other_versions_and_shapes_are_refused(void **state)
{
    static const char *const texts[] = {
        "", "[]", "null", "{}", "{\"record_version\":2}", "{\"record_version\":1,", "\xff\xfe"};
    struct error err = ERROR_NONE;
    struct export_record *record = NULL;
    json_t *document = good();

    (void)state;
    set(document, "disks", json_array());
    assert_int_equal(parse_json(document), ERR_CORRUPT);
    document = good();
    set(document, "files", json_object());
    assert_int_equal(parse_json(document), ERR_CORRUPT);
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        assert_int_equal(export_record_parse(texts[i], strlen(texts[i]), &record, &err), -1);
        assert_int_equal(err.code, ERR_CORRUPT);
        error_clear(&err);
    }
}

static void more_files_than_an_export_can_have_are_refused(void **state)
{
    json_t *document = good();

    (void)state;
    for (size_t i = 0; i < EXPORT_FILES_MAX; i++) {
        json_t *file = json_deep_copy(first_file(document));
        autofree char *name = xasprintf("file-%zu", i);
        set(file, "name", json_string(name));
        assert_int_equal(json_array_append_new(json_object_get(document, "files"), file), 0);
    }
    assert_int_equal(parse_json(document), ERR_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_record_is_read),
        cmocka_unit_test(names_with_directories_do_not_get_in),
        cmocka_unit_test(a_name_twice_is_refused),
        cmocka_unit_test(files_need_size_type_and_digest),
        cmocka_unit_test(other_versions_and_shapes_are_refused),
        cmocka_unit_test(more_files_than_an_export_can_have_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
