#include "services/exporter/providers/vsphere/vsphere.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "services/exporter/providers/vsphere/cdrom.h"
#include "services/exporter/providers/vsphere/changes.h"
#include "services/exporter/providers/vsphere/folder.h"
#include "services/exporter/providers/vsphere/inventory.h"
#include "services/exporter/providers/vsphere/tags.h"
#include "services/exporter/providers/vsphere/nfc.h"
#include "services/exporter/providers/vsphere/session.h"
#include "services/exporter/providers/vsphere/power.h"
#include "services/exporter/providers/vsphere/snapshot.h"

#define SNAPSHOT_NAME_BYTES_MAX 80 /* vSphere's own limit */

/* Keys of the task records. */
#define RECORD_VM          "snapshot_vm"
#define RECORD_INTENT      "snapshot_intent"
#define RECORD_DESCRIPTION "snapshot_description"
#define RECORD_SNAPSHOT    "snapshot"
#define RECORD_KEEP        "snapshot_keep"
#define RECORD_CONSOLIDATE "snapshot_consolidate"
#define RECORD_METHOD      "method"   /* METHOD_NFC when we chose it */
#define RECORD_NO_FILE     "no_file"  /* why we did */
#define RECORD_TRACKING    "tracking" /* "on" or "off" while it is being set, then "done" */

#define METHOD_NFC "nfc"

#define KEY(member) offsetof(struct vsphere_config, member)

static const struct config_key vsphere_keys[] = {
    {"host", CONFIG_STRING, KEY(host), NULL, 1, 512, CONFIG_REQUIRED,
     "vCenter or ESXi: host, host:port or https URL"},
    {"username", CONFIG_STRING, KEY(username), NULL, 1, 255, CONFIG_REQUIRED,
     "account, e.g. backup@vsphere.local"},
    {"password", CONFIG_STRING, KEY(password), "", 0, 1023, CONFIG_SECRET, "its password"},
    {"password_file", CONFIG_FILE, KEY(password), NULL, 0, 4095, CONFIG_SECRET,
     "file holding the password"},
    {"thumbprint", CONFIG_STRING, KEY(thumbprint), "", 0, 95, 0,
     "SHA-1 (AA:BB:..) or SHA-256 of the server's certificate: the only one accepted"},
    {"ca_file", CONFIG_STRING, KEY(ca_file), "", 0, 4095, 0,
     "PEM certificates that may sign the server's; default: the system's"},
    {"insecure", CONFIG_BOOL, KEY(insecure), "false", 0, 0, 0,
     "accept any certificate (the password goes to whoever answers)"},
    {"datacenter", CONFIG_STRING, KEY(datacenter), "", 0, 512, 0,
     "name or path of the only datacenter to use; default: all"},
    {"timeout", CONFIG_DURATION_MS, KEY(timeout_ms), "30s", 100, 600000, 0,
     "for connecting and for one API call"},
    {0},
};

/* ---- session ---- */

static int vsphere_open(const void *config, const atomic_bool *cancelled,
                        struct provider_session **out, struct error *err)
{
    const struct vsphere_config *settings = config;

    if (settings->password[0] == '\0')
        return error_set(err, ERR_INVALID, "password is missing: set password or password_file");
    if (session_new(settings, cancelled, out, err) < 0)
        return -1;
    if (settings->insecure)
        LOG(WARN, "vsphere_certificate_unchecked", F_STR("host", settings->host));
    return 0;
}

static void vsphere_close(struct provider_session *session)
{
    session_free(session);
}

static int vsphere_check(struct provider_session *session, struct provider_check *out,
                         struct error *err)
{
    *out = (struct provider_check){0};
    if (session_discover(session, err) == 0) {
        out->reachable = true;
        (void)snprintf(out->version, sizeof out->version, "%s", session->content.full_name);
        if (session_login(session, err) == 0) {
            out->authenticated = true;
            return 0;
        }
    }
    if (err->code == ERR_INTERNAL || err->code == ERR_CANCELLED)
        return -1;
    (void)snprintf(out->message, sizeof out->message, "%s", err->message);
    error_clear(err);
    return 0;
}

static int vsphere_vm_list(struct provider_session *session,
                           int (*page)(void *arg, const struct vm *vms, size_t count,
                                       struct error *err),
                           void *arg, struct error *err)
{
    return inventory_list(session, page, arg, err);
}

