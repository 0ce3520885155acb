/* The configuration file: problems with file and line, defaults, expansion, secrets. */
#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/config_schema.h"
#include "common/config_tables.h"
#include "common/json.h"

struct fixture {
    char *dir;
    struct strbuf problems;
    struct error err;
};

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);

    f->dir = scratch_make();
    strbuf_init(&f->problems, CONFIG_PROBLEMS_BYTES_MAX);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    scratch_remove(f->dir);
    strbuf_release(&f->problems);
    free(f);
    return 0;
}

static int load(struct fixture *f, const char *text, struct config_file **out)
{
    autofree char *path = scratch_file(f->dir, "config.yaml", text);

    strbuf_reset(&f->problems);
    return config_file_load(path, out, &f->problems, &f->err);
}

/* The section's table, to release what config_section filled. */
static const struct config_key *keys_of(const char *section)
{
    for (size_t i = 0; i < config_tables_count; i++) {
        if (strcmp(config_tables[i].section, section) == 0)
            return config_tables[i].keys;
    }
    return NULL;
}

static void expect_problem(struct fixture *f, const char *text)
{
    if (strstr(f->problems.data, text) == NULL)
        fail_msg("'%s' is not among:\n%s", text, f->problems.data);
}

static void every_default_is_valid_and_documented(void **state)
{
    struct fixture *f = *state;
    auto_config_file *file = NULL;
    auto_strbuf help;

    assert_ok(load(f, "database: {url: x}\n", &file), f->err);
    strbuf_init(&help, 100000);
    config_help(&help);
    assert_false(help.overflowed);
    for (size_t i = 0; i < config_tables_count; i++) {
        autofree void *section = xcalloc(1, config_tables[i].size);
        assert_ok(config_section(file, config_tables[i].section, section, &f->problems, &f->err),
                  f->err);
        config_release(config_tables[i].keys, section);
        for (const struct config_key *key = config_tables[i].keys; key->name != NULL; key++) {
            assert_non_null(strstr(help.data, key->name));
            assert_true(key->help[0] != '\0');
        }
    }
}

static void all_unknown_keys_come_together_with_lines_and_hints(void **state)
{
    struct fixture *f = *state;
    struct config_file *file = NULL;

    assert_fails(load(f,
                      "daemon:\n  adress: x\n  zzzzzzzzzz: 1\nnosuchsection: {}\nexports: {}\n"
                      "providers:\n  vs:\n    hots: a\nwebhooks:\n  endpoints:\n  - ur: x\n"
                      "roles: {a: b}\nredis: text\n",
                      &file),
                 f->err, ERR_INVALID, "config.yaml:2: daemon.adress");
    expect_problem(f, "config.yaml:2: daemon.adress: unknown key (did you mean 'address'?)");
    expect_problem(f, "config.yaml:3: daemon.zzzzzzzzzz: unknown key (--help");
    expect_problem(f, "config.yaml:4: nosuchsection: unknown key");
    expect_problem(f, "config.yaml:5: exports: unknown key (did you mean 'export'?)");
    expect_problem(f, "config.yaml:8: providers.vs.hots: unknown key (did you mean 'host'?)");
    expect_problem(f, "config.yaml:11: webhooks.endpoints.ur: unknown key (did you mean 'url'?)");
    expect_problem(f, "config.yaml:12: roles.a: must be a list");
    expect_problem(f, "config.yaml:13: redis: must be a map");
}

static void wrong_shapes_are_told(void **state)
{
    static const struct {
        const char *text;
        const char *problem;
    } bad[] = {
        {"- a\n", "must be a map of sections"},
        {"providers: x\n", "must be a map of providers"},
        {"roles: x\n", "must be a map: role"},
        {"webhooks: {endpoints: x}\n", "webhooks.endpoints: must be a list"},
        {"webhooks: {endpoints: [x]}\n", "must be a map of settings"},
        {"a: [\n", "config.yaml: line"},
        {"daemon: {address: a, address: b}\n", "given twice"},
    };
    struct fixture *f = *state;
    struct config_file *file = NULL;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_fails(load(f, bad[i].text, &file), f->err, ERR_INVALID, "");
        expect_problem(f, bad[i].problem);
    }
}

static void a_missing_file_is_an_error_only_when_named(void **state)
{
    struct fixture *f = *state;
    struct config_file *file = NULL;

    assert_fails(config_file_load("/nonexistent/x.yaml", &file, &f->problems, &f->err), f->err,
                 ERR_INVALID, "/nonexistent/x.yaml");
    assert_fails(config_file_load("/tmp", &file, NULL, &f->err), f->err, ERR_INVALID,
                 "not a regular file");
}

