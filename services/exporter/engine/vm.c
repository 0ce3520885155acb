/* See vm.h. */
#include "services/exporter/engine/vm.h"

#include <string.h>

#include "common/json.h"

static void texts_init(char **const *fields, size_t count)
{
    for (size_t i = 0; i < count; i++)
        *fields[i] = xstrdup("");
}

static void texts_free(char **const *fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(*fields[i]);
        *fields[i] = NULL;
    }
}

#define VM_TEXTS(vm)                                                                         \
    {                                                                                        \
        &(vm)->id, &(vm)->name, &(vm)->path, &(vm)->datacenter, &(vm)->host, &(vm)->cluster, \
            &(vm)->guest_id, &(vm)->guest_os, &(vm)->bios_uuid, &(vm)->instance_uuid,        \
            &(vm)->hardware_version                                                          \
    }
#define DISK_TEXTS(disk)                                                                        \
    {                                                                                           \
        &(disk)->id, &(disk)->label, &(disk)->source_path, &(disk)->format, &(disk)->change_id, \
            &(disk)->controller_type, &(disk)->controller_model, &(disk)->skip_reason           \
    }
#define NIC_TEXTS(nic)                                          \
    {                                                           \
        &(nic)->id, &(nic)->mac, &(nic)->network, &(nic)->model \
    }

void vm_init(struct vm *vm)
{
    *vm = (struct vm){0};
    char **const texts[] = VM_TEXTS(vm);
    texts_init(texts, ARRAY_LEN(texts));
}

struct vm_disk *vm_add_disk(struct vm *vm)
{
    struct vm_disk *disk;

    assert(vm->disk_count < VM_DISKS_MAX);
    vm->disks = xreallocarray(vm->disks, vm->disk_count + 1, sizeof *vm->disks);
    disk = &vm->disks[vm->disk_count++];
    *disk = (struct vm_disk){0};
    char **const texts[] = DISK_TEXTS(disk);
    texts_init(texts, ARRAY_LEN(texts));
    return disk;
}

struct vm_nic *vm_add_nic(struct vm *vm)
{
    struct vm_nic *nic;

    assert(vm->nic_count < VM_NICS_MAX);
    vm->nics = xreallocarray(vm->nics, vm->nic_count + 1, sizeof *vm->nics);
    nic = &vm->nics[vm->nic_count++];
    *nic = (struct vm_nic){0};
    char **const texts[] = NIC_TEXTS(nic);
    texts_init(texts, ARRAY_LEN(texts));
    return nic;
}

void vm_add_address(struct vm *vm, const char *address)
{
    assert(vm->ip_address_count < VM_ADDRESSES_MAX);
    vm->ip_addresses =
        xreallocarray(vm->ip_addresses, vm->ip_address_count + 1, sizeof *vm->ip_addresses);
    vm->ip_addresses[vm->ip_address_count++] = xstrdup(address);
}

void vm_set_text(char **field, const char *text)
{
    char *copy = xstrdup(text);

    free(*field);
    *field = copy;
}

void vm_release(struct vm *vm)
{
    char **const texts[] = VM_TEXTS(vm);

    texts_free(texts, ARRAY_LEN(texts));
    for (size_t i = 0; i < vm->disk_count; i++) {
        char **const disk_texts[] = DISK_TEXTS(&vm->disks[i]);
        texts_free(disk_texts, ARRAY_LEN(disk_texts));
    }
    for (size_t i = 0; i < vm->nic_count; i++) {
        char **const nic_texts[] = NIC_TEXTS(&vm->nics[i]);
        texts_free(nic_texts, ARRAY_LEN(nic_texts));
    }
    for (size_t i = 0; i < vm->ip_address_count; i++)
        free(vm->ip_addresses[i]);
    free(vm->disks);
    free(vm->nics);
    free(vm->ip_addresses);
    *vm = (struct vm){0};
}

const char *vm_power_name(enum vm_power power)
{
    switch (power) {
    case VM_POWER_ON:
        return "poweredOn";
    case VM_POWER_OFF:
        return "poweredOff";
    case VM_POWER_SUSPENDED:
        return "suspended";
    case VM_POWER_UNKNOWN:
        break;
    }
    return "unknown";
}

const char *vm_firmware_name(enum vm_firmware firmware)
{
    switch (firmware) {
    case VM_FIRMWARE_BIOS:
        return "bios";
    case VM_FIRMWARE_UEFI:
        return "uefi";
    case VM_FIRMWARE_UNKNOWN:
        break;
    }
    return "unknown";
}

static void set_u64(json_t *object, const char *key, uint64_t value)
{
    json_put(object, key, json_integer((json_int_t)value));
}

static void set_bool(json_t *object, const char *key, bool value)
{
    json_put(object, key, json_boolean(value));
}

/* object[key] = a new empty array, borrowed. */
static json_t *set_array(json_t *object, const char *key)
{
    json_t *array = json_array();

    json_put(object, key, array);
    return array;
}

