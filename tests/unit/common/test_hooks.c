/* Hooks: what is refused, what becomes the job's own, and the tasks in their order. */
#include "tests/unit/common/unit.h"

#include "common/autos.h"
#include "common/hooks.h"
#include "common/json.h"

static const struct hooks_config config = {.scripts_dir = (char[]){"/etc/hypersdk/scripts"}};
static const struct retry_config retry = {3, 60000, 1800000};

static json_t *applied(const char *text)
{
    json_t *job = json_loads(text, 0, NULL);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    assert_non_null(job);
    assert_ok(hooks_apply(&config, job, &problem, &err), err);
    return job;
}

static void refused(const struct hooks_config *with, const char *text, const char *field,
                    unsigned int status)
{
    auto_json *job = json_loads(text, 0, NULL);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    assert_non_null(job);
    if (hooks_apply(with, job, &problem, &err) == 0)
        fail_msg("%s was accepted", text);
    assert_string_equal(problem.field, field);
    assert_int_equal(problem.status, status);
}

static void steps_set_the_fields_of_the_job(void **state)
{
    auto_json *job = applied(
        "{\"pre_hooks\": [{\"type\": \"shutdown\", \"timeout\": 240}, {\"type\": \"snapshot\","
        " \"name\": \"n\", \"quiesce\": false, \"on_error\": \"continue\"}],"
        " \"post_hooks\": [{\"type\": \"upload\", \"on_error\": \"continue\","
        " \"destination\": \"s3://b/x\"}, {\"type\": \"convert\", \"format\": \"raw\", "
        "\"timeout\": 90},"
        " {\"type\": \"import\", \"network\": \"lan\"}, {\"type\": \"cleanup\", \"max_count\": "
        "3}]}");
    const json_t *conversion = json_object_get(job, "hyper2kvm_integration");

    (void)state;
    assert_true(json_is_true(json_object_get(json_object_get(job, "options"), "shutdown_vm")));
    assert_string_equal(json_str(json_object_get(job, "options"), "shutdown_timeout"), "240000ms");
    assert_true(json_is_true(json_object_get(job, "snapshot")));
    assert_string_equal(json_str(job, "snapshot_name"), "n");
    assert_true(json_is_false(json_object_get(job, "snapshot_quiesce")));
    assert_true(json_is_true(json_object_get(conversion, "enabled")));
    assert_string_equal(json_str(conversion, "target_format"), "raw");
    assert_string_equal(json_str(conversion, "timeout"), "90000ms");
    assert_string_equal(json_str(job, "snapshot_on_error"), "continue");
    assert_string_equal(json_str(job, "upload"), "s3://b/x");
    assert_string_equal(json_str(job, "upload_on_error"), "continue");
    assert_string_equal(json_str(json_object_get(job, "libvirt"), "network"), "lan");
    assert_int_equal(json_u64(json_object_get(job, "cleanup"), "max_count"), 3);
}

#define SCRIPT  "{\"type\": \"script\", \"command\": \"a.sh\"}"
#define PRE(x)  "{\"pre_hooks\": [" x "]}"
#define POST(x) "{\"post_hooks\": [" x "]}"

