/* Aliases, checks, defaults and task specs of submitted jobs. */
#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/json.h"
#include "common/submit.h"

static char base[] = "/tmp/test-submit-XXXXXX";
static char *base_items[] = {base};
static const struct config_list bases = {base_items, 1};
static const struct libvirt_config libvirt = {.uri = (char[]){"qemu:///system"},
                                              .pool = (char[]){""}};
static const struct hyper2kvm_config hyper2kvm = {.default_format = (char[]){"qcow2"},
                                                  .fallback = (char[]){"builtin"},
                                                  .job_timeout_ms = 3600000};
static const struct retry_config retry = {3, 60000, 1800000};
static const struct hooks_config hooks = {.scripts_dir = (char[]){"/etc/hypersdk/scripts"}};
static const struct submit_settings settings = {&bases, &hyper2kvm, &libvirt, &retry,
                                                NULL,   &hooks,     NULL,     NULL};

/* Parses text as a body of one job; NULL and *problem, *err when refused. */
static struct submit_request *parse(const char *text, struct field_problem *problem,
                                    struct error *err)
{
    auto_json *body = NULL;
    struct submit_request *request = NULL;

    *problem = (struct field_problem){0};
    *err = (struct error)ERROR_NONE;
    assert_int_equal(body_parse(text, strlen(text), 65536, false, &body, err), 0);
    if (submit_parse(&settings, body, NULL, &request, problem, err) < 0)
        return NULL;
    return request;
}

static struct submit_request *take(const char *text)
{
    struct field_problem problem;
    struct error err;
    struct submit_request *request = parse(text, &problem, &err);

    if (request == NULL)
        fail_msg("%s: %s", text, err.message);
    return request;
}

struct refusal {
    const char *body;
    const char *field;
    unsigned int status;
    enum error_code code;
    const char *message; /* part of it */
};

static void check_refusals(const struct refusal *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct field_problem problem;
        struct error err;
        auto_submit_request *request = parse(list[i].body, &problem, &err);
        if (request != NULL)
            fail_msg("%s was accepted", list[i].body);
        if (strcmp(problem.field, list[i].field) != 0 || problem.status != list[i].status ||
            err.code != list[i].code || strstr(err.message, list[i].message) == NULL)
            fail_msg("%s: field '%s' status %u code %s: %s", list[i].body, problem.field,
                     problem.status, error_code_name(err.code), err.message);
    }
}

static void every_alias_becomes_its_canonical_name(void **state)
{
    static const char *const vm_names[] = {"vm_path", "vm_identifier", "vm", "vm_id"};
    static const char *const path_names[] = {"output_path", "export_path", "output_dir"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(vm_names); i++) {
        autofree char *body = xasprintf("{\"%s\": \"web\"}", vm_names[i]);
        auto_submit_request *request = take(body);
        assert_string_equal(request->submission.vm_path, "web");
        assert_string_equal(json_str(request->definition, "vm_path"), "web");
        assert_null(json_object_get(request->definition, "vm"));
    }
    for (size_t i = 0; i < ARRAY_LEN(path_names); i++) {
        autofree char *body = xasprintf("{\"vm\": \"web\", \"%s\": \"x/y\"}", path_names[i]);
        autofree char *expected = xasprintf("%s/x/y", base);
        auto_submit_request *request = take(body);
        assert_string_equal(request->submission.output_path, expected);
    }
}

