/* VMs: the information of one, lists of many. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "common/clock.h"
#include "common/json.h"

#define INFO_TRIES    8 /* the gateway waits 30 s for a worker each time */
#define LIST_PAGE     500
#define LIST_MAX      100000
#define LIST_COLUMNS  8
#define BOX_ROWS      9
#define RUNNING_COLOR "32"
#define STOPPED_COLOR "31"
#define OTHER_COLOR   "33"

static const char *power_color(const char *state)
{
    if (strcmp(state, "poweredOn") == 0)
        return RUNNING_COLOR;
    return strcmp(state, "poweredOff") == 0 ? STOPPED_COLOR : OTHER_COLOR;
}

/* "env:pci, env:production"; "" for none, "unknown: why" when the source told none. Caller frees.
 */
static char *tags_text(const json_t *vm)
{
    const char *category;
    json_t *names;
    auto_strbuf out = {0};

    if (json_str(vm, "tags_unknown")[0] != '\0')
        return xasprintf("unknown: %s", json_str(vm, "tags_unknown"));
    strbuf_init(&out, TEXT_BYTES_MAX);
    json_object_foreach(json_object_get(vm, "tags"), category, names)
    {
        const json_t *name;
        size_t i;
        json_array_foreach(names, i, name)
        {
            strbuf_addf(&out, "%s%s:%s", out.length == 0 ? "" : ", ", category,
                        json_is_string(name) ? json_string_value(name) : "");
        }
    }
    return xstrdup(out.data);
}

/* The seven lines of the reference in their order, then what else is known. */
static void show_quiet(const json_t *vm)
{
    static const char *const texts[] = {"name", "path", "power_state", "guest_os"};
    static const struct {
        const char *label;
        const char *key;
    } numbers[] = {
        {"cpu", "num_cpu"}, {"memory_mb", "memory_mb"}, {"storage_bytes", "storage_bytes"}};
    autofree char *tags = tags_text(vm);
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        output_pair(&out, texts[i], json_str(vm, texts[i]));
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        strbuf_addf(&out, "%s=%" PRIu64 "\n", numbers[i].label, json_u64(vm, numbers[i].key));
    output_pair(&out, "id", json_str(vm, "id"));
    output_pair(&out, "provider", json_str(vm, "provider"));
    output_pair(&out, "firmware", json_str(vm, "firmware"));
    output_pair(&out, "cluster", json_str(vm, "cluster"));
    output_pair(&out, "tags", tags);
    output_text(&out);
}

static void show_box(const struct program *program, const json_t *vm)
{
    char memory[2 * TEXT_NUMBER_SIZE];
    char cpus[TEXT_NUMBER_SIZE];
    char storage[TEXT_NUMBER_SIZE + 3];
    char gb[TEXT_NUMBER_SIZE];
    const char *power = json_str(vm, "power_state");
    autofree char *tags = tags_text(vm);
    struct text_row rows[BOX_ROWS];
    size_t count = 7;
    auto_strbuf out;

    text_gb(json_u64(vm, "memory_mb") * MIB, gb);
    (void)snprintf(memory, sizeof memory, "%" PRIu64 " MB (%s GB)", json_u64(vm, "memory_mb"), gb);
    (void)snprintf(cpus, sizeof cpus, "%" PRIu64, json_u64(vm, "num_cpu"));
    text_gb(json_u64(vm, "storage_bytes"), gb);
    (void)snprintf(storage, sizeof storage, "%s GB", gb);
    rows[0] = (struct text_row){.label = "VM Name", .value = json_str(vm, "name")};
    rows[1] = (struct text_row){.label = "Power State",
                                .value = power,
                                .prefix = program->style.utf8 ? "\xe2\x97\x8f " : "* ",
                                .color = power_color(power)};
    rows[2] = (struct text_row){.label = "Guest OS", .value = json_str(vm, "guest_os")};
    rows[3] = (struct text_row){.label = "Memory", .value = memory};
    rows[4] = (struct text_row){.label = "vCPUs", .value = cpus};
    rows[5] = (struct text_row){.label = "Storage", .value = storage};
    rows[6] = (struct text_row){.label = "Path", .value = json_str(vm, "path")};
    strbuf_init(&out, TEXT_BYTES_MAX);
    if (json_str(vm, "cluster")[0] != '\0')
        rows[count++] = (struct text_row){.label = "Cluster", .value = json_str(vm, "cluster")};
    if (tags[0] != '\0')
        rows[count++] = (struct text_row){.label = "Tags", .value = tags};
    text_box(&out, "VM Information", true, rows, count, &program->style);
    output_text(&out);
}

/* A gateway whose workers are all busy answers 202 without facts: asked again, it has them. */
static int fetch_vm(struct program *program, json_t **out, struct error *err)
{
    const struct command_line *line = program->line;
    auto_json *body = json_object();

    json_set_text(body, "vm_path", flag_text(line, FLAG_VM));
    if (flag_given(line, FLAG_PROVIDER))
        json_set_text(body, "provider", flag_text(line, FLAG_PROVIDER));
    for (int i = 0; i < INFO_TRIES; i++) {
        auto_json *answer = NULL;
        json_t *vm;
        if (api_call(program->api,
                     &(struct api_request){.method = "POST", .path = "/vms/info", .body = body},
                     &answer, err) < 0)
            return -1;
        vm = json_object_get(answer, "vm_info");
        if (json_is_object(vm)) {
            *out = json_incref(vm);
            return 0;
        }
    }
    return error_set(err, ERR_TIMEOUT,
                     "no worker has looked at VM '%.128s' yet ('hyperexport status' tells why)",
                     flag_text(line, FLAG_VM));
}