static void values_are_checked_with_file_and_line(void **state)
{
    struct fixture *f = *state;
    auto_config_file *file = NULL;
    struct daemon_config daemon;
    struct database_config database;

    assert_ok(load(f,
                   "daemon:\n  workers: 65\n  drain_ms: soon\n  dev_mode: [a]\n  address: \"\"\n",
                   &file),
              f->err);
    assert_fails(config_section(file, "daemon", &daemon, &f->problems, &f->err), f->err,
                 ERR_INVALID, "config.yaml:2: daemon.workers: '65' is not a number from 1 to 64");
    expect_problem(f, "config.yaml:3: daemon.drain_ms: 'soon' is not a duration");
    expect_problem(f, "config.yaml:4: daemon.dev_mode: must be a single value");
    expect_problem(f, "config.yaml:5: daemon.address: must not be empty");
    assert_fails(config_section(file, "database", &database, &f->problems, &f->err), f->err,
                 ERR_INVALID, "config.yaml:1: database: url: is required");
}

static void environment_is_expanded_only_where_asked(void **state)
{
    struct fixture *f = *state;
    auto_config_file *file = NULL;
    struct database_config database;
    struct daemon_config daemon;
    struct redis_config redis;

    assert_int_equal(setenv("UNIT_HOST", "db.example", 1), 0);
    assert_int_equal(unsetenv("UNIT_ABSENT"), 0);
    assert_ok(load(f,
                   "database:\n  url: postgresql://${UNIT_HOST}/x\n  password: $${literal}\n"
                   "redis:\n  password: ${UNIT_ABSENT}\n",
                   &file),
              f->err);
    assert_ok(config_section(file, "database", &database, &f->problems, &f->err), f->err);
    assert_string_equal(database.url, "postgresql://db.example/x");
    assert_string_equal(database.password, "${literal}");
    config_release(keys_of("database"), &database);
    assert_ok(config_section(file, "daemon", &daemon, &f->problems, &f->err), f->err);
    config_release(keys_of("daemon"), &daemon);
    assert_fails(config_section(file, "redis", &redis, &f->problems, &f->err), f->err, ERR_INVALID,
                 "environment variable 'UNIT_ABSENT' is not set");
}

static void secrets_come_from_a_file_or_directly_never_both(void **state)
{
    struct fixture *f = *state;
    autofree char *secret = scratch_file(f->dir, "pw", "s3cret\n");
    autofree char *text = xasprintf("redis: {password_file: %s}\n", secret);
    autofree char *both = xasprintf("redis: {password_file: %s, password: x}\n", secret);
    autofree char *other = xasprintf("redis: {password: x, password_file: %s}\n", secret);
    auto_config_file *file = NULL;
    auto_config_file *file2 = NULL;
    auto_config_file *file3 = NULL;
    struct redis_config redis;

    assert_ok(load(f, text, &file), f->err);
    assert_ok(config_section(file, "redis", &redis, &f->problems, &f->err), f->err);
    assert_string_equal(redis.password, "s3cret");
    config_release(keys_of("redis"), &redis);
    assert_ok(load(f, both, &file2), f->err);
    assert_fails(config_section(file2, "redis", &redis, &f->problems, &f->err), f->err, ERR_INVALID,
                 "also given");
    assert_ok(load(f, other, &file3), f->err);
    assert_fails(config_section(file3, "redis", &redis, &f->problems, &f->err), f->err, ERR_INVALID,
                 "also given");
}

static void an_empty_list_item_is_no_directory(void **state)
{
    struct fixture *f = *state;
    auto_config_file *file = NULL;
    auto_config_file *file2 = NULL;
    struct export_config export;

    assert_ok(load(f, "export: {allowed_paths: \"\"}\n", &file), f->err);
    assert_ok(config_section(file, "export", &export, &f->problems, &f->err), f->err);
    assert_int_equal(export.allowed_paths.count, 0);
    config_release(keys_of("export"), &export);
    assert_ok(load(f, "export: {allowed_paths: [/a, \"\"]}\n", &file2), f->err);
    assert_fails(config_section(file2, "export", &export, &f->problems, &f->err), f->err,
                 ERR_INVALID, "an item is empty");
}

static void lists_replace_their_default(void **state)
{
    struct fixture *f = *state;
    auto_config_file *file = NULL;
    struct bus_config bus;

    assert_ok(load(f, "bus:\n  lease: [ipc:///a, ipc:///b]\n  events: ipc:///c\n", &file), f->err);
    assert_ok(config_section(file, "bus", &bus, &f->problems, &f->err), f->err);
    assert_int_equal(bus.lease.count, 2);
    assert_string_equal(bus.lease.items[1], "ipc:///b");
    assert_int_equal(bus.events.count, 1);
    assert_string_equal(bus.events.items[0], "ipc:///c");
    assert_string_equal(bus.announce.items[0], "tcp://127.0.0.1:7102");
    config_release(keys_of("bus"), &bus);
}

