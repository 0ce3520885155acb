/* The export task from VM to finished directory, and every way it can go wrong on the way. */
#include <inttypes.h>

#include "tests/unit/exporter/engine/export_fixture.h"

#include "services/exporter/formats/manifest.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ovf.h"

#define SMALL (3 * MIB + 4096)
#define LARGE (24 * MIB)

static void two_disks(void)
{
    source_add_disk(PATTERN_SPARSE, LARGE);
    source_add_disk(PATTERN_TEXT, SMALL);
}

/* ---- what a good export is ---- */

static void an_ovf_export_has_every_file_of_the_layout(void **state)
{
    (void)state;
    need_qemu_img();
    two_disks();
    task_wants("ovf", false, "web-03");
    assert_exported();
    autofree char *names = list_dir("web-03");
    assert_string_equal(names, "artifact-manifest.json checksums.txt export.json manifest.yaml "
                               "web-03-disk1.leaves web-03-disk1.vmdk web-03-disk2.leaves "
                               "web-03-disk2.vmdk web-03.mf web-03.ovf");
    compare_below("web-03/web-03-disk1.vmdk", "vmdk", &source.disks[0].content);
    compare_below("web-03/web-03-disk2.vmdk", "vmdk", &source.disks[1].content);
    assert_string_equal(world_task.phases.data, "connecting discovering snapshotting exporting "
                                                "packaging verifying cleanup");
    assert_string_equal(world_task.disk_states, "copying waiting done verifying ");
    assert_non_null(strstr(world_task.log.data, "VM found: web-03 (vm-57)"));
    assert_non_null(strstr(world_task.log.data, "snapshot created: 2 disks"));
    assert_non_null(strstr(world_task.log.data, "web-03-disk2.vmdk: 3.0 MiB, 3.0 MiB read in"));
    assert_non_null(strstr(world_task.log.data, "verified: web-03-disk1.vmdk"));
    assert_non_null(strstr(world_task.log.data, "snapshot removed"));
    assert_int_equal(world_task.progress.bytes_done, LARGE + SMALL);
    assert_int_equal(world_task.progress.bytes_total, LARGE + SMALL);
}

static void other_formats_have_images_and_no_descriptor(void **state)
{
    static const char *const formats[] = {"raw", "qcow2", "vmdk"};

    (void)state;
    need_qemu_img();
    source_add_disk(PATTERN_SPARSE, SMALL);
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        autofree char *image = xasprintf("%s/web-03-disk1.%s", formats[i], formats[i]);
        autofree char *ovf = xasprintf("%s/web-03.ovf", formats[i]);
        autofree char *mf = xasprintf("%s/web-03.mf", formats[i]);
        forget_records();
        task_wants(formats[i], false, formats[i]);
        assert_exported();
        compare_below(image, formats[i], &source.disks[0].content);
        assert_false(exists_below(ovf));
        assert_false(exists_below(mf));
        assert_null(json_object_get(world_result, "ovf_path"));
    }
}

static void a_conversion_writes_qcow2_in_the_same_pass(void **state)
{
    (void)state;
    need_qemu_img();
    two_disks();
    task_wants("ovf", true, "web-03");
    assert_exported();
    compare_below("web-03/web-03-disk1.vmdk", "vmdk", &source.disks[0].content);
    compare_below("web-03/web-03-disk1.qcow2", "qcow2", &source.disks[0].content);
    compare_below("web-03/web-03-disk2.qcow2", "qcow2", &source.disks[1].content);
    assert_int_equal(atomic_load(&source.bytes_read), LARGE + SMALL);
    /* What comes next takes the qcow2. */
    const json_t *manifest = json_object_get(json_object_get(world_result, "export"), "manifest");
    const json_t *disk = json_array_get(json_object_get(manifest, "disks"), 0);
    assert_string_equal(json_str(disk, "source_format"), "qcow2");
    assert_string_equal(json_str(disk, "relative_path"), "web-03-disk1.qcow2");
}