static void what_cannot_be_done_is_refused_with_its_place(void **state)
{
    (void)state;
    refused(&config, "{\"pre_hooks\": {}}", "pre_hooks", 400);
    refused(&config, PRE("7"), "pre_hooks[0].type", 400);
    refused(&config, PRE("{}"), "pre_hooks[0].type", 400);
    refused(&config, PRE("{\"type\": \"convert\"}"), "pre_hooks[0].type", 422);
    refused(&config, POST("{\"type\": \"snapshot\"}"), "post_hooks[0].type", 422);
    refused(&config, PRE("{\"type\": \"snapshot\"}," SCRIPT), "pre_hooks[1].type", 422);
    refused(&config, POST(SCRIPT ",{\"type\": \"upload\", \"destination\": \"s3://b/x\"}"),
            "post_hooks[1].type", 422);
    refused(&config, POST("{\"type\": \"cleanup\"}," SCRIPT), "post_hooks[0].type", 422);
    refused(&config, POST("{\"type\": \"convert\"},{\"type\": \"convert\"}"), "post_hooks[1].type",
            422);
    refused(&config, POST("{\"type\": \"import\"},{\"type\": \"convert\"}"), "post_hooks[1].type",
            422);
    refused(&config,
            POST("{\"type\": \"convert\", \"on_error\": \"continue\"},{\"type\": \"import\"}"),
            "post_hooks[0].type", 422);
    refused(&config, POST(SCRIPT ",{\"type\": \"wait\", \"duration\": 1}"), "post_hooks[1].type",
            422);
    refused(&config, PRE("{\"type\": \"wait\", \"until\": \"tomorrow\"}"), "pre_hooks[0].until",
            400);
    refused(&config, PRE("{\"type\": \"script\", \"command\": \"a\", \"retry\": -1}"),
            "pre_hooks[0].retry", 400);
    refused(&config, PRE("{\"type\": \"script\", \"command\": \"a\", \"retry\": {\"tries\": 1}}"),
            "pre_hooks[0].retry.tries", 400);
    refused(&config,
            "{\"upload\": \"s3://b/y\", \"post_hooks\": [{\"type\": \"upload\","
            " \"destination\": \"s3://b/x\"}]}",
            "post_hooks[0].destination", 400);
    refused(&config,
            "{\"upload_on_error\": \"fail\", \"post_hooks\": [{\"type\": \"upload\","
            " \"destination\": \"s3://b/x\", \"on_error\": \"continue\"}]}",
            "post_hooks[0].on_error", 400);
    refused(&config, PRE("{\"type\": \"snapshot\", \"on_error\": \"power_off\"}"),
            "pre_hooks[0].on_error", 400);
    refused(NULL, PRE(SCRIPT), "pre_hooks[0].command", 422);
}

static void scripts_are_named_inside_their_directory(void **state)
{
    static const char *const wrong[] = {"../a",
                                        "a/../../b",
                                        "/etc/passwd",
                                        "/etc/hypersdk/scripts",
                                        "/etc/hypersdk/scripts2/a",
                                        "a/",
                                        ".",
                                        "/etc/hypersdk/scripts/../a"};
    static const char *const right[] = {"a.sh", "sub/a.sh", "/etc/hypersdk/scripts/a.sh", "..a"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        autofree char *text =
            xasprintf("{\"pre_hooks\": [{\"type\": \"script\", \"command\": \"%s\"}]}", wrong[i]);
        refused(&config, text, "pre_hooks[0].command", 422);
    }
    for (size_t i = 0; i < ARRAY_LEN(right); i++) {
        autofree char *text =
            xasprintf("{\"pre_hooks\": [{\"type\": \"script\", \"command\": \"%s\"}]}", right[i]);
        auto_json *job = applied(text);
        assert_non_null(hook_find(job, "pre_hooks", "script"));
    }
}