static int vsphere_vm_get(struct provider_session *session, const char *vm_id, struct vm *out,
                          struct error *err)
{
    auto_vsphere_vm vm;

    if (inventory_get(session, vm_id, &vm, err) < 0)
        return -1;
    vm_release(out);
    *out = vm.vm;
    vm_init(&vm.vm);
    return 0;
}

/* ---- prepare ---- */

/* frozen_vm.provider_data. */
struct frozen_data {
    struct folder_file files[VM_DISKS_MAX]; /* as frozen_vm.disks */
    char *change_ids[VM_DISKS_MAX];         /* likewise; as the configuration says them */
    char *snapshot;                         /* "" when the VM is powered off */
    struct task_records *records;           /* for the leases of method nfc, which has no files */
};

struct provider_disk {
    struct folder_reader *reader;
};

static void vsphere_frozen_free(struct frozen_vm *frozen)
{
    struct frozen_data *data;

    if (frozen == NULL)
        return;
    data = frozen->provider_data;
    for (size_t i = 0; i < VM_DISKS_MAX; i++) {
        folder_file_release(&data->files[i]);
        free(data->change_ids[i]);
    }
    for (size_t i = 0; i < frozen->disk_count; i++)
        free(frozen->disks[i].mark);
    free(data->snapshot);
    free(data);
    free(frozen->disks);
    free(frozen->method);
    vm_release(&frozen->vm);
    free(frozen);
}

DEFINE_AUTO(frozen, struct frozen_vm, vsphere_frozen_free)
#define auto_frozen CLEANUP(frozen_auto) struct frozen_vm

static int check_state(const struct vsphere_vm *vm, struct error *err)
{
    const char *name = vm->vm.name;

    if (vm->vm.template_vm) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "'%.128s' is a template: convert it to a VM, or deploy one from it", name);
    }
    if (!vm->connected) {
        return error_set(err, ERR_UNAVAILABLE,
                         "VM '%.128s' is not connected: its host does not answer vCenter", name);
    }
    if (vm->question) {
        return error_set(err, ERR_CONFLICT,
                         "VM '%.128s' waits for an answer: open it in vCenter and answer", name);
    }
    if (vm->devices_hidden) {
        return error_set(err, ERR_DENIED,
                         "the hardware of VM '%.128s' is not readable: give the account read-only "
                         "access to it",
                         name);
    }
    switch (vm->vm.power) {
    case VM_POWER_ON:
    case VM_POWER_OFF:
        return 0;
    case VM_POWER_SUSPENDED:
        return error_set(err, ERR_NOT_AVAILABLE,
                         "VM '%.128s' is suspended, part of its disks' content lies in its memory "
                         "file: resume it or power it off",
                         name);
    case VM_POWER_UNKNOWN:
        break;
    }
    return error_set(err, ERR_PROTOCOL, "the power state of VM '%.128s' is unknown", name);
}

/* No disk may be lost silently: whoever wants to leave one out decides so in vSphere. */
static int check_disks(const struct vsphere_vm *vm, bool snapshot, struct error *err)
{
    if (vm->vm.disk_count == 0)
        return error_set(err, ERR_NOT_AVAILABLE, "VM '%.128s' has no disks", vm->vm.name);
    for (size_t i = 0; i < vm->vm.disk_count; i++) {
        const struct vm_disk *disk = &vm->vm.disks[i];
        if (disk->skip_reason[0] != '\0') {
            return error_set(err, ERR_NOT_AVAILABLE,
                             "disk '%.64s' cannot be exported: %s; detach it from the VM or change "
                             "it, then export again",
                             disk->label, disk->skip_reason);
        }
        if (snapshot && vm->backings[i].independent) {
            return error_set(err, ERR_NOT_AVAILABLE,
                             "disk '%.64s' is independent, snapshots leave it out: export the "
                             "powered-off VM without a snapshot",
                             disk->label);
        }
    }
    return 0;
}

static int check_parents(const struct vsphere_vm *vm, struct error *err)
{
    for (size_t i = 0; i < vm->vm.disk_count; i++) {
        if (vm->backings[i].has_parent) {
            return error_set(
                err, ERR_NOT_AVAILABLE,
                "disk '%.64s' of VM '%.128s' is a chain: the VM has older snapshots or "
                "is a linked clone; delete or consolidate its snapshots first",
                vm->vm.disks[i].label, vm->vm.name);
        }
    }
    return 0;
}

