/* Documents with placeholders, JSON or YAML, and templates of jobs. Values are file names where
 * places are named. */
#include <assert.h>
#include <string.h>

#include "common/autos.h"
#include "common/job_template.h"
#include "common/json.h"
#include "common/placeholders.h"

#define BODY_BYTES_MAX 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What is stored of a template is one again, and the same. */
static void store_twice(const json_t *body)
{
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    auto_json *once = NULL;
    auto_json *twice = NULL;

    if (!json_is_object(body) || job_template_canonical(NULL, body, &once, &problem, &err) < 0)
        return;
    assert(job_template_canonical(NULL, once, &twice, &problem, &err) == 0);
    assert(json_equal(once, twice));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_json *vars = placeholders_vars(&(struct placeholder_facts){
        .vm_name = "../a b/{{ .JobID }}", .vm_path = "/x/..", .provider = "p", .now_ms = 1});
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    auto_json *body = NULL;
    auto_json *out = NULL;

    if (body_parse((const char *)data, size, BODY_BYTES_MAX, false, &body, &err) < 0)
        return 0;
    store_twice(body);
    if (placeholders_expand(body, vars, &out, &problem, &err) < 0) {
        assert(err.code != ERR_NONE && problem.status == 422);
        return 0;
    }
    if (strchr(json_str(body, "output_path"), '/') == NULL)
        assert(strchr(json_str(out, "output_path"), '/') == NULL);
    assert(placeholders_check(body, NULL, &problem, &err) == 0);
    return 0;
}