int vm_info_command(struct program *program, struct error *err)
{
    auto_json *vm = NULL;

    if (flag_text(program->line, FLAG_VM) == NULL)
        return error_set(err, ERR_INVALID, "'vms info' needs --vm NAME");
    if (api_check(program->api, err) < 0 || fetch_vm(program, &vm, err) < 0)
        return -1;
    if (program->json) {
        output_json(vm);
    } else if (program->quiet) {
        show_quiet(vm);
    } else {
        show_box(program, vm);
    }
    return EXIT_DONE;
}

static void show_list(const struct program *program, const json_t *vms)
{
    size_t count = json_array_size(vms);
    autofree const char **cells = xcalloc((count + 1) * LIST_COLUMNS, sizeof *cells);
    autofree char(*texts)[3][TEXT_NUMBER_SIZE] = xcalloc(count + 1, sizeof *texts);
    autofree char **tags = xcalloc(count + 1, sizeof *tags);
    static const char *const heading[LIST_COLUMNS] = {"NAME",    "POWER", "CPU",     "MEMORY",
                                                      "STORAGE", "PATH",  "CLUSTER", "TAGS"};
    size_t i;
    const json_t *vm;
    auto_strbuf out;

    memcpy(cells, heading, sizeof heading);
    json_array_foreach(vms, i, vm)
    {
        const char **row = &cells[(i + 1) * LIST_COLUMNS];
        (void)snprintf(texts[i][0], TEXT_NUMBER_SIZE, "%" PRIu64, json_u64(vm, "num_cpu"));
        text_size(json_u64(vm, "memory_mb") * MIB, texts[i][1]);
        text_size(json_u64(vm, "storage_bytes"), texts[i][2]);
        row[0] = json_str(vm, "name");
        row[1] = json_str(vm, "power_state");
        row[2] = texts[i][0];
        row[3] = texts[i][1];
        row[4] = texts[i][2];
        row[5] = json_str(vm, "path");
        row[6] = json_str(vm, "cluster");
        tags[i] = tags_text(vm);
        row[7] = json_is_null(json_object_get(vm, "tags")) ? "unknown" : tags[i];
    }
    strbuf_init(&out, API_BODY_BYTES_MAX);
    text_table(&out, cells, LIST_COLUMNS, count + 1, program->style.utf8);
    output_text(&out);
    for (i = 0; i < count; i++)
        free(tags[i]);
}

static void show_list_quiet(const json_t *vms)
{
    size_t i;
    const json_t *vm;
    auto_strbuf out;

    strbuf_init(&out, API_BODY_BYTES_MAX);
    json_array_foreach(vms, i, vm)
    {
        text_add_clean(&out, json_str(vm, "id"), true);
        strbuf_addc(&out, '\t');
        text_add_clean(&out, json_str(vm, "power_state"), true);
        strbuf_addc(&out, '\t');
        text_add_clean(&out, json_str(vm, "path"), true);
        strbuf_addc(&out, '\n');
    }
    output_text(&out);
}

static int fetch_page(struct program *program, size_t offset, size_t limit, json_t **out,
                      struct error *err)
{
    const struct command_line *line = program->line;
    auto_strbuf path;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_addf(&path, "/api/v1/vms?limit=%zu&offset=%zu", limit, offset);
    api_path_add(&path, "provider", flag_text(line, FLAG_PROVIDER));
    api_path_add(&path, "name", flag_text(line, FLAG_NAME));
    api_path_add(&path, "cluster", flag_text(line, FLAG_CLUSTER));
    api_path_add(&path, "tags", flag_text(line, FLAG_TAG));
    return api_get(program->api, path.data, out, err);
}

static int list(struct program *program, struct error *err)
{
    size_t limit =
        flag_given(program->line, FLAG_LIMIT) ? flag_number(program->line, FLAG_LIMIT) : LIST_MAX;
    auto_json *vms = json_array();

    if (api_check(program->api, err) < 0)
        return -1;
    while (json_array_size(vms) < limit) {
        auto_json *page = NULL;
        json_t *items;
        size_t wanted = min_u64(LIST_PAGE, limit - json_array_size(vms));
        if (fetch_page(program, json_array_size(vms), wanted, &page, err) < 0)
            return -1;
        items = json_object_get(page, "vms");
        if (!json_is_array(items)) {
            return error_set(err, ERR_UNAVAILABLE,
                             "the inventory is not ready yet, a worker still reads it; come again");
        }
        (void)json_array_extend(vms, items);
        if (json_array_size(items) < wanted)
            break;
    }
    if (program->json) {
        output_json(vms);
    } else if (program->quiet) {
        show_list_quiet(vms);
    } else {
        show_list(program, vms);
    }
    return EXIT_DONE;
}

int vms_command(struct program *program, struct error *err)
{
    const char *what = program->line->word_count > 1 ? program->line->words[1] : "list";

    if (command_words_max(program, 2, err) < 0)
        return -1;
    if (strcmp(what, "list") == 0)
        return list(program, err);
    if (strcmp(what, "info") == 0)
        return vm_info_command(program, err);
    return command_without_code(program, err);
}