static int put(struct task_records *records, const char *key, const char *value, struct error *err)
{
    const char *have = records->get(records, key);

    if (have != NULL && strcmp(have, value) == 0)
        return 0;
    return records->put(records, key, value, err);
}

static const char *record(struct task_records *records, const char *key)
{
    const char *value = records->get(records, key);

    return value == NULL ? "" : value;
}

/* The snapshot that an earlier lease recorded, if it still exists; else *out stays NULL. */
static int recorded_snapshot(struct provider_session *session, struct task_records *records,
                             char **out, struct error *err)
{
    const char *id = record(records, RECORD_SNAPSHOT);

    if (id[0] == '\0')
        return 0;
    if (snapshot_check(session, id, err) < 0) {
        if (err->code != ERR_NOT_FOUND)
            return -1;
        error_clear(err);
        return 0;
    }
    *out = xstrdup(id);
    return 0;
}

static int put_intent(struct task_records *records, const char *vm_id,
                      const struct snapshot_spec *spec, const struct prepare_options *options,
                      struct error *err)
{
    if (put(records, RECORD_VM, vm_id, err) < 0 ||
        put(records, RECORD_DESCRIPTION, spec->description, err) < 0 ||
        put(records, RECORD_KEEP, options->delete_snapshot ? "no" : "yes", err) < 0 ||
        put(records, RECORD_CONSOLIDATE, options->consolidate ? "yes" : "no", err) < 0)
        return -1;
    return put(records, RECORD_INTENT, spec->name, err); /* last: with it the others are there */
}

/* One way to prepare: by the disks' flat files, or by an export lease. */
struct preparation {
    struct provider_session *session;
    const char *vm_id;
    const struct prepare_options *options;
    struct task_records *records;
    bool nfc;
    bool no_file; /* there is no flat file that holds a whole disk, the error says why */
};

static int check_files(struct preparation *prep, const struct vsphere_vm *vm, struct error *err)
{
    if (prep->nfc || check_parents(vm, err) == 0)
        return 0;
    prep->no_file = true;
    return -1;
}

/* Finds or makes the job's snapshot; *out is its id, and the records name it. */
static int take_snapshot(struct preparation *prep, const struct vsphere_vm *vm, char **out,
                         struct error *err)
{
    struct provider_session *session = prep->session;
    struct task_records *records = prep->records;
    const struct prepare_options *options = prep->options;
    autofree char *id = NULL;
    autofree char *name = options->snapshot_name != NULL && options->snapshot_name[0] != '\0'
                              ? xstrdup(options->snapshot_name)
                              : xasprintf("hypersdk-%s", options->job_id);
    autofree char *description = xasprintf("HyperSDK job %s", options->job_id);
    struct snapshot_spec spec = {
        .name = name,
        .description = description,
        .memory = options->snapshot_memory && vm->vm.power == VM_POWER_ON,
        .quiesce = options->snapshot_quiesce && vm->vm.power == VM_POWER_ON,
        .timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : SNAPSHOT_TIMEOUT_MS,
    };

    if (strlen(name) > SNAPSHOT_NAME_BYTES_MAX) {
        return error_set(err, ERR_INVALID, "snapshot name '%.80s...' is longer than %d bytes", name,
                         SNAPSHOT_NAME_BYTES_MAX);
    }
    if (recorded_snapshot(session, records, &id, err) < 0)
        return -1;
    if (id == NULL && snapshot_find(session, vm->vm.id, &spec, &id, err) < 0)
        return -1;
    if (id == NULL) {
        /* From now on it would be our own snapshot that makes a chain. */
        if (check_files(prep, vm, err) < 0 ||
            put_intent(records, vm->vm.id, &spec, options, err) < 0 ||
            snapshot_create(session, vm->vm.id, &spec, &id, err) < 0)
            return -1;
    } else if (put_intent(records, vm->vm.id, &spec, options, err) < 0) {
        return -1;
    }
    if (put(records, RECORD_SNAPSHOT, id, err) < 0)
        return -1;
    *out = STEAL(id);
    return 0;
}

/* The identity of one disk's bytes. */
static char *mark_text(const char *vm_id, const struct vm_disk *disk,
                       const struct folder_file *file, const char *snapshot, const char *power)
{
    if (snapshot[0] != '\0') {
        return xasprintf("vsphere vm=%s disk=%s size=%" PRIu64 " snapshot=%s", vm_id, disk->id,
                         disk->capacity_bytes, snapshot);
    }
    return xasprintf("vsphere vm=%s disk=%s size=%" PRIu64 " power=%s modified=%s etag=%s", vm_id,
                     disk->id, file->size_bytes, power, file->last_modified, file->etag);
}

