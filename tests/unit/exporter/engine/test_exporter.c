/* The exporter process around a provider of this test, against a scripted scheduler: key, record of
 * capabilities, inventory, vm_info, validate, release. */
#include "tests/unit/common/scheduler_fixture.h"

#include "common/autos.h"
#include "common/json.h"
#include "common/seal.h"
#include "common/worker.h"
#include "services/exporter/engine/exporter.h"

/* ---- a provider ---- */

#define VMS_MANY 1203

struct fake_config {
    char *host; /* "up", "down", "broken" */
    char *password;
    int64_t timeout_ms;
};

static const struct config_key fake_keys[] = {
    {"host", CONFIG_STRING, offsetof(struct fake_config, host), NULL, 1, 64, CONFIG_REQUIRED, "h"},
    {"password", CONFIG_STRING, offsetof(struct fake_config, password), "", 0, 64, CONFIG_SECRET,
     "p"},
    {"password_file", CONFIG_FILE, offsetof(struct fake_config, password), NULL, 0, 4095,
     CONFIG_SECRET, "p"},
    {"timeout", CONFIG_DURATION_MS, offsetof(struct fake_config, timeout_ms), "30s", 100, 60000, 0,
     "t"},
    {0},
};

struct provider_session {
    const struct fake_config *config;
};

static int fake_open(const void *config, const atomic_bool *cancelled,
                     struct provider_session **out, struct error *err)
{
    (void)cancelled;
    (void)err;
    *out = xcalloc(1, sizeof **out);
    (*out)->config = config;
    return 0;
}

static void fake_close(struct provider_session *session)
{
    free(session);
}

static int fake_check(struct provider_session *session, struct provider_check *out,
                      struct error *err)
{
    (void)err;
    out->reachable = strcmp(session->config->host, "down") != 0;
    out->authenticated = out->reachable && strcmp(session->config->password, "secret") == 0;
    (void)snprintf(out->version, sizeof out->version, "fake 1");
    (void)snprintf(out->message, sizeof out->message, "%s",
                   !out->reachable       ? "no route"
                   : !out->authenticated ? "wrong password"
                                         : "");
    return 0;
}

static void fill(struct vm *vm, const char *id, const char *name, const char *path)
{
    vm_set_text(&vm->id, id);
    vm_set_text(&vm->name, name);
    vm_set_text(&vm->path, path);
    vm->power = VM_POWER_ON;
}

static const struct {
    const char *id, *name, *path;
} named[] = {
    {"vm-1", "web", "/dc/a/web"},
    {"vm-2", "web", "/dc/b/web"},
    {"vm-3", "Database", "/dc/a/Database"},
    {"vm-4", "vm-1", "/dc/a/vm-1"}, /* someone gave it another's id as name */
};

static int fake_list(struct provider_session *session,
                     int (*page)(void *arg, const struct vm *vms, size_t count, struct error *err),
                     void *arg, struct error *err)
{
    bool many = strcmp(session->config->host, "many") == 0;
    size_t count = many ? VMS_MANY : ARRAY_LEN(named);
    int rc = 0;

    if (strcmp(session->config->host, "broken") == 0)
        return error_set(err, ERR_UNAVAILABLE, "the listing was cut");
    for (size_t i = 0; i < count && rc == 0; i++) {
        auto_vm vm;
        autofree char *long_name = NULL;
        vm_init(&vm);
        fill(&vm, named[i % 4].id, named[i % 4].name, named[i % 4].path);
        if (many && i == 7) { /* over what the bus takes */
            long_name = xmalloc(2000);
            memset(long_name, 'n', 1999);
            long_name[1999] = '\0';
            vm_set_text(&vm.name, long_name);
        }
        rc = page(arg, &vm, 1, err);
    }
    return rc;
}

static int fake_get(struct provider_session *session, const char *vm_id, struct vm *out,
                    struct error *err)
{
    (void)session;
    for (size_t i = 0; i < ARRAY_LEN(named); i++) {
        if (strcmp(named[i].id, vm_id) == 0) {
            fill(out, named[i].id, named[i].name, named[i].path);
            return 0;
        }
    }
    return error_set(err, ERR_NOT_FOUND, "no '%s'", vm_id);
}

static int fake_release(struct provider_session *session, struct task_records *records, bool keep,
                        struct error *err)
{
    const char *snapshot = records->get(records, "snapshot");