static void free_sections_are_expanded_json(void **state)
{
    struct fixture *f = *state;
    auto_config_file *file = NULL;
    auto_json *providers = NULL;
    auto_json *absent = NULL;
    json_t *webhooks = NULL;

    assert_int_equal(setenv("UNIT_HOST", "vc.example", 1), 0);
    assert_ok(load(f,
                   "providers:\n  vs: {kind: vsphere, host: \"${UNIT_HOST}\", insecure: true}\n"
                   "webhooks:\n  endpoints:\n  - {url: \"${UNIT_ABSENT}\"}\n",
                   &file),
              f->err);
    assert_ok(config_section_json(file, "providers", &providers, &f->err), f->err);
    assert_string_equal(json_str(json_object_get(providers, "vs"), "host"), "vc.example");
    assert_true(json_is_true(json_object_get(json_object_get(providers, "vs"), "insecure")));
    assert_ok(config_section_json(file, "roles", &absent, &f->err), f->err);
    assert_true(json_is_null(absent));
    assert_fails(config_section_json(file, "webhooks", &webhooks, &f->err), f->err, ERR_INVALID,
                 "config.yaml:5: webhooks");
}

struct sample {
    char *name;
    char *token;
    bool on;
    uint32_t count;
    uint64_t big;
    uint64_t size;
    int64_t wait_ms;
    struct config_list list;
};

static const struct config_key sample_keys[] = {
    {"name", CONFIG_STRING, offsetof(struct sample, name), NULL, 1, 8, CONFIG_REQUIRED, "a name"},
    {"token", CONFIG_STRING, offsetof(struct sample, token), "", 0, 0, CONFIG_SECRET, "a token"},
    {"on", CONFIG_BOOL, offsetof(struct sample, on), "true", 0, 0, 0, "a switch"},
    {"count", CONFIG_U32, offsetof(struct sample, count), "3", 1, 9, 0, "a count"},
    {"big", CONFIG_U64, offsetof(struct sample, big), "5", 0, 0, 0, "a number"},
    {"size", CONFIG_SIZE, offsetof(struct sample, size), "1M", 0, 0, 0, "a size"},
    {"wait", CONFIG_DURATION_MS, offsetof(struct sample, wait_ms), "1s", 0, 0, 0, "a time"},
    {"list", CONFIG_STRING_LIST, offsetof(struct sample, list), "a", 0, 0, 0, "a list"},
    {0},
};

static void json_settings_go_through_the_same_table(void **state)
{
    struct fixture *f = *state;
    auto_json *o = json_pack("{s:s, s:b, s:i, s:s, s:s, s:[s,s], s:n}", "name", "x", "on", 0,
                             "count", 4, "size", "2M", "wait", "5m", "list", "p", "q", "token");
    struct sample sample;

    memset(&sample, 0xa5, sizeof sample); /* the function zeroes what it fills */
    assert_ok(config_from_json(sample_keys, o, &sample, &f->err), f->err);
    assert_string_equal(sample.name, "x");
    assert_string_equal(sample.token, "");
    assert_false(sample.on);
    assert_int_equal(sample.count, 4);
    assert_int_equal(sample.big, 5);
    assert_int_equal(sample.size, 2 * MIB);
    assert_int_equal(sample.wait_ms, 300000);
    assert_int_equal(sample.list.count, 2);
    config_release(sample_keys, &sample);
    assert_null(sample.name);
}

static void wrong_json_settings_name_the_key(void **state)
{
    static const struct {
        const char *json;
        const char *message;
    } bad[] = {
        {"{}", "name: is required"},
        {"{\"name\":\"x\",\"nam\":1}", "unknown setting 'nam'"},
        {"{\"name\":7}", "name: has the wrong type"},
        {"{\"name\":\"123456789\"}", "name: length is not from 1 to 8"},
        {"{\"name\":\"x\",\"on\":1}", "on: has the wrong type"},
        {"{\"name\":\"x\",\"count\":0}", "count: '0' is not a number from 1 to 9"},
        {"{\"name\":\"x\",\"count\":-1}", "count: '-1'"},
        {"{\"name\":\"x\",\"count\":1.5}", "count: has the wrong type"},
        {"{\"name\":\"x\",\"list\":[1]}", "list: must be a list of texts"},
        {"{\"name\":\"x\",\"list\":{}}", "list: has the wrong type"},
        {"{\"name\":\"x\",\"list\":[\"\"]}", "list: an item is empty"},
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_json *o = NULL;
        struct sample sample;
        assert_ok(json_parse(bad[i].json, strlen(bad[i].json), 1000, &o, &f->err), f->err);
        assert_fails(config_from_json(sample_keys, o, &sample, &f->err), f->err, ERR_INVALID,
                     bad[i].message);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(every_default_is_valid_and_documented),
        TEST(all_unknown_keys_come_together_with_lines_and_hints),
        TEST(wrong_shapes_are_told),
        TEST(a_missing_file_is_an_error_only_when_named),
        TEST(values_are_checked_with_file_and_line),
        TEST(environment_is_expanded_only_where_asked),
        TEST(secrets_come_from_a_file_or_directly_never_both),
        TEST(an_empty_list_item_is_no_directory),
        TEST(lists_replace_their_default),
        TEST(free_sections_are_expanded_json),
        TEST(json_settings_go_through_the_same_table),
        TEST(wrong_json_settings_name_the_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