static int locate(struct preparation *prep, const struct vsphere_vm *vm, size_t index,
                  struct folder_file *out, struct error *err)
{
    const struct vm_disk *disk = &vm->vm.disks[index];

    if (prep->nfc || folder_locate(prep->session, vm->datacenter_path, disk->source_path,
                                   disk->capacity_bytes, out, err) == 0)
        return 0;
    prep->no_file = err->code == ERR_NOT_AVAILABLE;
    return error_wrap(err, "disk '%.64s' (%.128s)", disk->label, disk->source_path);
}

static const char *method_name(const struct preparation *prep, const char *snapshot)
{
    if (prep->nfc)
        return "snapshot-nfc";
    return snapshot[0] == '\0' ? "folder" : "snapshot-folder";
}

/* The position in a disk's change tracking, to ask the server with; and to build on later, unless
 * - no snapshot says it: what that of a powered-off VM stands for is not documented;
 * - the disk has an older snapshot (or is a linked clone's): going back to that one later is a step
 *   that the numbers need not show. */
static void keep_change_ids(struct vsphere_vm *vm, bool snapshot, struct frozen_data *data)
{
    for (size_t i = 0; i < vm->vm.disk_count; i++) {
        data->change_ids[i] = xstrdup(vm->vm.disks[i].change_id);
        if (!snapshot || vm->backings[i].has_parent)
            vm_set_text(&vm->vm.disks[i].change_id, "");
    }
}

/* Locates every disk's flat file and fills frozen from vm, which is emptied. */
static int freeze(struct preparation *prep, struct vsphere_vm *vm, const char *snapshot,
                  struct frozen_vm *frozen, struct error *err)
{
    struct frozen_data *data = frozen->provider_data;

    frozen->disks = xcalloc(vm->vm.disk_count, sizeof *frozen->disks);
    for (size_t i = 0; i < vm->vm.disk_count; i++) {
        const struct vm_disk *disk = &vm->vm.disks[i];
        if (locate(prep, vm, i, &data->files[i], err) < 0)
            return -1;
        frozen->disks[i] = (struct frozen_disk){
            .vm_disk_index = i,
            .size_bytes = disk->capacity_bytes,
            .mark =
                mark_text(vm->vm.id, disk, &data->files[i], snapshot, vm_power_name(vm->vm.power)),
        };
        frozen->disk_count++;
    }
    keep_change_ids(vm, snapshot[0] != '\0', data);
    data->snapshot = xstrdup(snapshot);
    data->records = prep->records;
    frozen->method = xstrdup(method_name(prep, snapshot));
    frozen->forward_only = prep->nfc;
    vm_release(&frozen->vm);
    frozen->vm = vm->vm;
    vm_init(&vm->vm);
    return 0;
}

static struct frozen_vm *frozen_new(void)
{
    struct frozen_vm *frozen = xcalloc(1, sizeof *frozen);

    vm_init(&frozen->vm);
    frozen->provider_data = xcalloc(1, sizeof(struct frozen_data));
    return frozen;
}

static int prepare(struct preparation *prep, struct frozen_vm **out, struct error *err)
{
    struct provider_session *session = prep->session;
    auto_vsphere_vm vm;
    auto_frozen *frozen = NULL;
    autofree char *snapshot = NULL;
    bool wants_snapshot;

    if (inventory_get(session, prep->vm_id, &vm, err) < 0)
        return -1;
    /* A task that began with a snapshot goes on with it, though the VM was stopped since. */
    wants_snapshot = prep->nfc || prep->options->snapshot || vm.vm.power == VM_POWER_ON ||
                     record(prep->records, RECORD_SNAPSHOT)[0] != '\0';
    if (wants_snapshot && prep->options->never_snapshot)
        return error_set(err, ERR_NOT_AVAILABLE, "it would take a snapshot");
    if (check_state(&vm, err) < 0 || check_disks(&vm, wants_snapshot, err) < 0)
        return -1;
    if (wants_snapshot &&
        (take_snapshot(prep, &vm, &snapshot, err) < 0 ||
         snapshot_read_disks(session, snapshot, &vm, err) < 0 || check_disks(&vm, true, err) < 0))
        return -1;
    if (check_files(prep, &vm, err) < 0)
        return -1;
    frozen = frozen_new();
    if (freeze(prep, &vm, snapshot == NULL ? "" : snapshot, frozen, err) < 0)
        return -1;
    *out = STEAL(frozen);
    return 0;
}