    (void)session;
    if (keep)
        return error_set(err, ERR_INTERNAL, "asked to keep '%s'", snapshot);
    return records->put(records, "released", snapshot == NULL ? "nothing" : snapshot, err);
}

static const struct provider_method fake_methods[] = {{"copy", 3, NULL}, {0}};

static const struct provider fake_provider = {
    .name = "fake",
    .title = "A provider for tests",
    .methods = fake_methods,
    .snapshots = true,
    .parallel_reads_max = 2,
    .config_size = sizeof(struct fake_config),
    .config_keys = fake_keys,
    .open = fake_open,
    .close = fake_close,
    .check = fake_check,
    .vm_list = fake_list,
    .vm_get = fake_get,
    .release = fake_release,
};

/* ---- helpers ---- */

static const uint8_t master_bytes[] =
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

static struct seal_key *key_of(const char *audience)
{
    struct error err = ERROR_NONE;
    auto_seal_master *master = NULL;

    assert_ok(seal_master_new((const char *)master_bytes, &master, &err), err);
    return seal_master_derive(master, audience);
}

static void save_key(const struct scheduler *s)
{
    struct error err = ERROR_NONE;
    autofree char *keys = path_in(s, "keys");
    auto_seal_key *key = key_of("provider:fake");

    assert_ok(seal_key_save(key, keys, &err), err);
}

static struct scheduler *start(bool with_key)
{
    struct scheduler *s = scheduler_new("", true);
    autofree char *more =
        xasprintf("export:\n  base_path: %s/base\nsecrets:\n  key_dir: %s/keys\n", s->dir, s->dir);

    write_config(s, more);
    if (with_key)
        save_key(s);
    open_sockets(s);
    worker_spawn(s, "exporter");
    return s;
}

static void lease_sealed(struct scheduler *s, const char *kind, const char *spec,
                         const char *settings, const char *secrets, const char *audience)
{
    auto_seal_key *key = key_of(audience);
    autofree uint8_t *sealed = NULL;
    size_t size = 0;

    seal(key, secrets, strlen(secrets), &sealed, &size);
    scheduler_lease(s, kind, spec,
                    &(struct lease_extras){.provider_name = "lab",
                                           .settings_json = settings,
                                           .sealed = sealed,
                                           .sealed_size = size});
}

static void lease(struct scheduler *s, const char *kind, const char *spec, const char *settings)
{
    lease_sealed(s, kind, spec, settings, "{\"password\": \"secret\"}", "provider:fake");
}

/* The result, new reference. */
static json_t *finish(struct scheduler *s)
{
    struct bus_request *request = scheduler_expect(s, TASK_FINISH);
    const char *text = bus_request_envelope(request)->task_finish->result_json;
    struct error err = ERROR_NONE;
    json_t *result = NULL;

    assert_ok(json_parse(text, strlen(text), MIB, &result, &err), err);
    reply_done(request);
    return result;
}

static void fails(struct scheduler *s, const char *code, const char *message)
{
    struct bus_request *request = scheduler_expect(s, TASK_FAIL);
    const Hypersdk__V1__TaskFail *fail = bus_request_envelope(request)->task_fail;

    assert_string_equal(fail->error_code, code);
    if (strstr(fail->message, message) == NULL)
        fail_msg("'%s' instead of '%s'", fail->message, message);
    reply_done(request);
}

/* ---- tests ---- */

static void it_waits_for_its_key(void **state)
{
    struct scheduler *s = start(false);
    int64_t until = clock_mono_ms() + FIXTURE_WAIT_MS;

    (void)state;
    while (!worker_logged(s, "\"waiting_for_key\"") && clock_mono_ms() < until)
        clock_sleep_ms(20);
    assert_true(worker_logged(s, "provider:fake"));
    scheduler_quiet(s, LEASE_REQUEST, 100);
    save_key(s);
    scheduler_expect(s, LEASE_REQUEST);
    scheduler_end(s);
}

static void it_ends_while_it_waits_for_its_key(void **state)
{
    struct scheduler *s = start(false);
    int64_t until = clock_mono_ms() + FIXTURE_WAIT_MS;

    (void)state;
    while (!worker_logged(s, "\"waiting_for_key\"") && clock_mono_ms() < until)
        clock_sleep_ms(20);
    scheduler_end(s);
}