static void qcow2_with_conversion_is_written_once(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("qcow2", true, "web-03");
    assert_exported();
    autofree char *names = list_dir("web-03");
    assert_string_equal(names, "artifact-manifest.json checksums.txt export.json manifest.yaml "
                               "web-03-disk1.leaves web-03-disk1.qcow2");
}

static void qcow2_images_are_compressed_on_demand(void **state)
{
    static const char *const codecs[] = {"zlib", "zstd"};

    (void)state;
    need_qemu_img();
    source_add_disk(PATTERN_TEXT, SMALL);
    for (size_t i = 0; i < ARRAY_LEN(codecs); i++) {
        autofree char *image = xasprintf("%s/web-03-disk1.qcow2", codecs[i]);
        autofree char *path = below_base(image);
        struct stat st;
        forget_records();
        task_wants("qcow2", false, codecs[i]);
        json_set_text(world_task.spec, "compress", codecs[i]);
        json_put(world_task.spec, "compress_level", json_integer(3));
        assert_exported();
        compare_below(image, "qcow2", &source.disks[0].content);
        assert_int_equal(stat(path, &st), 0);
        assert_true((uint64_t)st.st_size < SMALL / 3);
    }
    forget_records();
    task_wants("raw", false, "raw");
    json_set_text(world_task.spec, "compress", "zlib");
    assert_fails_with(ERR_NOT_AVAILABLE);
    task_wants("qcow2", false, "lzma");
    json_set_text(world_task.spec, "compress", "lzma");
    assert_fails_with(ERR_INVALID);
}

static void strangers_confirm_all_digests(void **state)
{
    (void)state;
    two_disks();
    task_wants("ovf", true, "web-03");
    assert_exported();
    assert_int_equal(shell("web-03", "cd \"$1\" && sha256sum --strict -c checksums.txt && "
                                     "test $(wc -l < checksums.txt) -eq "
                                     "$(ls | grep -v -e checksums.txt -e export.json | wc -l)"),
                     0);
    assert_int_equal(shell("web-03", "cd \"$1\" && openssl dgst -sha256 web-03.ovf "
                                     "web-03-disk1.vmdk web-03-disk2.vmdk | "
                                     "sed 's/^SHA2-256/SHA256/' | cmp - web-03.mf"),
                     0);
}

static void a_stranger_reads_the_descriptor(void **state)
{
    size_t size = 0;

    (void)state;
    if (access("build/peers/ovf-reader", X_OK) != 0) {
        print_message("SKIP: build/peers/ovf-reader is not built (make test-peers)\n");
        skip();
    }
    two_disks();
    task_wants("ovf", true, "web-03");
    assert_exported();
    assert_int_equal(shell("web-03", "build/peers/ovf-reader \"$1\"/web-03.ovf > \"$1\"/../facts"),
                     0);
    autofree char *path = below_base("facts");
    autofree uint8_t *facts = read_file(path, &size);
    assert_non_null(strstr((char *)facts, "\"name\":\"web-03\",\"cpus\":2,\"memory_mb\":2048"));
    assert_non_null(strstr((char *)facts, "[\"web-03-disk1.vmdk\",\"web-03-disk2.vmdk\"]"));
    assert_non_null(strstr((char *)facts, "\"networks\":[\"VM Network\"]"));
}

static void files_are_private_to_owner_and_group(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", true, "deep/er/web-03");
    (void)umask(0022);
    assert_exported();
    assert_int_equal(shell("deep", "test -z \"$(find \"$1\" -type f ! -perm 640)\" && "
                                   "test -z \"$(find \"$1\" -type d ! -perm 750)\""),
                     0);
}