static int vsphere_prepare(struct provider_session *session, const char *vm_id,
                           const struct prepare_options *options, struct task_records *records,
                           struct frozen_vm **out, struct error *err)
{
    const char *asked = options->method == NULL ? record(records, RECORD_METHOD) : options->method;
    struct preparation prep = {.session = session,
                               .vm_id = vm_id,
                               .options = options,
                               .records = records,
                               .nfc = strcmp(asked, METHOD_NFC) == 0};
    autofree char *why = NULL;

    if (nfc_abort_recorded(session, records, err) < 0)
        return -1;
    if (prepare(&prep, out, err) == 0)
        return 0;
    if (prep.nfc || !prep.no_file || options->never_snapshot)
        return -1;
    why = utf8_clean(err->message, sizeof err->message);
    LOG(INFO, "vsphere_folder_unavailable", F_STR("vm", vm_id), F_ERR(err));
    error_clear(err);
    if (put(records, RECORD_NO_FILE, why, err) < 0 ||
        put(records, RECORD_METHOD, METHOD_NFC, err) < 0)
        return -1;
    prep.nfc = true;
    return prepare(&prep, out, err);
}

/* ---- disks ---- */

static int vsphere_disk_open(struct provider_session *session, const struct frozen_vm *frozen,
                             size_t index, struct provider_disk **out, struct error *err)
{
    const struct frozen_data *data = frozen->provider_data;
    struct provider_disk *disk;

    assert(index < frozen->disk_count);
    disk = xcalloc(1, sizeof *disk);
    if (folder_reader_new(session, &data->files[index], &disk->reader, err) < 0) {
        free(disk);
        return -1;
    }
    *out = disk;
    return 0;
}

static int vsphere_disk_read(struct provider_disk *disk, void *buffer, size_t length,
                             uint64_t offset, struct error *err)
{
    return folder_reader_read(disk->reader, buffer, length, offset, err);
}

static int vsphere_disk_stream(struct provider_disk *disk, uint64_t length, uint64_t offset,
                               int (*take)(void *arg, const void *data, size_t length,
                                           struct error *err),
                               void *arg, struct error *err)
{
    return folder_reader_stream(disk->reader, length, offset, take, arg, err);
}

static int vsphere_disk_changes(struct provider_session *session, const struct frozen_vm *frozen,
                                const struct changes_query *query, struct extent_list *out,
                                struct error *err)
{
    const struct frozen_data *data = frozen->provider_data;
    const struct vm_disk *disk;

    assert(query->disk_index < frozen->disk_count);
    disk = &frozen->vm.disks[frozen->disks[query->disk_index].vm_disk_index];
    return changes_query(session,
                         &(struct changes_place){.vm_id = frozen->vm.id,
                                                 .snapshot = data->snapshot,
                                                 .device_key = disk->id,
                                                 .now = data->change_ids[query->disk_index],
                                                 .size_bytes = disk->capacity_bytes},
                         query, out, err);
}

static void vsphere_disk_close(struct provider_disk *disk)
{
    if (disk == NULL)
        return;
    folder_reader_free(disk->reader);
    free(disk);
}

static int vsphere_stream_open(struct provider_session *session, const struct frozen_vm *frozen,
                               size_t index, struct provider_stream **out, struct error *err)
{
    const struct frozen_data *data = frozen->provider_data;
    struct nfc_place place;
    const char *why;

    assert(index < frozen->disk_count);
    place = (struct nfc_place){.records = data->records,
                               .snapshot = data->snapshot,
                               .disk = &frozen->vm.disks[frozen->disks[index].vm_disk_index],
                               .size_bytes = frozen->disks[index].size_bytes};
    if (nfc_stream_open(session, &place, out, err) == 0)
        return 0;
    why = record(data->records, RECORD_NO_FILE);
    if (why[0] == '\0' || error_is_retryable(err))
        return -1;
    return error_wrap(err, "its file cannot be read (%.200s), nor can it come by NFC", why);
}