static void tasks_stand_in_the_order_of_the_hooks(void **state)
{
    static const char *const kinds[] = {"script", "export",  "script", "convert",
                                        "script", "webhook", "import"};
    auto_json *job = applied(
        "{\"vm_path\": \"web\", \"pre_hooks\": [" SCRIPT ", {\"type\": \"wait\", \"duration\": 3}],"
        "\"post_hooks\": [" SCRIPT ", {\"type\": \"convert\", \"retry\": 4}, {\"type\": \"wait\","
        " \"duration\": \"2s\"}, {\"type\": \"wait\", \"until\": \"1970-01-02T02:00:00+02:00\"},"
        " {\"type\": \"script\", \"command\": \"b\", \"on_error\": \"continue\", \"retry\":"
        " {\"max_attempts\": 2, \"initial_delay\": \"1s\"}},"
        " {\"type\": \"webhook\", \"url\": \"https://h/\"}, {\"type\": \"import\"}]}");
    auto_json *spec = json_object();
    struct hook_plan plan;

    (void)state;
    hooks_plan(&(struct hook_facts){.job = job,
                                    .job_id = "j",
                                    .vm_name = "web",
                                    .output_path = "/exports/web",
                                    .retry = &retry,
                                    .export_spec = spec,
                                    .convert_spec = spec,
                                    .import_spec = spec},
               &plan);
    assert_int_equal(plan.count, ARRAY_LEN(kinds));
    for (size_t i = 0; i < plan.count; i++)
        assert_string_equal(plan.tasks[i].kind, kinds[i]);
    assert_string_equal(plan.tasks[0].hook, "pre");
    assert_int_equal(plan.tasks[0].max_attempts, 1);
    assert_null(plan.tasks[0].wait);
    assert_null(plan.tasks[1].hook);
    assert_int_equal(json_u64(json_array_get(plan.tasks[1].wait, 0), "ms"), 3000);
    assert_int_equal(plan.tasks[3].max_attempts, 5);
    assert_int_equal(json_array_size(plan.tasks[4].wait), 2);
    assert_int_equal(json_u64(json_array_get(plan.tasks[4].wait, 1), "until_ms"), 86400000);
    assert_true(plan.tasks[4].may_fail);
    assert_int_equal(plan.tasks[4].max_attempts, 2);
    assert_int_equal(plan.tasks[4].retry_initial_ms, 1000);
    assert_string_equal(json_str(plan.tasks[4].spec, "vm_name"), "web");
    assert_int_equal(plan.tasks[6].max_attempts, 0); /* the job's */
    hook_plan_release(&plan);
}

static void a_job_without_hooks_has_no_plan(void **state)
{
    auto_json *job = applied("{\"pre_hooks\": [], \"post_hooks\": []}");
    struct hook_plan plan;

    (void)state;
    hooks_plan(&(struct hook_facts){.job = job}, &plan);
    assert_int_equal(plan.count, 0);
}

static void a_step_of_a_workflow_has_the_same_rules(void **state)
{
    auto_json *good = json_pack("{s:s,s:s,s:[s],s:i,s:i}", "type", "script", "command", "x", "args",
                                "1", "timeout", 5, "retry", 2);
    auto_json *bad = json_pack("{s:s,s:s}", "type", "script", "command", "/bin/sh");
    auto_json *hook = json_pack("{s:s,s:s}", "type", "webhook", "url", "https://h.example/x");
    auto_json *spec = NULL;
    auto_json *none = NULL;
    auto_json *webhook = NULL;
    struct job_task task;
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_ok(hook_step_task(&config, good, &spec, &task, &problem, &err), err);
    assert_int_equal(json_u64(spec, "timeout_ms"), 5000);
    assert_string_equal(task.kind, "script");
    assert_int_equal(task.max_attempts, 3);
    assert_true(task.bridge && task.spec == spec);
    assert_fails(hook_step_task(&config, bad, &none, &task, &problem, &err), err, ERR_DENIED,
                 "inside hooks.scripts_dir");
    assert_string_equal(problem.field, "command");
    error_clear(&err);
    assert_ok(hook_step_task(NULL, hook, &webhook, &task, &problem, &err), err);
    assert_int_equal(json_u64(webhook, "timeout_ms"), HOOK_WEBHOOK_TIMEOUT_MS);
    assert_int_equal(task.max_attempts, 1);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_set_the_fields_of_the_job),
        cmocka_unit_test(what_cannot_be_done_is_refused_with_its_place),
        cmocka_unit_test(scripts_are_named_inside_their_directory),
        cmocka_unit_test(tasks_stand_in_the_order_of_the_hooks),
        cmocka_unit_test(a_job_without_hooks_has_no_plan),
        cmocka_unit_test(a_step_of_a_workflow_has_the_same_rules),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
