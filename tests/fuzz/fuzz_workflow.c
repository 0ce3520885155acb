/* Bodies of POST /workflows, JSON or YAML: what is accepted is a graph without circles, and is read
 * again from its stored form as the same. */
#include <assert.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/workflow.h"

#define BODY_BYTES_MAX 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_again(const struct workflow *first)
{
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    auto_json *stored = json_mask_secrets(first->definition);
    auto_workflow *again = NULL;

    if (workflow_parse(stored, &again, &problem, &err) < 0)
        abort();
    assert(again->step_count == first->step_count);
    for (uint32_t i = 0; i < first->step_count; i++) {
        assert(again->steps[i].depends == first->steps[i].depends);
        assert(again->steps[i].type == first->steps[i].type);
        assert(again->steps[i].wait_ms == first->steps[i].wait_ms);
        assert(again->steps[i].item_count == first->steps[i].item_count);
        for (uint32_t k = 0; k < first->steps[i].item_count && k < 4; k++) {
            auto_json *item = workflow_item(again, i, k);
            assert(json_is_object(item));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    auto_json *body = NULL;
    auto_workflow *workflow = NULL;
    uint64_t depends[WORKFLOW_STEPS_MAX];

    if (body_parse((const char *)data, size, BODY_BYTES_MAX, false, &body, &err) < 0 ||
        !json_is_object(body))
        return 0;
    if (workflow_parse(body, &workflow, &problem, &err) < 0) {
        assert(err.code != ERR_NONE && problem.status != 0);
        return 0;
    }
    assert(workflow->step_count >= 1 && workflow->step_count <= WORKFLOW_STEPS_MAX);
    for (uint32_t i = 0; i < workflow->step_count; i++)
        depends[i] = workflow->steps[i].depends;
    assert(workflow_find_cycle(depends, workflow->step_count) == -1);
    check_again(workflow);
    return 0;
}