static void the_result_tells_what_the_catalogue_needs(void **state)
{
    (void)state;
    two_disks();
    task_wants("ovf", true, "web-03");
    assert_exported();
    autofree char *dir = below_base("web-03");
    autofree char *ovf = below_base("web-03/web-03.ovf");
    autofree char *manifest = below_base("web-03/artifact-manifest.json");
    const json_t *export = json_object_get(world_result, "export");
    const json_t *disk = json_array_get(json_object_get(export, "disks"), 1);
    uint64_t total = 0;
    const json_t *file;
    size_t i;

    assert_string_equal(json_str(world_result, "vm_name"), "web-03");
    assert_string_equal(json_str(world_result, "output_path"), dir);
    assert_string_equal(json_str(world_result, "ovf_path"), ovf);
    assert_string_equal(json_str(world_result, "manifest_path"), manifest);
    assert_int_equal(json_u64(world_result, "transferred_bytes"), LARGE + SMALL);
    assert_true(json_is_true(json_object_get(world_result, "verified")));
    assert_true(json_number_value(json_object_get(world_result, "duration_seconds")) > 0);
    assert_int_equal(json_array_size(json_object_get(world_result, "exported_files")), 5);
    json_array_foreach(json_object_get(world_result, "files"), i, file)
    {
        autofree char *path = xasprintf("%s/%s", dir, json_str(file, "name"));
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, json_u64(file, "size"));
        total += (uint64_t)st.st_size;
    }
    assert_int_equal(i, 12);
    assert_int_equal(json_u64(world_result, "total_size"), total);
    assert_string_equal(json_str(export, "id"), worker_task_record_get(&world_task, "export.id"));
    assert_string_equal(json_str(export, "volume"), "6b0a51e6-3f0e-4d4f-9a52-6d33ab7b86c2");
    assert_string_equal(json_str(export, "vm_id"), "vm-57");
    assert_string_equal(json_str(disk, "disk_id"), "2001");
    assert_string_equal(json_str(disk, "file"), "web-03-disk2.qcow2");
    assert_int_equal(json_u64(disk, "capacity_bytes"), SMALL);
    assert_int_equal(strncmp(json_str(disk, "root"), DIGEST_TEXT_START, 15), 0);
    assert_string_equal(
        json_str(json_object_get(json_object_get(export, "manifest"), "metadata"), "job_id"),
        "job-1");
}

static void export_json_and_manifest_describe_the_directory(void **state)
{
    struct error err = ERROR_NONE;
    struct export_record *record = NULL;
    json_t *manifest = NULL;

    (void)state;
    two_disks();
    task_wants("ovf", false, "web-03");
    assert_exported();
    autofree char *dir = below_base("web-03");
    autofree char *path = below_base("web-03/export.json");
    autofree char *manifest_path = below_base("web-03/manifest.yaml");
    struct manifest_check check = {
        .dir = dir, .files = true, .checksums = true, .bases = &world_bases};
    assert_ok(export_record_load(path, &record, &err));
    assert_int_equal(record->file_count, 9);
    assert_string_equal(json_str(record->document, "job_id"), "job-1");
    export_record_free(record);
    assert_ok(manifest_load(manifest_path, &manifest, &err));
    assert_ok(manifest_validate(manifest, &check, &err));
    json_decref(manifest);
}

static void disks_that_cannot_be_exported_are_left_out_and_said(void **state)
{
    (void)state;
    two_disks();
    source.disks[1].skip_reason = "independent disks are not in snapshots";
    task_wants("ovf", false, "web-03");
    assert_exported();
    assert_true(exists_below("web-03/web-03-disk1.vmdk"));
    assert_false(exists_below("web-03/web-03-disk2.vmdk"));
    assert_non_null(strstr(world_task.log.data, "Hard disk 2 is left out"));
    assert_int_equal(json_array_size(json_object_get(world_result, "warnings")), 1);
}

static void a_vm_without_exportable_disks_is_refused(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    source.disks[0].skip_reason = "physical RDM";
    task_wants("ovf", false, "web-03");
    assert_fails_with(ERR_NOT_AVAILABLE);
    assert_non_null(strstr(world_err.message, "physical RDM"));
    assert_int_equal(source.prepares, 0);
    assert_false(exists_below("web-03"));
}

/* ---- where it goes ---- */

static void a_path_outside_the_bases_is_refused(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    assert_int_equal(json_object_set_new(world_task.spec, "output_path", json_string("/etc/x")), 0);
    assert_fails_with(ERR_DENIED);
    assert_int_equal(source.prepares, 0);
}

static void an_unmounted_volume_is_not_written_to(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    autofree char *volume = below_base(LOCAL_VOLUME_NAME);
    assert_int_equal(unlink(volume), 0);
    assert_fails_with(ERR_UNAVAILABLE);
    assert_non_null(strstr(world_err.message, "mounted"));
    assert_false(exists_below("web-03"));
}