static void its_record_of_capabilities_is_what_it_has(void **state)
{
    struct scheduler *s = start(true);
    struct bus_request *request = scheduler_expect(s, LEASE_REQUEST);
    const char *text = bus_request_envelope(request)->lease_request->capabilities_json;
    struct error err = ERROR_NONE;
    auto_json *record = NULL;
    const json_t *method;

    (void)state;
    assert_ok(json_parse(text, strlen(text), MIB, &record, &err), err);
    assert_string_equal(json_str(record, "title"), "A provider for tests");
    assert_int_equal(json_u64(record, "parallel_reads_max"), 2);
    method = json_array_get(json_object_get(record, "methods"), 0);
    assert_string_equal(json_str(method, "name"), "copy");
    assert_int_equal(json_u64(method, "priority"), 3);
    assert_true(json_is_true(json_object_get(json_object_get(record, "features"), "snapshot")));
    assert_true(json_is_false(json_object_get(json_object_get(record, "features"), "extents")));
    assert_true(json_is_false(json_object_get(json_object_get(record, "features"), "cbt")));
    scheduler_end(s);
}

static void an_inventory_is_paged_and_ends_with_its_last_page(void **state)
{
    struct scheduler *s = start(true);
    auto_json *result = NULL;
    size_t total = 0;
    bool last = false;

    (void)state;
    lease(s, "inventory", "{}", "{\"host\": \"many\"}");
    while (!last) {
        struct bus_request *request = scheduler_expect(s, INVENTORY_PAGE);
        const Hypersdk__V1__InventoryPage *page = bus_request_envelope(request)->inventory_page;
        total += page->n_vms;
        last = page->last;
        if (total == 1) {
            struct error err = ERROR_NONE;
            auto_json *vm = NULL;
            assert_string_equal(page->vms[0]->id, "vm-1");
            assert_string_equal(page->vms[0]->power_state, "poweredOn");
            assert_ok(
                json_parse(page->vms[0]->vm_json, strlen(page->vms[0]->vm_json), MIB, &vm, &err),
                err);
            assert_string_equal(json_str(vm, "provider"), "lab");
        }
        reply_done(request);
    }
    result = finish(s);
    assert_int_equal(total, VMS_MANY - 1); /* one had a name that the bus does not take */
    assert_int_equal(json_u64(result, "count"), VMS_MANY - 1);
    scheduler_end(s);
}

static void a_listing_that_breaks_has_no_last_page(void **state)
{
    struct scheduler *s = start(true);

    (void)state;
    lease(s, "inventory", "{}", "{\"host\": \"broken\"}");
    fails(s, "unavailable", "the listing was cut");
    scheduler_quiet(s, INVENTORY_PAGE, 50);
    scheduler_end(s);
}

static void expect_vm(struct scheduler *s, const char *identifier, const char *id)
{
    autofree char *spec = xasprintf("{\"vm\": \"%s\"}", identifier);
    auto_json *result = NULL;

    lease(s, "vm_info", spec, "{\"host\": \"up\"}");
    result = finish(s);
    assert_string_equal(json_str(json_object_get(result, "vm"), "id"), id);
}

static void a_vm_is_found_by_id_path_and_exact_name_in_this_order(void **state)
{
    struct scheduler *s = start(true);

    (void)state;
    expect_vm(s, "vm-1", "vm-1"); /* though another VM has that name */
    expect_vm(s, "/dc/b/web", "vm-2");
    expect_vm(s, "Database", "vm-3");
    scheduler_end(s);
}

static void an_ambiguous_or_unknown_name_lists_candidates(void **state)
{
    struct scheduler *s = start(true);

    (void)state;
    lease(s, "vm_info", "{\"vm\": \"web\"}", "{\"host\": \"up\"}");
    fails(s, "conflict",
          "'web' names 2 VMs, use an id or a path: vm-1 (/dc/a/web), vm-2 (/dc/b/web)");
    lease(s, "vm_info", "{\"vm\": \"data\"}", "{\"host\": \"up\"}");
    fails(s, "not_found", "'data'; similar: /dc/a/Database");
    lease(s, "vm_info", "{\"vm\": \"zzz\"}", "{\"host\": \"up\"}");
    fails(s, "not_found", "no VM has the id, path or exact name 'zzz'");
    lease(s, "vm_info", "{}", "{\"host\": \"up\"}");
    fails(s, "invalid", "name is missing");
    scheduler_end(s);
}

