/* Answers of vCenter's REST API about tags. */
#include <string.h>

#include "common/autos.h"
#include "services/exporter/providers/vsphere/tags.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int add(void *arg, const char *vm_id, const char *tag_id, struct error *err)
{
    return vm_tags_add(arg, vm_id, tag_id, err);
}

static void read_value(const json_t *value)
{
    struct vm_tags tags = {0};
    const char *name = NULL, *category = NULL;
    struct error err = ERROR_NONE;
    auto_json *vm = json_object();

    if (tags_answer_attached(value, add, &tags, &err) == 0)
        vm_tags_to_json(&tags, NULL, vm);
    if (tags.count > VM_TAGS_MAX)
        abort();
    vm_tags_release(&tags);
    error_clear(&err);
    if (tags_answer_item(value, &name, &category, &err) == 0 &&
        (name[0] == '\0' || strlen(category) > TAGS_TEXT_BYTES_MAX))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    for (int wrapped = 0; wrapped < 2; wrapped++) {
        auto_json *value = NULL;
        struct error err = ERROR_NONE;
        if (tags_answer_value((const char *)data, size, wrapped == 1, &value, &err) == 0)
            read_value(value);
    }
    return 0;
}