static void a_second_export_goes_to_a_directory_of_its_own(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    assert_exported();
    autofree char *before = list_dir("web-03");
    forget_records();
    assert_exported();
    autofree char *second =
        xasprintf("web-03/%s/export.json", worker_task_record_get(&world_task, "export.id"));
    autofree char *after = list_dir("web-03");
    assert_true(exists_below(second));
    assert_int_equal(strncmp(after, before, strlen("artifact-manifest.json")), 0);
    assert_int_equal(shell("web-03", "cd \"$1\" && sha256sum --strict -c checksums.txt && cd exp-* "
                                     "&& sha256sum --strict -c checksums.txt"),
                     0);
    assert_non_null(strstr(json_str(world_result, "output_path"), "/web-03/exp-"));
}

static void drop_foreign_file(struct worker_task *task, const char *phase)
{
    (void)task;
    if (strcmp(phase, "verifying") == 0) {
        autofree char *path = below_base("web-03/web-03-disk1.vmdk");
        write_file(path, "mine", 4);
    }
}

static void a_foreign_file_is_never_replaced(void **state)
{
    size_t size = 0;

    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    world_task.on_phase = drop_foreign_file;
    assert_fails_with(ERR_CONFLICT);
    autofree char *path = below_base("web-03/web-03-disk1.vmdk");
    autofree uint8_t *data = read_file(path, &size);
    assert_int_equal(size, 4);
    assert_memory_equal(data, "mine", 4);
    assert_int_equal(world_task.permits, 0);
    assert_int_equal(source.snapshot, 0);
    /* The work is kept: with the file out of the way a retry only finishes. */
    assert_true(json_is_true(json_object_get(world_result, "kept")));
    assert_int_equal(unlink(path), 0);
    lease_again();
    assert_exported();
    assert_int_equal(atomic_load(&source.bytes_read), 0);
    assert_true(exists_below("web-03/export.json"));
}

static void too_little_space_is_said_before_the_first_byte(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    source.capacity = 60 * 1024 * GIB;
    task_wants("raw", false, "web-03");
    assert_fails_with(ERR_LIMIT);
    assert_non_null(strstr(world_err.message, "/web-03"));
    assert_non_null(strstr(world_err.message, "needed"));
    assert_non_null(strstr(world_err.message, "free"));
    assert_int_equal(atomic_load(&source.bytes_read), 0);
    assert_int_equal(source.prepares, 0);
    assert_false(exists_below("web-03"));
}

static void used_bytes_count_when_they_are_known(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    source.capacity = 60 * 1024 * GIB;
    source.used_bytes = 59 * 1024 * GIB;
    task_wants("raw", false, "web-03");
    assert_fails_with(ERR_LIMIT);
    assert_non_null(strstr(world_err.message, "60416.0 GiB needed"));
}

/* ---- interruptions ---- */

static atomic_uint reads;

static void lose_lease_in_the_middle(uint64_t offset)
{
    if (offset >= LARGE / 2)
        task_stop(&world_task, WORKER_LOST);
}

static void another_process_goes_on_where_one_was_killed(void **state)
{
    (void)state;
    need_qemu_img();
    source_add_disk(PATTERN_RANDOM, LARGE);
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", true, "web-03");
    source.on_read = lose_lease_in_the_middle;
    assert_fails_with(ERR_CANCELLED);
    assert_int_equal(source.releases, 0);
    assert_null(world_result);
    assert_nothing_looks_finished("web-03");
    lease_again();
    assert_exported();
    assert_int_equal(source.snapshots_made, 1);
    assert_true(exists_below("web-03/export.json"));
    compare_below("web-03/web-03-disk1.vmdk", "vmdk", &source.disks[0].content);
    compare_below("web-03/web-03-disk1.qcow2", "qcow2", &source.disks[0].content);
    autofree char *names = list_dir("web-03");
    assert_null(strstr(names, "partial"));
    assert_null(strstr(names, "journal"));
}