static int snapshot_still_there(struct provider_session *session, const char *snapshot,
                                struct error *err)
{
    if (snapshot_check(session, snapshot, err) == 0)
        return 0;
    if (err->code != ERR_NOT_FOUND)
        return -1;
    error_clear(err);
    return error_set(err, ERR_SOURCE_CHANGED,
                     "snapshot '%s' of this job was deleted by someone else", snapshot);
}

static int vsphere_disk_mark(struct provider_session *session, const struct frozen_vm *frozen,
                             size_t index, char **out, struct error *err)
{
    const struct frozen_data *data = frozen->provider_data;
    const struct vm_disk *disk;
    const struct folder_file *file;
    const char *power = "";

    assert(index < frozen->disk_count);
    disk = &frozen->vm.disks[frozen->disks[index].vm_disk_index];
    file = &data->files[index];
    if (data->snapshot[0] != '\0') {
        if (snapshot_still_there(session, data->snapshot, err) < 0)
            return -1;
    } else {
        enum vm_power now = VM_POWER_UNKNOWN;
        if (inventory_power(session, frozen->vm.id, &now, err) < 0)
            return -1;
        power = vm_power_name(now);
    }
    if (!frozen->forward_only && folder_compare(session, file, err) < 0)
        return -1;
    *out = mark_text(frozen->vm.id, disk, file, data->snapshot, power);
    return 0;
}

/* ---- release ---- */

/* Id of the recorded snapshot, or of one whose creation was recorded but not its result. */
static int snapshot_to_remove(struct provider_session *session, struct task_records *records,
                              char **out, struct error *err)
{
    const char *id = record(records, RECORD_SNAPSHOT);
    struct snapshot_spec spec = {
        .name = record(records, RECORD_INTENT),
        .description = record(records, RECORD_DESCRIPTION),
        .timeout_ms = SNAPSHOT_TIMEOUT_MS,
    };

    *out = NULL;
    if (id[0] != '\0') {
        *out = xstrdup(id);
        return 0;
    }
    if (spec.name[0] == '\0')
        return 0;
    if (snapshot_find(session, record(records, RECORD_VM), &spec, out, err) < 0) {
        if (err->code != ERR_NOT_FOUND)
            return -1;
        error_clear(err); /* the VM is gone, and its snapshots with it */
    }
    return 0;
}

static int remove_recorded(struct provider_session *session, struct task_records *records,
                           struct error *err)
{
    autofree char *id = NULL;
    const char *vm_id = record(records, RECORD_VM);

    if (snapshot_to_remove(session, records, &id, err) < 0)
        return -1;
    if (id == NULL)
        return 0;
    if (snapshot_remove(session, id, err) < 0)
        return -1;
    LOG(INFO, "vsphere_snapshot_removed", F_STR("vm", vm_id), F_STR("snapshot", id));
    if (strcmp(record(records, RECORD_CONSOLIDATE), "no") == 0)
        return 0;
    if (snapshot_consolidate(session, vm_id, err) < 0) {
        if (err->code != ERR_NOT_AVAILABLE)
            return -1;
        LOG(WARN, "vsphere_consolidation_unavailable", F_STR("vm", vm_id), F_ERR(err));
        error_clear(err);
    }
    return 0;
}

static int release_recorded(struct provider_session *session, struct task_records *records,
                            bool keep, struct error *err)
{
    bool none =
        record(records, RECORD_INTENT)[0] == '\0' && record(records, RECORD_SNAPSHOT)[0] == '\0';
    bool kept = keep && strcmp(record(records, RECORD_KEEP), "yes") == 0;

    if (!none && !kept && remove_recorded(session, records, err) < 0)
        return -1;
    return power_restore(session, records, err);
}

static int vsphere_release(struct provider_session *session, struct task_records *records,
                           bool keep, struct error *err)
{
    struct error shield_err = ERROR_NONE;
    int rc;

    if (nfc_abort_recorded(session, records, err) < 0 || session_shield(session, true, err) < 0)
        return -1;
    rc = release_recorded(session, records, keep, err);
    if (session_shield(session, false, &shield_err) < 0 && rc == 0) {
        *err = shield_err;
        return -1;
    }
    return rc;
}

/* ---- change tracking ---- */

