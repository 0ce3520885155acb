/* Templates of jobs: what is stored of one, and the job that a submission makes of it. */
#include "tests/unit/common/postgres_fixture.h"

#include "common/autos.h"
#include "common/job_template.h"
#include "common/json.h"

static char site[] = "HYPERSDK_TEST_SITE";
static char *env_items[] = {site};
static const struct templates_config config = {.env = {env_items, 1}};

/* ---- what is stored ---- */

static void names_are_short_words(void **state)
{
    static const char *const good[] = {"a", "9", "linux-vm_export.2", "A-"};
    static const char *const bad[] = {"",    "-x",  ".x",       "_x",
                                      "a/b", "a b", "\xc3\xa4", "{{ .VMName }}"};
    char longest[JOB_TEMPLATE_NAME_MAX + 2];
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_fails(job_template_name_check(longest, &problem, &err), err, ERR_INVALID, "1 to 63");
    longest[JOB_TEMPLATE_NAME_MAX] = '\0';
    assert_ok(job_template_name_check(longest, &problem, &err), err);
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_ok(job_template_name_check(good[i], &problem, &err), err);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(job_template_name_check(bad[i], &problem, &err), err, ERR_INVALID, "1 to 63");
    assert_string_equal(problem.field, "name");
}

static json_t *canonical(const char *text)
{
    auto_json *template = json_loads(text, 0, NULL);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    json_t *out = NULL;

    assert_non_null(template);
    assert_ok(job_template_canonical(&config, template, &out, &problem, &err), err);
    return out;
}

static void names_of_fields_become_canonical_and_texts_stay(void **state)
{
    auto_json *out = canonical(
        "{\"vm_identifier\": \"{{ .VMPath }}\", \"export_method\": \"ova\","
        " \"output_path\": \"{{ .Env.HYPERSDK_TEST_SITE }}/{{.VMName}}\", \"verify\": null}");

    (void)state;
    assert_string_equal(json_str(out, "vm_path"), "{{ .VMPath }}");
    assert_string_equal(json_str(out, "format"), "ova");
    assert_string_equal(json_str(out, "output_path"), "{{ .Env.HYPERSDK_TEST_SITE }}/{{.VMName}}");
    assert_null(json_object_get(out, "vm_identifier"));
    assert_null(json_object_get(out, "verify"));
}