static json_t *append_object(json_t *array)
{
    json_t *object = json_object();

    if (json_array_append_new(array, object) < 0)
        abort();
    return object;
}

static void disks_to_json(const struct vm *vm, json_t *array)
{
    for (size_t i = 0; i < vm->disk_count; i++) {
        const struct vm_disk *disk = &vm->disks[i];
        json_t *object = append_object(array);
        json_set_text(object, "id", disk->id);
        json_set_text(object, "label", disk->label);
        set_u64(object, "capacity_bytes", disk->capacity_bytes);
        json_set_text(object, "format", disk->format);
        json_set_text(object, "change_id", disk->change_id);
        json_set_text(object, "source_path", disk->source_path);
        json_set_text(object, "controller_type", disk->controller_type);
        json_set_text(object, "controller_model", disk->controller_model);
        set_u64(object, "controller_bus", disk->controller_bus);
        set_u64(object, "unit", disk->unit);
        set_bool(object, "thin", disk->thin);
        json_set_text(object, "skip_reason", disk->skip_reason);
    }
}

static void nics_to_json(const struct vm *vm, json_t *array)
{
    for (size_t i = 0; i < vm->nic_count; i++) {
        const struct vm_nic *nic = &vm->nics[i];
        json_t *object = append_object(array);
        json_set_text(object, "id", nic->id);
        json_set_text(object, "mac", nic->mac);
        json_set_text(object, "network", nic->network);
        json_set_text(object, "model", nic->model);
    }
}

static void addresses_to_json(const struct vm *vm, json_t *array)
{
    for (size_t i = 0; i < vm->ip_address_count; i++) {
        json_t *holder = json_object(); /* json_set_text repairs text that is not UTF-8 */
        json_set_text(holder, "a", vm->ip_addresses[i]);
        if (json_array_append(array, json_object_get(holder, "a")) < 0)
            abort();
        json_decref(holder);
    }
}

json_t *vm_to_json(const struct vm *vm, const char *provider)
{
    json_t *object = json_object();

    json_set_text(object, "id", vm->id);
    json_set_text(object, "name", vm->name);
    json_set_text(object, "path", vm->path);
    json_set_text(object, "datacenter", vm->datacenter);
    json_set_text(object, "host", vm->host);
    json_set_text(object, "cluster", vm->cluster);
    json_set_text(object, "provider", provider);
    json_set_text(object, "power_state", vm_power_name(vm->power));
    json_set_text(object, "guest_id", vm->guest_id);
    json_set_text(object, "guest_os", vm->guest_os);
    json_set_text(object, "bios_uuid", vm->bios_uuid);
    json_set_text(object, "instance_uuid", vm->instance_uuid);
    json_set_text(object, "hardware_version", vm->hardware_version);
    set_u64(object, "num_cpu", vm->num_cpu);
    set_u64(object, "cores_per_socket", vm->cores_per_socket);
    set_u64(object, "memory_mb", vm->memory_mb);
    set_u64(object, "storage_bytes", vm->storage_bytes);
    set_u64(object, "used_bytes", vm->used_bytes);
    json_set_text(object, "firmware", vm_firmware_name(vm->firmware));
    set_bool(object, "secure_boot", vm->secure_boot);
    set_bool(object, "tpm", vm->tpm);
    set_bool(object, "template", vm->template_vm);
    set_bool(object, "cbt_enabled", vm->cbt_enabled);
    set_u64(object, "snapshots", vm->snapshot_count);
    disks_to_json(vm, set_array(object, "disks"));
    nics_to_json(vm, set_array(object, "nics"));
    addresses_to_json(vm, set_array(object, "ip_addresses"));
    return object;
}

/* ---- tags ---- */

void vm_tags_release(struct vm_tags *tags)
{
    for (size_t i = 0; i < tags->count; i++) {
        free(tags->items[i].category);
        free(tags->items[i].name);
    }
    free(tags->items);
    *tags = (struct vm_tags){0};
}

int vm_tags_add(struct vm_tags *tags, const char *category, const char *name, struct error *err)
{
    if (tags->count == VM_TAGS_MAX)
        return error_set(err, ERR_LIMIT, "a VM has more than %d tags", VM_TAGS_MAX);
    tags->items = xreallocarray(tags->items, tags->count + 1, sizeof *tags->items);
    tags->items[tags->count++] = (struct vm_tag){xstrdup(category), xstrdup(name)};
    return 0;
}

void vm_tags_to_json(const struct vm_tags *tags, const char *unknown, json_t *vm)
{
    json_t *object;

    if (unknown != NULL) {
        json_put(vm, "tags", json_null());
        json_set_text(vm, "tags_unknown", unknown);
        return;
    }
    object = json_object();
    for (size_t i = 0; i < tags->count; i++) {
        json_t *names = json_object_get(object, tags->items[i].category);
        if (names == NULL)
            names = set_array(object, tags->items[i].category);
        if (json_array_append_new(names, json_string(tags->items[i].name)) < 0)
            abort();
    }
    json_put(vm, "tags", object);
}
