/* Bodies of POST /jobs/submit, JSON or YAML, up to the task specs made of them. */
#include <assert.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/submit.h"

#define BODY_BYTES_MAX 65536
#define ELEMENTS_MAX   16 /* of one body: the interesting part is each single one */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char base[] = "/exports";
static char *base_items[] = {base};
static const struct config_list bases = {base_items, 1};
static char format[] = "qcow2";
static const struct libvirt_config libvirt = {.uri = (char[]){"qemu:///system"},
                                              .pool = (char[]){""}};
static const struct hyper2kvm_config hyper2kvm = {.default_format = format,
                                                  .job_timeout_ms = 3600000};
static const struct retry_config retry = {3, 60000, 1800000};
static const struct hooks_config hooks = {.scripts_dir = (char[]){"/etc/hypersdk/scripts"}};

static void parse_one(const json_t *element)
{
    const struct submit_settings settings = {&bases, &hyper2kvm, &libvirt, &retry,
                                             NULL,   &hooks,     NULL,     NULL};
    auto_submit_request *request = NULL;
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    if (submit_parse(&settings, element, NULL, &request, &problem, &err) < 0) {
        assert(err.code != ERR_NONE && problem.status != 0);
        return;
    }
    assert(strncmp(request->output_path, base, strlen(base)) == 0);
    assert(request->submission.vm_path[0] != '\0' && request->submission.priority <= 100);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct submit_batch batch;
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    auto_json *body = NULL;

    if (body_parse((const char *)data, size, BODY_BYTES_MAX, false, &body, &err) < 0)
        return 0;
    if (!json_is_object(body) && !json_is_array(body))
        return 0; /* the router refuses these */
    if (submit_split(body, &batch, &problem, &err) < 0)
        return 0;
    for (size_t i = 0; i < batch.count && i < ELEMENTS_MAX; i++)
        parse_one(batch.elements[i]);
    return 0;
}