static void drain_at_second_disk(struct worker_task *task, const char *line)
{
    if (strstr(line, "web-03-disk1.vmdk") != NULL)
        task_stop(task, WORKER_DRAINS);
}

static void a_complete_disk_is_not_read_again(void **state)
{
    (void)state;
    two_disks();
    task_wants("ovf", true, "web-03");
    world_task.on_log = drain_at_second_disk;
    assert_fails_with(ERR_CANCELLED);
    assert_int_equal(source.snapshot, 1);
    lease_again();
    assert_exported();
    assert_int_equal(atomic_load(&source.bytes_read), SMALL);
    assert_non_null(strstr(world_task.log.data, "complete since an earlier attempt"));
    assert_int_equal(shell("web-03", "cd \"$1\" && sha256sum --strict -c checksums.txt"), 0);
}

static void lose_the_source_after_the_copy(struct worker_task *task, const char *line)
{
    (void)task;
    if (strstr(line, "web-03-disk1") != NULL)
        source.mark_fails = ERR_UNAVAILABLE;
}

static void a_retryable_failure_keeps_files_and_snapshot(void **state)
{
    (void)state;
    source_add_disk(PATTERN_RANDOM, SMALL);
    task_wants("raw", false, "web-03");
    world_task.on_log = lose_the_source_after_the_copy;
    assert_fails_with(ERR_UNAVAILABLE);
    assert_true(json_is_true(json_object_get(world_result, "kept")));
    assert_int_equal(source.releases, 0);
    assert_nothing_looks_finished("web-03");
    lease_again();
    assert_exported();
    assert_int_equal(source.snapshots_made, 1);
    assert_int_equal(atomic_load(&source.bytes_read), 0);
}

static void refuse_bytes(uint64_t offset)
{
    if (offset >= MIB)
        atomic_store(&source.read_fails, true);
}

static void any_other_failure_leaves_nothing(void **state)
{
    (void)state;
    source_add_disk(PATTERN_RANDOM, LARGE);
    task_wants("ovf", true, "web-03");
    source.on_read = refuse_bytes;
    assert_fails_with(ERR_DENIED);
    assert_int_equal(source.snapshot, 0);
    assert_false(exists_below("web-03"));
    assert_true(json_is_false(json_object_get(world_result, "kept")));
}

static void a_read_is_repeated_as_often_as_configured(void **state)
{
    (void)state;
    source_add_disk(PATTERN_RANDOM, MIB);
    task_wants("raw", false, "web-03");
    atomic_store(&source.read_is_busy, true);
    assert_fails_with(ERR_UNAVAILABLE);
    assert_non_null(strstr(world_err.message, "given up after 2 retries"));
}

static void cancel_in_the_middle(uint64_t offset)
{
    (void)offset;
    if (atomic_fetch_add(&reads, 1) == 3)
        task_stop(&world_task, WORKER_CANCELLED);
}

static void a_cancelled_export_gives_the_source_back_and_can_be_retried(void **state)
{
    (void)state;
    need_qemu_img();
    source_add_disk(PATTERN_RANDOM, LARGE);
    task_wants("ovf", false, "web-03");
    atomic_store(&reads, 0);
    source.on_read = cancel_in_the_middle;
    assert_fails_with(ERR_CANCELLED);
    assert_int_equal(source.snapshot, 0);
    assert_int_equal(source.releases, 1);
    assert_nothing_looks_finished("web-03");
    assert_true(json_is_true(json_object_get(world_result, "kept")));
    /* The retry freezes anew: old bytes are not mixed with new ones. */
    lease_again();
    source.disks[0].content.data[5] ^= 1;
    assert_exported();
    assert_int_equal(source.snapshots_made, 2);
    assert_non_null(strstr(world_task.log.data, "frozen anew"));
    compare_below("web-03/web-03-disk1.vmdk", "vmdk", &source.disks[0].content);
    autofree char *names = list_dir("web-03");
    assert_null(strstr(names, "partial"));
}