static void a_task_without_its_settings_or_secrets_fails_clearly(void **state)
{
    struct scheduler *s = start(true);

    (void)state;
    lease(s, "vm_info", "{\"vm\": \"x\"}", "{}");
    fails(s, "invalid", "host");
    lease(s, "vm_info", "{\"vm\": \"x\"}", "{\"host\": \"up\", \"colour\": \"red\"}");
    fails(s, "invalid", "colour");
    lease(s, "vm_info", "{\"vm\": \"x\"}",
          "{\"host\": \"up\", \"password_file\": \"/etc/shadow\"}");
    fails(s, "invalid", "password_file: a task cannot name files");
    lease_sealed(s, "vm_info", "{\"vm\": \"x\"}", "{\"host\": \"up\"}",
                 "{\"password\": \"secret\"}", "provider:other");
    fails(s, "denied", "secrets of the provider");
    assert_false(worker_logged(s, "\"secret\""));
    scheduler_end(s);
}

static void validates(struct scheduler *s, const char *spec, const char *settings, bool reachable,
                      bool authenticated, const char *error)
{
    auto_json *result = NULL;

    lease(s, "validate", spec, settings);
    result = finish(s);
    assert_int_equal(json_is_true(json_object_get(result, "reachable")), reachable);
    assert_int_equal(json_is_true(json_object_get(result, "authenticated")), authenticated);
    assert_int_equal(json_is_true(json_object_get(result, "valid")), reachable && authenticated);
    if (strstr(json_str(result, "error"), error) == NULL)
        fail_msg("'%s' instead of '%s'", json_str(result, "error"), error);
    assert_string_equal(json_str(result, "provider"), "lab");
}

static void validating_tells_what_works(void **state)
{
    struct scheduler *s = start(true);
    auto_seal_key *key = key_of("provider:fake");
    autofree uint8_t *sealed = NULL;
    autofree char *hex = NULL;
    autofree char *spec = NULL;
    size_t size = 0;

    (void)state;
    validates(s, "{}", "{\"host\": \"up\"}", true, true, "");
    validates(s, "{}", "{\"host\": \"down\"}", false, false, "no route");
    validates(s, "{}", "{}", false, false, "host"); /* an answer, not a failed task */
    validates(s, "{\"settings\": {\"host\": \"up\"}}", "{\"host\": \"down\"}", true, false,
              "wrong password"); /* an override comes with its own secrets */
    seal(key, "{\"password\": \"secret\"}", 22, &sealed, &size);
    hex = xmalloc(2 * size + 1);
    hex_encode(sealed, size, hex);
    spec = xasprintf("{\"settings\": {\"host\": \"up\"}, \"sealed_secrets_hex\": \"%s\"}", hex);
    validates(s, spec, "{\"host\": \"down\"}", true, true, "");
    validates(s, "{\"settings\": {\"host\": \"up\"}, \"sealed_secrets_hex\": \"xyz\"}",
              "{\"host\": \"up\"}", false, false, "sealed_secrets_hex");
    scheduler_end(s);
}

static void release_works_on_the_records_of_the_dead_task(void **state)
{
    struct scheduler *s = start(true);
    auto_json *result = NULL;
    struct bus_request *request;
    const struct lease_extras extras = {
        .record_key = "snapshot", .record_value = "snap-9", .settings_json = "{\"host\": \"up\"}"};

    (void)state;
    scheduler_lease(s, "release", "{\"keep\": false, \"discard\": true}", &extras);
    request = scheduler_expect(s, TASK_RECORD);
    assert_string_equal(bus_request_envelope(request)->task_record->record->value, "snap-9");
    reply_done(request);
    result = finish(s);
    assert_true(json_is_true(json_object_get(result, "released")));
    scheduler_lease(s, "release", "{\"keep\": true}", &extras);
    fails(s, "internal", "asked to keep 'snap-9'");
    scheduler_end(s);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_waits_for_its_key),
        cmocka_unit_test(it_ends_while_it_waits_for_its_key),
        cmocka_unit_test(its_record_of_capabilities_is_what_it_has),
        cmocka_unit_test(an_inventory_is_paged_and_ends_with_its_last_page),
        cmocka_unit_test(a_listing_that_breaks_has_no_last_page),
        cmocka_unit_test(a_vm_is_found_by_id_path_and_exact_name_in_this_order),
        cmocka_unit_test(an_ambiguous_or_unknown_name_lists_candidates),
        cmocka_unit_test(a_task_without_its_settings_or_secrets_fails_clearly),
        cmocka_unit_test(validating_tells_what_works),
        cmocka_unit_test(release_works_on_the_records_of_the_dead_task),
    };

    if (fixture_role() != NULL)
        return exporter_main(argc, argv, &fake_provider);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]); /* one test by name */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