static void two_aliases_may_agree_but_not_differ(void **state)
{
    static const struct refusal refusals[] = {
        {"{\"vm\": \"a\", \"upload\": \"ftp://x/y\"}", "upload", 400, ERR_INVALID,
         "'upload': unknown kind of URL"},
        {"{\"vm_path\": \"a\", \"vm\": \"b\"}", "vm", 400, ERR_INVALID,
         "another name of 'vm_path'"},
        {"{\"vm\": \"b\", \"vm_path\": \"a\"}", "vm_path", 400, ERR_INVALID,
         "'vm_path' is another name of 'vm', "},
        {"{\"vm\": \"a\", \"format\": \"ovf\", \"export_method\": \"raw\"}", "export_method", 400,
         ERR_INVALID, "another name of 'format'"},
        {"{\"vm\": \"a\", \"export_path\": \"a\", \"output_dir\": \"b\"}", "output_dir", 400,
         ERR_INVALID, "another name of 'output_path'"},
    };
    auto_submit_request *request = take("{\"vm_path\": \"a\", \"vm\": \"a\"}");

    (void)state;
    assert_string_equal(request->submission.vm_path, "a");
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void export_method_is_a_format_or_a_method(void **state)
{
    static const struct refusal refusals[] = {
        {"{\"vm\": \"a\", \"export_method\": \"vhdx\"}", "format", 422, ERR_NOT_AVAILABLE,
         "'vhdx'"},
        {"{\"vm\": \"a\", \"export_method\": \"vhdx\"}", "format", 422, ERR_NOT_AVAILABLE, "vhdx"},
        {"{\"vm\": \"a\", \"export_method\": \"vddk\"}", "method", 422, ERR_NOT_AVAILABLE, "vddk"},
        {"{\"vm\": \"a\", \"export_method\": \"qcow\"}", "export_method", 400, ERR_INVALID,
         "did you mean 'qcow2'"},
        {"{\"vm\": \"a\", \"format\": \"tar\"}", "format", 400, ERR_INVALID, "not known"},
    };
    auto_submit_request *format = take("{\"vm\": \"a\", \"export_method\": \"raw\"}");
    auto_submit_request *method = take("{\"vm\": \"a\", \"export_method\": \"auto\"}");
    auto_submit_request *nfc = take("{\"vm\": \"a\", \"export_method\": \"nfc\"}");

    (void)state;
    assert_string_equal(format->submission.format, "raw");
    assert_null(json_object_get(format->definition, "export_method"));
    assert_string_equal(method->submission.format, "ovf");
    assert_string_equal(json_str(method->definition, "method"), "auto");
    assert_null(json_object_get(method->export_spec, "method"));
    assert_string_equal(json_str(nfc->definition, "method"), "nfc");
    assert_string_equal(json_str(nfc->export_spec, "method"), "nfc");
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void wrong_fields_are_refused_by_name(void **state)
{
    static const struct refusal refusals[] = {
        {"{}", "vm_path", 400, ERR_INVALID, "missing"},
        {"{\"vm_path\": \"\"}", "vm_path", 400, ERR_INVALID, "1 to"},
        {"{\"vm_path\": 7}", "vm_path", 400, ERR_INVALID, "must be a text"},
        {"{\"vm_path\": \"a\\nb\"}", "vm_path", 400, ERR_INVALID, "control character"},
        {"{\"vm_pth\": \"a\"}", "vm_pth", 400, ERR_INVALID, "did you mean 'vm_path'"},
        {"{\"vm\": \"a\", \"zzzzzzzz\": 1}", "zzzzzzzz", 400, ERR_INVALID, "unknown field"},
        {"{\"vm\": \"a\", \"verify\": \"yes\"}", "verify", 400, ERR_INVALID, "true or false"},
        {"{\"vm\": \"a\", \"priority\": 101}", "priority", 400, ERR_INVALID, "0 to 100"},
        {"{\"vm\": \"a\", \"priority\": 1.5}", "priority", 400, ERR_INVALID, "whole number"},
        {"{\"vm\": \"a\", \"options\": {\"parallel_downloads\": 17}}", "options.parallel_downloads",
         400, ERR_INVALID, "1 to 16"},
        {"{\"vm\": \"a\", \"options\": {\"paralel_downloads\": 2}}", "options.paralel_downloads",
         400, ERR_INVALID, "did you mean 'options.parallel_downloads'"},
        {"{\"vm\": \"a\", \"options\": []}", "options", 400, ERR_INVALID, "must be an object"},
        {"{\"vm\": \"a\", \"compression_level\": 0}", "compression_level", 400, ERR_INVALID,
         "1 to 9"},
        {"{\"vm\": \"a\", \"retry\": {\"max_attempts\": 0}}", "retry.max_attempts", 400,
         ERR_INVALID, "1 to 100"},
        {"{\"vm\": \"a\", \"retry\": {\"initial_delay\": \"soon\"}}", "retry.initial_delay", 400,
         ERR_INVALID, "initial_delay"},
        {"{\"vm\": \"a\", \"retry\": {\"initial_delay\": 60, \"max_delay\": \"10s\"}}",
         "retry.initial_delay", 422, ERR_INVALID, "over max_delay"},
        {"{\"vm\": \"a\", \"id\": \"../x\"}", "id", 400, ERR_INVALID, "may hold"},
        {"{\"vm\": \"a\", \"id\": \"stats\"}", "id", 400, ERR_INVALID, "reserved"},
        {"{\"vm\": \"a\", \"hyper2kvm_integration\": {\"enabled\": 1}}",
         "hyper2kvm_integration.enabled", 400, ERR_INVALID, "true or false"},
        {"{\"vm\": \"a\", \"hyper2kvm_integration\": {\"target_format\": \"vhd\"}}",
         "hyper2kvm_integration.target_format", 400, ERR_INVALID, "not known"},
        {"{\"vm\": \"a\", \"hyper2kvm_integration\": {\"stages\": {\"fly\": true}}}",
         "hyper2kvm_integration.stages.fly", 400, ERR_INVALID, "unknown field"},
        {"[]", "", 400, ERR_INVALID, "must be an object"},
    };

    (void)state;
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void paths_outside_the_bases_are_refused(void **state)
{
    static const struct refusal refusals[] = {
        {"{\"vm\": \"a\", \"output_path\": \"/etc\"}", "output_path", 422, ERR_DENIED, "outside"},
        {"{\"vm\": \"a\", \"output_path\": \"../x\"}", "output_path", 422, ERR_DENIED, "'..'"},
        {"{\"vm\": \"a\", \"output_path\": \"a\\u0001\"}", "output_path", 400, ERR_INVALID,
         "control"},
    };

    (void)state;
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void fields_that_come_later_are_never_accepted_and_ignored(void **state)
{
    static const char *const fields[] = {
        "\"format\": \"ova\", \"incremental\": true",
        "\"email_notify\": true",
        "\"email\": {}",
        "\"upload\": \"gs://bucket/x\"",
        "\"upload\": \"s3://b/x\", \"stream_upload\": true, \"encrypt\": {}",
        "\"upload\": \"s3://b/x\", \"stream_upload\": true, \"incremental\": true",
        "\"upload\": \"s3://b/x\", \"stream_upload\": true, "
        "\"hyper2kvm_integration\": {\"enabled\": true}",
        "\"encrypt\": {\"method\": \"gpg\"}",
        "\"encrypt\": {}, \"hyper2kvm_integration\": {\"enabled\": true}",
        "\"encrypt\": {}, \"format\": \"qcow2\", \"incremental\": true",
        "\"post_hooks\": [{\"type\": \"email\"}]",
        "\"template\": \"t\"",
        "\"vcenter\": {}",
        "\"host\": \"h\"",
        "\"datacenter\": \"DC0\"",
        "\"keep_snapshots\": 3",
        "\"retry\": {\"backoff\": \"linear\"}",
        "\"format\": \"vhd\"",
        "\"method\": \"vddk\"",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        autofree char *body = xasprintf("{\"vm\": \"a\", %s}", fields[i]);
        struct field_problem problem;
        struct error err;
        auto_submit_request *request = parse(body, &problem, &err);
        if (request != NULL)
            fail_msg("%s was accepted", body);
        assert_int_equal(err.code, ERR_NOT_AVAILABLE);
        assert_int_equal(problem.status, 422);
        assert_true(problem.field[0] != '\0');
    }
}

static void what_edits_the_vm_is_only_done_when_asked_for(void **state)
{
    auto_submit_request *asked =
        take("{\"vm\": \"a\", \"enable_cbt\": true, \"options\": {\"remove_cdrom\": true}}");
    auto_submit_request *declined = take("{\"vm\": \"a\", \"options\": {\"remove_cdrom\": false}}");

    (void)state;
    assert_true(json_is_true(json_object_get(asked->export_spec, "enable_cbt")));
    assert_true(json_is_true(json_object_get(asked->export_spec, "remove_cdrom")));
    assert_null(json_object_get(declined->export_spec, "remove_cdrom"));
}

static void later_fields_that_ask_for_nothing_are_no_error(void **state)
{
    auto_submit_request *request =
        take("{\"vm\": \"a\", \"keep_snapshots\": 0, \"keep_local\": true, \"pre_hooks\": [], "
             "\"upload\": null}");

    (void)state;
    assert_null(json_object_get(request->definition, "keep_snapshots"));
}

static void uploads_name_a_place_and_no_secret(void **state)
{
    static const struct refusal refusals[] = {
        {"{\"vm\": \"a\", \"upload\": \"here\"}", "upload", 400, ERR_INVALID, "no URL"},
        {"{\"vm\": \"a\", \"upload\": \"sftp://u:pw@h/p\"}", "upload", 400, ERR_INVALID,
         "password has no place"},
        {"{\"vm\": \"a\", \"upload\": \"azure://c/p\"}", "upload", 422, ERR_NOT_AVAILABLE,
         "not available"},
        {"{\"vm\": \"a\", \"keep_local\": false}", "keep_local", 400, ERR_INVALID, "upload"},
        {"{\"vm\": \"a\", \"upload\": \"s3://bkt\", \"keep_local\": false, "
         "\"hyper2kvm_integration\": {\"enabled\": true}}",
         "keep_local", 422, ERR_INVALID, "nothing to convert"},
        {"{\"vm\": \"a\", \"stream_upload\": true}", "stream_upload", 400, ERR_INVALID,
         "needs 'upload'"},
        {"{\"vm\": \"a\", \"upload\": \"s3://bkt\", \"stream_upload\": true, "
         "\"keep_local\": true}",
         "keep_local", 400, ERR_INVALID, "leave one of them out"},
        {"{\"vm\": \"a\", \"upload\": \"s3://bkt\", \"stream_upload\": true, "
         "\"upload_on_error\": \"continue\"}",
         "upload_on_error", 422, ERR_NOT_AVAILABLE, "nothing is left"},
        {"{\"vm\": \"a\", \"upload_on_error\": \"continue\"}", "upload_on_error", 400, ERR_INVALID,
         "means nothing without 'upload'"},
        {"{\"vm\": \"a\", \"snapshot_on_error\": \"continue\"}", "snapshot_on_error", 400,
         ERR_INVALID, "means nothing without 'snapshot'"},
        {"{\"vm\": \"a\", \"snapshot\": true, \"snapshot_on_error\": \"power_off\"}",
         "snapshot_on_error", 400, ERR_INVALID, "fail or continue"},
    };
    auto_submit_request *may_fail =
        take("{\"vm\": \"a\", \"upload\": \"s3://bkt/p\", \"upload_on_error\": \"continue\", "
             "\"retry\": {\"max_attempts\": 7}}");
    auto_submit_request *streamed =
        take("{\"vm\": \"a\", \"upload\": \"s3://bkt/p\", \"stream_upload\": true}");
    auto_submit_request *qcow2 = take("{\"vm\": \"a\", \"upload\": \"s3://bkt/p\", "
                                      "\"stream_upload\": true, \"format\": \"qcow2\"}");
    auto_submit_request *ova = take("{\"vm\": \"a\", \"upload\": \"s3://bkt/p\", "
                                    "\"stream_upload\": true, \"format\": \"ova\"}");
    auto_submit_request *request =
        take("{\"vm\": \"a\", \"upload\": \"s3://bkt/p\", \"keep_local\": false}");

    (void)state;
    assert_string_equal(json_str(may_fail->export_spec, "upload_on_error"), "continue");
    assert_int_equal(json_u64(may_fail->export_spec, "tries_max"), 7);
    assert_null(json_object_get(streamed->export_spec, "tries_max"));
    assert_true(json_is_true(json_object_get(qcow2->export_spec, "stream_upload")));
    assert_true(json_is_true(json_object_get(ova->export_spec, "stream_upload")));
    assert_string_equal(json_str(request->export_spec, "upload"), "s3://bkt/p");
    assert_true(json_is_false(json_object_get(request->export_spec, "keep_local")));
    assert_true(json_is_true(json_object_get(streamed->export_spec, "stream_upload")));
    assert_true(json_is_false(json_object_get(streamed->export_spec, "keep_local")));
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void bandwidth_becomes_bytes_per_second_for_the_worker(void **state)
{
    static const struct {
        const char *fields;
        uint64_t rate, burst, floor;
    } cases[] = {
        {"\"bandwidth_limit\": 20", 20 * MIB, 0, 0},
        {"\"bandwidth_limit_mbps\": 20, \"bandwidth_burst_mb\": 5", 20 * MIB, 5 * MIB, 0},
        {"\"adaptive_bandwidth\": true", 100 * MIB, 0, MIB},
        {"\"adaptive_bandwidth\": true, \"bandwidth_limit_mbps\": 30", 30 * MIB, 0, MIB},
        {"\"adaptive_bandwidth\": true, \"bandwidth_min_mbps\": 7, \"bandwidth_max_mbps\": 9",
         9 * MIB, 0, 7 * MIB},
    };
    auto_submit_request *none = take("{\"vm\": \"a\", \"bandwidth_limit_mbps\": 0}");

    (void)state;
    assert_null(json_object_get(none->export_spec, "bandwidth"));
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *body = xasprintf("{\"vm\": \"a\", %s}", cases[i].fields);
        auto_submit_request *request = take(body);
        const json_t *spec = json_object_get(request->export_spec, "bandwidth");
        assert_int_equal(json_u64(spec, "rate"), cases[i].rate);
        assert_int_equal(json_u64(spec, "burst"), cases[i].burst);
        assert_int_equal(json_u64(spec, "floor"), cases[i].floor);
    }
}

static void defaults_are_those_of_the_reference(void **state)
{
    auto_submit_request *request = take("{\"vm\": \"/DC1/vm/prod/web: 03\"}");
    autofree char *output = xasprintf("%s/web_ 03", base);
    const json_t *spec = request->export_spec;

    (void)state;
    assert_string_equal(request->submission.provider, "vsphere");
    assert_string_equal(request->submission.kind, "export");
    assert_string_equal(request->submission.format, "ovf");
    assert_string_equal(request->submission.output_path, output);
    assert_int_equal(request->submission.priority, 50);
    assert_int_equal(request->submission.max_attempts, 3);
    assert_int_equal(request->submission.retry_initial_ms, 60000);
    assert_int_equal(request->submission.retry_max_ms, 1800000);
    assert_memory_equal(request->id, "job-", 4);
    assert_null(request->submission.convert_spec);
    assert_string_equal(json_str(spec, "job_id"), request->id);
    assert_string_equal(json_str(spec, "vm"), "/DC1/vm/prod/web: 03");
    assert_int_equal(json_u64(spec, "parallel"), 4);
    assert_int_equal(json_u64(spec, "compress_level"), 6);
    assert_true(json_is_true(json_object_get(spec, "verify")));
    assert_true(json_is_false(json_object_get(spec, "snapshot")));
    assert_true(json_is_true(json_object_get(spec, "snapshot_quiesce")));
    assert_true(json_is_true(json_object_get(spec, "delete_snapshot")));
    assert_true(json_is_false(json_object_get(spec, "convert")));
}

static void restore_points_are_qcow2_and_a_month_old_at_most(void **state)
{
    static const struct {
        const char *fields;
        bool force_full;
        uint64_t age_ms;
    } cases[] = {{"\"incremental\": true", false, UINT64_C(2592000000)},
                 {"\"incremental\": true, \"format\": \"qcow2\", \"max_full_age_days\": 2", false,
                  172800000},
                 {"\"force_full\": true, \"incremental_max_age\": \"12h\"", true, 43200000}};
    static const struct refusal refusals[] = {
        {"{\"vm\": \"a\", \"max_full_age_days\": 3}", "max_full_age_days", 400, ERR_INVALID,
         "without 'incremental'"},
        {"{\"vm\": \"a\", \"incremental\": false, \"incremental_max_age\": 3}",
         "incremental_max_age", 400, ERR_INVALID, "without 'incremental'"},
        {"{\"vm\": \"a\", \"incremental\": true, \"incremental_max_age\": 3, "
         "\"max_full_age_days\": 3}",
         "max_full_age_days", 400, ERR_INVALID, "give one"},
        {"{\"vm\": \"a\", \"incremental\": true, \"format\": \"ova\"}", "incremental", 422,
         ERR_NOT_AVAILABLE, "an OVA is one file"},
        {"{\"vm\": \"a\", \"incremental\": true, \"keep_local\": false, \"upload\": \"s3://b/x\"}",
         "keep_local", 422, ERR_NOT_AVAILABLE, "goes on from the local files"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *body = xasprintf("{\"vm\": \"a\", %s}", cases[i].fields);
        auto_submit_request *request = take(body);
        const json_t *spec = request->export_spec;
        assert_string_equal(json_str(spec, "format"), "qcow2");
        assert_string_equal(request->submission.format, "qcow2");
        assert_true(json_is_true(json_object_get(spec, "incremental")));
        assert_int_equal(json_is_true(json_object_get(spec, "force_full")), cases[i].force_full);
        assert_int_equal(json_u64(spec, "incremental_max_age_ms"), cases[i].age_ms);
    }
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void a_passphrase_travels_sealed_and_is_stored_nowhere(void **state)
{
    static const char hex[] = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    auto_json *body =
        json_loads("{\"vm\": \"a\", \"encrypt\": {\"passphrase\": \"correct horse\"}}", 0, NULL);
    auto_seal_master *master = NULL;
    auto_seal_key *key = NULL;
    auto_submit_request *request = NULL;
    struct submit_settings sealing = settings;
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    uint8_t sealed[200];
    const char *text;
    auto_secret *open = NULL;
    size_t size = 0;

    (void)state;
    assert_fails(submit_parse(&settings, body, NULL, &request, &problem, &err), err,
                 ERR_NOT_AVAILABLE, "master_key");
    assert_ok(seal_master_new(hex, &master, &err), err);
    key = seal_master_derive(master, SEAL_EXPORTS);
    sealing.exports_key = key;
    assert_ok(submit_parse(&sealing, body, NULL, &request, &problem, &err), err);
    text = json_str(request->export_spec, "sealed_passphrase");
    assert_true(strlen(text) / 2 < sizeof sealed);
    assert_true(hex_decode(text, sealed, strlen(text) / 2));
    assert_ok(seal_open(key, sealed, strlen(text) / 2, &open, &size, &err), err);
    assert_string_equal(open, "correct horse");
    assert_null(json_object_get(request->export_spec, "encrypt_key"));
    assert_string_equal(json_str(json_object_get(request->definition, "encrypt"), "passphrase"),
                        "***");
}

static void compression_is_zstd_unless_another_is_named(void **state)
{
    static const struct {
        const char *fields;
        const char *expected;
    } cases[] = {{"\"compress\": true, \"format\": \"qcow2\"", "zstd"},
                 {"\"compression\": \"zlib\", \"format\": \"qcow2\"", "zlib"},
                 {"\"compress\": true", "zstd"},
                 {"\"compress\": true, \"format\": \"raw\"", "zstd"},
                 {"\"compress\": false, \"compression\": \"zlib\"", ""},
                 {"\"verify\": true", ""}};
    static const struct refusal refusals[] = {
        {"{\"vm\": \"a\", \"compression\": \"zlib\", \"format\": \"raw\"}", "compression", 422,
         ERR_NOT_AVAILABLE, "raw"},
        {"{\"vm\": \"a\", \"compression\": \"lzma\"}", "compression", 400, ERR_INVALID, "lzma"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        autofree char *body = xasprintf("{\"vm\": \"a\", %s}", cases[i].fields);
        auto_submit_request *request = take(body);
        assert_string_equal(json_str(request->export_spec, "compress"), cases[i].expected);
    }
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void retry_is_in_seconds_or_with_units(void **state)
{
    auto_submit_request *request = take(
        "{\"vm\": \"a\", \"retry\": {\"max_attempts\": 5, \"initial_delay\": 2, \"max_delay\": "
        "\"5m\", \"backoff\": \"exponential\"}}");

    (void)state;
    assert_int_equal(request->submission.max_attempts, 5);
    assert_int_equal(request->submission.retry_initial_ms, 2000);
    assert_int_equal(request->submission.retry_max_ms, 300000);
}

static void one_delay_alone_moves_the_default_of_the_other(void **state)
{
    auto_submit_request *low = take("{\"vm\": \"a\", \"retry\": {\"max_delay\": \"10s\"}}");
    auto_submit_request *high = take("{\"vm\": \"a\", \"retry\": {\"initial_delay\": \"2h\"}}");

    (void)state;
    assert_int_equal(low->submission.retry_initial_ms, 10000);
    assert_int_equal(high->submission.retry_max_ms, 7200000);
}

static void a_known_vm_name_names_the_directory(void **state)
{
    auto_json *body = json_pack("{s:s}", "vm", "vm-57");
    auto_submit_request *request = NULL;
    autofree char *output = xasprintf("%s/web", base);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(submit_parse(&settings, body, "web", &request, &problem, &err), 0);
    assert_string_equal(request->submission.output_path, output);
}

static void conversion_makes_a_second_task(void **state)
{
    auto_submit_request *queue = take("{\"vm\": \"a\", \"hyper2kvm_integration\": {\"enabled\": "
                                      "true, \"daemon_mode\": true}}");
    auto_submit_request *direct =
        take("{\"vm\": \"a\", \"provider\": \"east\", \"format\": \"qcow2\", "
             "\"hyper2kvm_integration\": {\"enabled\": true, \"daemon_mode\": false, "
             "\"auto_convert\": true, \"timeout\": \"5m\", \"stages\": {\"fix\": false}}}");
    auto_submit_request *prepared = take("{\"vm\": \"a\", \"hyper2kvm_integration\": {\"enabled\": "
                                         "true, \"auto_convert\": false}}");
    const json_t *options = json_object_get(queue->convert_spec, "hyper2kvm");

    (void)state;
    assert_true(json_is_true(json_object_get(queue->export_spec, "convert")));
    assert_true(json_is_true(json_object_get(options, "daemon_mode")));
    assert_string_equal(json_str(options, "instance"), "vsphere");
    assert_string_equal(json_str(options, "target_format"), "qcow2");
    assert_int_equal(json_u64(options, "timeout_ms"), 3600000);
    options = json_object_get(direct->convert_spec, "hyper2kvm");
    assert_true(json_is_false(json_object_get(options, "daemon_mode")));
    assert_string_equal(json_str(options, "instance"), "east");
    assert_int_equal(json_u64(options, "timeout_ms"), 300000);
    assert_true(json_is_false(json_object_get(json_object_get(options, "stages"), "fix")));
    /* the export is a qcow2 already: no second one in the same pass */
    assert_true(json_is_false(json_object_get(direct->export_spec, "convert")));
    assert_null(prepared->submission.convert_spec);
    assert_true(json_is_true(json_object_get(prepared->export_spec, "convert")));
}

static void libvirt_makes_a_third_task(void **state)
{
    static const struct refusal refusals[] = {
        {"{\"vm\": \"a\", \"libvirt\": {}}", "libvirt", 422, ERR_INVALID, "needs a conversion"},
        {"{\"vm\": \"a\", \"hyper2kvm_integration\": {\"enabled\": true}, \"libvirt\": {"
         "\"uri\": \"qemu+ssh://h/?command=x\"}}",
         "libvirt.uri", 422, ERR_DENIED, "allowed_uris"},
        {"{\"vm\": \"a\", \"hyper2kvm_integration\": {\"enabled\": true}, \"libvirt\": {"
         "\"if_exists\": \"kill\"}}",
         "libvirt.if_exists", 400, ERR_INVALID, "fail, rename or replace"},
        {"{\"vm\": \"a\", \"libvirt\": {\"hook\": 1}}", "libvirt.hook", 400, ERR_INVALID,
         "unknown field"},
    };
    auto_submit_request *none = take("{\"vm\": \"a\", \"libvirt\": {\"define\": false}}");
    auto_submit_request *request =
        take("{\"vm\": \"a\", \"hyper2kvm_integration\": {\"enabled\": true}, \"libvirt\": {"
             "\"pool\": \"p\", \"bridge\": \"br0\", \"autostart\": true}}");
    const json_t *wish = json_object_get(request->submission.import_spec, "libvirt");

    (void)state;
    assert_null(none->submission.import_spec);
    assert_non_null(request->submission.convert_spec);
    assert_string_equal(json_str(wish, "uri"), "qemu:///system");
    assert_string_equal(json_str(wish, "pool"), "p");
    assert_string_equal(json_str(wish, "bridge"), "br0");
    assert_true(json_is_true(json_object_get(wish, "autostart")));
    check_refusals(refusals, ARRAY_LEN(refusals));
}

static void secrets_in_metadata_are_stored_nowhere(void **state)
{
    auto_submit_request *request = take(
        "{\"vm\": \"a\", \"metadata\": {\"db\": {\"password\": \"hunter2\"}, \"owner\": \"x\"}, "
        "\"tags\": {\"api_token\": \"hunter2\"}}");
    autofree char *definition = json_text(request->definition);
    autofree char *spec = json_text(request->export_spec);

    (void)state;
    assert_null(strstr(definition, "hunter2"));
    assert_null(strstr(spec, "hunter2"));
    assert_non_null(strstr(spec, "\"owner\":\"x\""));
}

static void bodies_with_comments_are_yaml(void **state)
{
    auto_submit_request *request =
        take("{\n  \"vm_identifier\": \"test-app-vm\",\n  \"hyper2kvm_integration\": {\n"
             "    \"enabled\": true,\n    \"daemon_mode\": false,  # Direct call\n"
             "    \"auto_convert\": true\n  }\n}");

    (void)state;
    assert_string_equal(request->submission.vm_path, "test-app-vm");
    assert_non_null(request->submission.convert_spec);
}

static void batches_are_split(void **state)
{
    static const struct {
        const char *body;
        size_t count; /* 0: refused */
        bool atomic, single;
    } cases[] = {
        {"{\"vm\": \"a\"}", 1, false, true},
        {"[{\"vm\": \"a\"}, {\"vm\": \"b\"}]", 2, false, false},
        {"{\"jobs\": [{\"vm\": \"a\"}], \"atomic\": true}", 1, true, false},
        {"{\"jobs\": []}", 0, false, false},
        {"[]", 0, false, false},
        {"{\"jobs\": {}}", 0, false, false},
        {"{\"jobs\": [{\"vm\": \"a\"}], \"vm\": \"b\"}", 0, false, false},
    };
    static struct submit_batch batch; /* 80 KB */

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct field_problem problem = {0};
        struct error err = ERROR_NONE;
        auto_json *body = json_loads(cases[i].body, 0, NULL);
        int rc = submit_split(body, &batch, &problem, &err);
        if (cases[i].count == 0) {
            assert_int_equal(rc, -1);
            assert_int_equal(problem.status, 400);
            continue;
        }
        assert_int_equal(rc, 0);
        assert_int_equal(batch.count, cases[i].count);
        assert_int_equal(batch.atomic, cases[i].atomic);
        assert_int_equal(batch.single, cases[i].single);
    }
}

static void too_many_jobs_in_one_request_are_refused(void **state)
{
    static struct submit_batch batch;
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    auto_json *body = json_array();

    (void)state;
    for (int i = 0; i < SUBMIT_JOBS_MAX + 1; i++)
        (void)json_array_append_new(body, json_object());
    assert_int_equal(submit_split(body, &batch, &problem, &err), -1);
    assert_string_equal(problem.field, "jobs");
}

static void metadata_has_a_limit(void **state)
{
    autofree char *big = xmalloc(SUBMIT_FREE_BYTES_MAX + 1);
    auto_json *body = NULL;
    auto_submit_request *request = NULL;
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    memset(big, 'x', SUBMIT_FREE_BYTES_MAX);
    big[SUBMIT_FREE_BYTES_MAX] = '\0';
    body = json_pack("{s:s, s:{s:s}}", "vm", "a", "metadata", "k", big);
    assert_int_equal(submit_parse(&settings, body, NULL, &request, &problem, &err), -1);
    assert_string_equal(problem.field, "metadata");
}

static int make_base(void **state)
{
    (void)state;
    return mkdtemp(base) == NULL ? -1 : 0;
}

static int remove_base(void **state)
{
    (void)state;
    return rmdir(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_alias_becomes_its_canonical_name),
        cmocka_unit_test(two_aliases_may_agree_but_not_differ),
        cmocka_unit_test(export_method_is_a_format_or_a_method),
        cmocka_unit_test(wrong_fields_are_refused_by_name),
        cmocka_unit_test(paths_outside_the_bases_are_refused),
        cmocka_unit_test(fields_that_come_later_are_never_accepted_and_ignored),
        cmocka_unit_test(what_edits_the_vm_is_only_done_when_asked_for),
        cmocka_unit_test(later_fields_that_ask_for_nothing_are_no_error),
        cmocka_unit_test(uploads_name_a_place_and_no_secret),
        cmocka_unit_test(bandwidth_becomes_bytes_per_second_for_the_worker),
        cmocka_unit_test(defaults_are_those_of_the_reference),
        cmocka_unit_test(restore_points_are_qcow2_and_a_month_old_at_most),
        cmocka_unit_test(a_passphrase_travels_sealed_and_is_stored_nowhere),
        cmocka_unit_test(compression_is_zstd_unless_another_is_named),
        cmocka_unit_test(retry_is_in_seconds_or_with_units),
        cmocka_unit_test(one_delay_alone_moves_the_default_of_the_other),
        cmocka_unit_test(a_known_vm_name_names_the_directory),
        cmocka_unit_test(conversion_makes_a_second_task),
        cmocka_unit_test(libvirt_makes_a_third_task),
        cmocka_unit_test(secrets_in_metadata_are_stored_nowhere),
        cmocka_unit_test(bodies_with_comments_are_yaml),
        cmocka_unit_test(batches_are_split),
        cmocka_unit_test(too_many_jobs_in_one_request_are_refused),
        cmocka_unit_test(metadata_has_a_limit),
    };

    return cmocka_run_group_tests(tests, make_base, remove_base);
}