static void a_refused_permit_leaves_nothing_finished(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    world_task.refuse_permit = true;
    task_stop(&world_task, WORKER_RUNS);
    atomic_store(&world_task.stopped, false);
    assert_fails_with(ERR_CANCELLED);
    assert_nothing_looks_finished("web-03");
    lease_again();
    assert_exported();
    assert_int_equal(source.prepares, 1);
}

static void a_dead_jobs_files_are_removed_on_demand(void **state)
{
    struct error err = ERROR_NONE;

    (void)state;
    source_add_disk(PATTERN_RANDOM, LARGE);
    task_wants("ovf", true, "web-03");
    atomic_store(&reads, 0);
    source.on_read = cancel_in_the_middle;
    assert_fails_with(ERR_CANCELLED);
    assert_true(exists_below("web-03/web-03-disk1.vmdk.partial"));
    lease_again();
    assert_ok(exporter_discard_output(&world_task, &world_exporter, &err));
    assert_false(exists_below("web-03"));
}

static void a_finished_export_survives_a_discard(void **state)
{
    struct error err = ERROR_NONE;

    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    assert_exported();
    assert_ok(exporter_discard_output(&world_task, &world_exporter, &err));
    assert_true(exists_below("web-03/export.json"));
    assert_true(exists_below("web-03/web-03-disk1.vmdk"));
}

static void a_discard_waits_for_nobody_who_still_writes(void **state)
{
    (void)state;
    source_add_disk(PATTERN_RANDOM, LARGE);
    task_wants("raw", false, "web-03");
    source.on_read = lose_lease_in_the_middle;
    assert_fails_with(ERR_CANCELLED);
    lease_again();
    autofree char *dir = below_base("web-03");
    autofree char *path = local_lock_path(dir, 0);
    struct error err = ERROR_NONE;
    int fd = -1;
    assert_ok(local_lock(path, 0, NULL, &fd, &err));
    assert_int_equal(exporter_discard_output(&world_task, &world_exporter, &err), -1);
    assert_int_equal(err.code, ERR_TIMEOUT);
    assert_true(exists_below("web-03/web-03-disk1.raw.partial"));
    assert_int_equal(close(fd), 0);
}

static void a_writer_that_hangs_is_not_waited_for_for_ever(void **state)
{
    (void)state;
    need_qemu_img();
    source_add_disk(PATTERN_RANDOM, LARGE);
    task_wants("raw", false, "web-03");
    source.on_read = lose_lease_in_the_middle;
    assert_fails_with(ERR_CANCELLED);
    lease_again();
    autofree char *dir = below_base("web-03");
    autofree char *path = local_lock_path(dir, 0);
    struct error err = ERROR_NONE;
    int fd = -1;
    assert_ok(local_lock(path, 0, NULL, &fd, &err));
    assert_exported(); /* in files of its own */
    assert_string_equal(worker_task_record_get(&world_task, "export.generation"), "2");
    compare_below("web-03/web-03-disk1.raw", "raw", &source.disks[0].content);
    autofree char *names = list_dir("web-03");
    assert_null(strstr(names, "partial"));
    assert_int_equal(close(fd), 0);
}

static void change_source(uint64_t offset)
{
    if (offset > 0)
        source.changed = true;
}

static void a_source_that_changed_gives_no_export(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, LARGE);
    task_wants("ovf", true, "web-03");
    source.on_read = change_source;
    assert_fails_with(ERR_SOURCE_CHANGED);
    assert_non_null(strstr(world_err.message, "web-03-disk1"));
    assert_int_equal(source.snapshot, 0);
    assert_false(exists_below("web-03"));
}

static void change_source_after_the_copy(struct worker_task *task, const char *line)
{
    (void)task;
    if (strstr(line, "web-03-disk2") != NULL)
        source.changed = true;
}

static void a_disk_that_changes_while_another_is_copied_is_noticed(void **state)
{
    (void)state;
    two_disks();
    task_wants("ovf", false, "web-03");
    world_task.on_log = change_source_after_the_copy;
    assert_fails_with(ERR_SOURCE_CHANGED);
    assert_non_null(strstr(world_err.message, "Hard disk 1"));
    assert_non_null(strstr(world_err.message, "export it again"));
    assert_false(exists_below("web-03"));
}