static void what_cannot_be_a_template_is_refused_with_its_place(void **state)
{
    static const struct {
        const char *text, *field, *why;
    } bad[] = {
        {"{\"nmae\": \"x\"}", "nmae", "did you mean"},
        {"{\"id\": \"job-1\"}", "id", "belongs to one job"},
        {"{\"template\": \"other\"}", "template", "template"},
        {"{\"name\": \"{{ .VMNme }}\"}", "name", "VMNme"},
        {"{\"name\": \"{{ .Env.HOME }}\"}", "name", "HOME"},
        {"{\"name\": \"{{ .VMName\"}", "name", "{{"},
        {"{\"name\": \"{{ {{ .VMName }} }}\"}", "name", "{{"},
        {"{\"name\": \"{{ }}\"}", "name", "{{"},
        {"{\"post_hooks\": [{\"type\": \"upload\"}, {\"type\": \"upload\", \"destination\":"
         " \"s3://b/{{ .Nope }}\"}]}",
         "post_hooks[1].destination", "Nope"},
        {"{\"encrypt\": {\"passphrase\": \"12345678\"}}", "passphrase", "no secrets"},
        {"{\"metadata\": {\"deep\": {\"api_token\": \"x\"}}}", "api_token", "no secrets"},
        {"{\"post_hooks\": [{\"type\": \"webhook\", \"body\": {\"password\": \"{{ .JobID }}\"}}]}",
         "password", "no secrets"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_json *template = json_loads(bad[i].text, 0, NULL);
        struct field_problem problem = {0};
        struct error err = ERROR_NONE;
        json_t *out = NULL;
        if (job_template_canonical(&config, template, &out, &problem, &err) == 0)
            fail_msg("%s is taken", bad[i].text);
        if (strcmp(problem.field, bad[i].field) != 0 || strstr(err.message, bad[i].why) == NULL)
            fail_msg("%s: field '%s', %s", bad[i].text, problem.field, err.message);
        assert_true(problem.status == 400 || problem.status == 422);
    }
}

/* ---- the job ---- */

static struct db *store(const char *name, const char *text)
{
    static const char provider_sql[] =
        "INSERT INTO providers (name, kind, settings) VALUES ('vsphere', 'vsphere', '{}')"
        " ON CONFLICT DO NOTHING";
    static const char vm_sql[] =
        "INSERT INTO inventory_vms (provider, generation, id, name, path, vm) VALUES ('vsphere',"
        " 'g', 'vm-7', 'web \"3\"', '/DC/vm/web', '{}') ON CONFLICT DO NOTHING";
    static const char state_sql[] =
        "INSERT INTO inventory_state (provider, generation, completed_at) VALUES ('vsphere', 'g',"
        " now()) ON CONFLICT DO NOTHING";
    static const char template_sql[] =
        "INSERT INTO templates (name, template) VALUES ($1, $2::jsonb)"
        " ON CONFLICT (name) DO UPDATE SET template = excluded.template";
    struct error err = ERROR_NONE;
    struct db *db;

    if (dir == NULL)
        skip();
    db = db_new(&owner, NULL, "unit");
    assert_ok(db_migrate(db, &err), err);
    assert_ok(db_exec(db, provider_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_ok(db_exec(db, vm_sql, DB_NO_PARAMS, NULL, &err), err);
    assert_ok(db_exec(db, state_sql, DB_NO_PARAMS, NULL, &err), err);
    if (name != NULL)
        assert_ok(db_exec(db, template_sql, DB_PARAMS(name, text), NULL, &err), err);
    return db;
}

static int expand(struct db *db, const char *element_text, json_t **out,
                  struct field_problem *problem, struct error *err)
{
    auto_json *element = json_loads(element_text, 0, NULL);

    assert_non_null(element);
    return job_template_expand(db, &config, element, out, problem, err);
}

static json_t *expanded(struct db *db, const char *element_text)
{
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    json_t *out = NULL;

    assert_ok(expand(db, element_text, &out, &problem, &err), err);
    return out;
}

static void the_submissions_own_fields_win_member_by_member(void **state)
{
    auto_db *db = store("t", "{\"format\": \"ova\", \"options\": {\"parallel_downloads\": 8,"
                             " \"remove_cdrom\": false}, \"pre_hooks\": [{\"type\": \"wait\"}],"
                             " \"tags\": {\"a\": \"b\"}}");
    auto_json *out =
        expanded(db, "{\"template\": \"t\", \"vm_path\": \"/x/web\", \"export_method\":"
                     " \"raw\", \"options\": {\"parallel_downloads\": 2},"
                     " \"pre_hooks\": [], \"tags\": {\"c\": \"d\"}}");
    const json_t *options = json_object_get(out, "options");

    (void)state;
    assert_string_equal(json_str(out, "format"), "raw");
    assert_int_equal(json_u64(options, "parallel_downloads"), 2);
    assert_true(json_is_false(json_object_get(options, "remove_cdrom")));
    assert_int_equal(json_array_size(json_object_get(out, "pre_hooks")), 0);
    assert_string_equal(json_str(json_object_get(out, "tags"), "a"), "b");
    assert_string_equal(json_str(json_object_get(out, "tags"), "c"), "d");
    assert_null(json_object_get(out, "template"));
    assert_int_equal(strncmp(json_str(out, "id"), "job-", 4), 0);
}

static void placeholders_get_the_jobs_facts_once(void **state)
{
    auto_db *db =
        store("p", "{\"name\": \"{{ .VMName }}|{{ .VMPath }}|{{ .Provider }}|{{ .JobID }}\","
                   " \"output_path\": \"x/{{ .VMName }}\"}");
    auto_json *by_id =
        expanded(db, "{\"template\": \"p\", \"vm_path\": \"vm-7\", \"id\": \"job-9\"}");
    auto_json *nested = expanded(
        db, "{\"template\": \"p\", \"vm_path\": \"/a/{{ .JobID }}\", \"provider\": \"vc2\","
            " \"id\": \"job-9\", \"output_path\": \"y\", \"name\": \"n\"}");

    (void)state;
    assert_string_equal(json_str(by_id, "name"), "web \"3\"|vm-7|vsphere|job-9");
    assert_string_equal(json_str(nested, "vm_path"), "/a/job-9");
    assert_string_equal(json_str(nested, "name"), "n");
}

static void what_has_no_value_or_no_template_is_told(void **state)
{
    auto_db *db = store("needs-vm", "{\"name\": \"{{ .VMName }}\"}");
    static const struct {
        const char *element, *field, *why;
        unsigned int status;
    } bad[] = {
        {"{\"template\": \"nowhere\"}", "template", "no template 'nowhere'", 422},
        {"{\"template\": 7}", "template", "must be the name", 400},
        {"{\"template\": \"needs-vm\"}", "name", "VMName", 422},
        {"{\"template\": \"needs-vm\", \"vm_path\": \"w\", \"name\": \"{{ .Env.HOME }}\"}", "name",
         "HOME", 422},
        {"{\"template\": \"needs-vm\", \"vm_pth\": \"w\"}", "vm_pth", "did you mean", 400},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct field_problem problem = {0};
        struct error err = ERROR_NONE;
        json_t *out = NULL;
        if (expand(db, bad[i].element, &out, &problem, &err) == 0)
            fail_msg("%s is taken", bad[i].element);
        if (strcmp(problem.field, bad[i].field) != 0 || problem.status != bad[i].status ||
            strstr(err.message, bad[i].why) == NULL)
            fail_msg("%s: field '%s', %u, %s", bad[i].element, problem.field, problem.status,
                     err.message);
    }
}

static void without_a_template_nothing_is_made(void **state)
{
    auto_db *db = store(NULL, NULL);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    json_t *out = NULL;

    (void)state;
    assert_ok(expand(db, "{\"vm_path\": \"{{ .VMName }}\"}", &out, &problem, &err), err);
    assert_null(out);
    assert_ok(expand(db, "{\"template\": null}", &out, &problem, &err), err);
    assert_null(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_short_words),
        cmocka_unit_test(names_of_fields_become_canonical_and_texts_stay),
        cmocka_unit_test(what_cannot_be_a_template_is_refused_with_its_place),
        cmocka_unit_test(the_submissions_own_fields_win_member_by_member),
        cmocka_unit_test(placeholders_get_the_jobs_facts_once),
        cmocka_unit_test(what_has_no_value_or_no_template_is_told),
        cmocka_unit_test(without_a_template_nothing_is_made),
    };
    return cmocka_run_group_tests(tests, start_postgres, stop_postgres);
}