static int check_trackable(struct provider_session *session, const struct vsphere_vm *vm,
                           struct error *err)
{
    if (check_state(vm, err) < 0)
        return -1;
    if (vm->vm.snapshot_count > 0) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "VM '%.128s' has snapshots, its change tracking can only be switched "
                         "without any: delete or consolidate them first",
                         vm->vm.name);
    }
    return changes_check_supported(session, vm->vm.id, err);
}

/* The setting reaches the disks when their files are opened anew: with a snapshot. */
static int cycle_snapshot(struct provider_session *session, const struct vsphere_vm *vm,
                          const char *job_id, struct task_records *records, struct error *err)
{
    struct prepare_options options = {
        .job_id = job_id, .delete_snapshot = true, .consolidate = true};
    struct preparation prep = {.session = session,
                               .vm_id = vm->vm.id,
                               .options = &options,
                               .records = records,
                               .nfc = true}; /* no file will be read */
    autofree char *snapshot = NULL;

    if (take_snapshot(&prep, vm, &snapshot, err) < 0)
        return -1;
    return remove_recorded(session, records, err);
}

static int vsphere_set_tracking(struct provider_session *session, const char *vm_id,
                                const struct tracking_options *options,
                                struct task_records *records, bool *out_changed, struct error *err)
{
    auto_vsphere_vm vm;
    const char *state = record(records, RECORD_TRACKING);
    bool begun = state[0] != '\0';

    if (strcmp(state, "done") == 0) {
        *out_changed = true;
        return 0;
    }
    if (inventory_get(session, vm_id, &vm, err) < 0)
        return -1;
    *out_changed = begun || vm.vm.cbt_enabled != options->on;
    if (!*out_changed)
        return 0;
    if ((!begun && check_trackable(session, &vm, err) < 0) ||
        put(records, RECORD_TRACKING, options->on ? "on" : "off", err) < 0)
        return -1;
    if (vm.vm.cbt_enabled != options->on &&
        changes_set_tracking(session, vm_id, options->on, err) < 0)
        return -1;
    if (cycle_snapshot(session, &vm, options->job_id, records, err) < 0) {
        return error_wrap(err, "change tracking is switched %s, but does not reach the disks yet",
                          options->on ? "on" : "off");
    }
    LOG(INFO, "vsphere_tracking_set", F_STR("vm", vm_id), F_BOOL("on", options->on));
    return put(records, RECORD_TRACKING, "done", err);
}

/* ---- CD-ROM drives ---- */

static int vsphere_remove_cdroms(struct provider_session *session, const char *vm_id,
                                 struct task_records *records,
                                 void (*tell)(void *arg, const char *drive), void *arg,
                                 struct error *err)
{
    auto_vsphere_vm vm;

    if (inventory_get(session, vm_id, &vm, err) < 0)
        return -1;
    if (check_state(&vm, err) < 0) /* one that cannot be exported is not edited for it */
        return -1;
    return cdrom_remove_all(session, vm_id, records, tell, arg, err);
}

static const struct provider_method vsphere_methods[] = {
    {"snapshot-folder", 3, NULL},
    {"folder", 2, NULL},
    {"snapshot-nfc", 1, METHOD_NFC},
    {0},
};

const struct provider provider_vsphere = {
    .name = "vsphere",
    .title = "VMware vSphere (vCenter, ESXi)",
    .methods = vsphere_methods,
    .snapshots = true,
    .parallel_reads_max = 8, /* vCenter shares 50 file connections among all its clients */
    .config_size = sizeof(struct vsphere_config),
    .config_keys = vsphere_keys,
    .open = vsphere_open,
    .close = vsphere_close,
    .check = vsphere_check,
    .vm_list = vsphere_vm_list,
    .vm_get = vsphere_vm_get,
    .vm_tags = tags_read,
    .prepare = vsphere_prepare,
    .frozen_free = vsphere_frozen_free,
    .disk_open = vsphere_disk_open,
    .disk_read = vsphere_disk_read,
    .disk_stream = vsphere_disk_stream,
    .disk_changes = vsphere_disk_changes,
    .set_tracking = vsphere_set_tracking,
    .remove_cdroms = vsphere_remove_cdroms,
    .disk_close = vsphere_disk_close,
    .disk_mark = vsphere_disk_mark,
    .stream_open = vsphere_stream_open,
    .stream_next = nfc_stream_next,
    .stream_fetch = nfc_stream_fetch,
    .stream_decode = nfc_stream_decode,
    .stream_close = nfc_stream_close,
    .release = vsphere_release,
    .shut_down = power_shut_down,
};