/* ---- verification ---- */

static void flip_a_byte(struct worker_task *task, const char *phase)
{
    uint8_t byte = 0;

    (void)task;
    if (strcmp(phase, "verifying") != 0)
        return;
    autofree char *path = below_base("web-03/web-03-disk1.raw.partial");
    autoclose int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, 2 * MIB + 7), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, 2 * MIB + 7), 1);
}

static void verify_finds_a_flipped_byte(void **state)
{
    (void)state;
    source_add_disk(PATTERN_RANDOM, LARGE);
    task_wants("raw", false, "web-03");
    world_task.on_phase = flip_a_byte;
    assert_fails_with(ERR_CORRUPT);
    assert_non_null(strstr(world_err.message, "web-03-disk1.raw"));
    assert_int_equal(world_task.permits, 0);
    assert_false(exists_below("web-03"));
    assert_int_equal(source.snapshot, 0);
}

static void tail_of_vmdk(struct worker_task *task, const char *phase)
{
    (void)task;
    if (strcmp(phase, "verifying") != 0)
        return;
    autofree char *path = below_base("web-03/web-03-disk1.vmdk.partial");
    autoclose int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, "x", 1, 600), 1); /* in the descriptor's text: no content */
}

static void verify_finds_a_digest_that_is_not_of_the_file(void **state)
{
    (void)state;
    source_add_disk(PATTERN_RANDOM, SMALL);
    task_wants("ovf", false, "web-03");
    world_task.on_phase = tail_of_vmdk;
    assert_fails_with(ERR_CORRUPT);
    assert_false(exists_below("web-03"));
}

static void without_verify_nothing_is_read_back(void **state)
{
    (void)state;
    source_add_disk(PATTERN_RANDOM, SMALL);
    task_wants("ovf", false, "web-03");
    assert_int_equal(json_object_set_new(world_task.spec, "verify", json_false()), 0);
    assert_exported();
    assert_null(strstr(world_task.phases.data, "verifying"));
    assert_true(json_is_false(json_object_get(world_result, "verified")));
    assert_int_equal(shell("web-03", "cd \"$1\" && sha256sum --strict -c checksums.txt"), 0);
}

/* ---- finishing, interrupted at every write ---- */

static unsigned int writes_left;

static void die_after_some_writes(struct worker_task *task)
{
    if (task->permits == 0)
        return;
    if (writes_left == 0)
        task->reason = WORKER_LOST; /* nothing is written any more, as after a kill */
    else
        writes_left--;
}

static void finishing_can_be_repeated_after_every_step(void **state)
{
    unsigned int step = 0;
    bool finished = false;

    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    for (; !finished; step++) {
        autofree char *dir = xasprintf("web-%u", step);
        autofree char *record = xasprintf("web-%u/export.json", step);
        assert_true(step < 40);
        forget_records();
        world_task.permits = 0;
        task_wants("ovf", true, dir);
        writes_left = step;
        lease_again();
        world_task.on_write = die_after_some_writes;
        finished = run_lease() == 0;
        if (!finished) {
            lease_again();
            assert_exported();
            assert_int_equal(atomic_load(&source.bytes_read), 0);
        }
        autofree char *names = list_dir(dir);
        assert_string_equal(names, "artifact-manifest.json checksums.txt export.json manifest.yaml "
                                   "web-03-disk1.leaves web-03-disk1.qcow2 web-03-disk1.vmdk "
                                   "web-03.mf web-03.ovf");
        assert_true(exists_below(record));
        assert_int_equal(shell(dir, "cd \"$1\" && sha256sum --strict -c checksums.txt"), 0);
        assert_int_equal(json_array_size(json_object_get(world_result, "files")), 9);
    }
    assert_true(step > 9); /* every file had its turn */
}

/* ---- taking names back, interrupted ---- */

static bool goes_back;
static unsigned int asked;

static void someone_else_finishes(struct worker_task *task)
{
    (void)task;
    assert_int_equal(shell("web-03", "echo {} > \"$1\"/export.json"), 0);
}

static void note_release(struct worker_task *task, const char *line)
{
    goes_back = goes_back || (task->permits > 0 && strstr(line, "snapshot removed") != NULL);
}

static void lose_the_lease_while_a_file_is_read(struct worker_task *task)
{
    if (goes_back && asked++ > 0)
        task->reason = WORKER_LOST;
}

/* Whoever has the task by then goes on by the names as they are. */
static void names_are_not_taken_back_after_the_lease(void **state)
{
    (void)state;
    goes_back = false;
    asked = 0;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    world_task.on_permit = someone_else_finishes;
    world_task.on_log = note_release;
    world_task.on_write = lose_the_lease_while_a_file_is_read;
    assert_fails_with(ERR_CONFLICT);
    assert_int_equal(asked, 2);
    assert_true(exists_below("web-03/web-03-disk1.vmdk"));
    assert_false(exists_below("web-03/web-03-disk1.vmdk.partial"));
}

static void a_source_that_keeps_its_snapshot_does_not_spoil_the_export(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("ovf", false, "web-03");
    source.release_fails = ERR_DENIED;
    assert_exported();
    assert_true(json_is_true(json_object_get(world_result, "release_pending")));
    assert_non_null(strstr(world_task.log.data, "the snapshot stays"));
}

static void a_spec_with_unknown_or_wrong_keys_is_refused(void **state)
{
    (void)state;
    source_add_disk(PATTERN_TEXT, SMALL);
    task_wants("vhdx", false, "web-03");
    assert_fails_with(ERR_NOT_AVAILABLE);
    task_wants("ovf", false, "web-03");
    assert_int_equal(json_object_set_new(world_task.spec, "wings", json_true()), 0);
    assert_fails_with(ERR_INVALID);
    assert_non_null(strstr(world_err.message, "wings"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_make, world_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_ovf_export_has_every_file_of_the_layout),
        TEST(other_formats_have_images_and_no_descriptor),
        TEST(a_conversion_writes_qcow2_in_the_same_pass),
        TEST(qcow2_with_conversion_is_written_once),
        TEST(qcow2_images_are_compressed_on_demand),
        TEST(strangers_confirm_all_digests),
        TEST(a_stranger_reads_the_descriptor),
        TEST(files_are_private_to_owner_and_group),
        TEST(the_result_tells_what_the_catalogue_needs),
        TEST(export_json_and_manifest_describe_the_directory),
        TEST(disks_that_cannot_be_exported_are_left_out_and_said),
        TEST(a_vm_without_exportable_disks_is_refused),
        TEST(a_path_outside_the_bases_is_refused),
        TEST(an_unmounted_volume_is_not_written_to),
        TEST(a_second_export_goes_to_a_directory_of_its_own),
        TEST(a_foreign_file_is_never_replaced),
        TEST(too_little_space_is_said_before_the_first_byte),
        TEST(used_bytes_count_when_they_are_known),
        TEST(another_process_goes_on_where_one_was_killed),
        TEST(a_complete_disk_is_not_read_again),
        TEST(a_retryable_failure_keeps_files_and_snapshot),
        TEST(any_other_failure_leaves_nothing),
        TEST(a_read_is_repeated_as_often_as_configured),
        TEST(a_cancelled_export_gives_the_source_back_and_can_be_retried),
        TEST(a_refused_permit_leaves_nothing_finished),
        TEST(a_dead_jobs_files_are_removed_on_demand),
        TEST(a_finished_export_survives_a_discard),
        TEST(a_discard_waits_for_nobody_who_still_writes),
        TEST(a_writer_that_hangs_is_not_waited_for_for_ever),
        TEST(a_source_that_changed_gives_no_export),
        TEST(a_disk_that_changes_while_another_is_copied_is_noticed),
        TEST(verify_finds_a_flipped_byte),
        TEST(verify_finds_a_digest_that_is_not_of_the_file),
        TEST(without_verify_nothing_is_read_back),
        TEST(finishing_can_be_repeated_after_every_step),
        TEST(names_are_not_taken_back_after_the_lease),
        TEST(a_source_that_keeps_its_snapshot_does_not_spoil_the_export),
        TEST(a_spec_with_unknown_or_wrong_keys_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
