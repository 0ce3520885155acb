/* One copy of a test disk, set up and compared. Header only: a unit test is one object. */
#ifndef TEST_COPY_FIXTURE_H
#define TEST_COPY_FIXTURE_H

#include "services/exporter/engine/copy.h"
#include "tests/unit/exporter/engine/file_provider.h"

struct setup {
    struct copy_options options;
    struct copy_output outputs[COPY_OUTPUTS_MAX];
    struct frozen_vm frozen;
    struct frozen_disk disk;
    char *paths[COPY_OUTPUTS_MAX];
    char *journal;
};

/* formats: names with spaces between. 3 MiB chunks, 4 readers, a journal, hashing. */
__attribute__((unused)) static void setup_make(struct setup *setup, const struct provider *provider,
                                               struct provider_session *session,
                                               const char *formats)
{
    *setup = (struct setup){.journal = test_path("disk.journal")};
    setup->disk =
        (struct frozen_disk){.size_bytes = session->size_bytes, .mark = (char *)(uintptr_t) "mark"};
    setup->frozen = (struct frozen_vm){
        .disks = &setup->disk, .disk_count = 1, .forward_only = provider->stream_open != NULL};
    setup->options = (struct copy_options){
        .provider = provider,
        .session = session,
        .frozen = &setup->frozen,
        .chunk_bytes = 3 * MIB,
        .readers = 4,
        .retries_max = 3,
        .journal_path = setup->journal,
        .identity = "test identity",
        .outputs = setup->outputs,
        .hash = true,
    };
    for (const char *at = formats; *at != '\0';) {
        size_t length = strcspn(at, " ");
        size_t i = setup->options.output_count++;
        autofree char *name = xstrndup(at, length);
        autofree char *file = xasprintf("disk.%s.partial", name);
        setup->paths[i] = test_path(file);
        setup->outputs[i] = (struct copy_output){
            .format = sink_format_find(name), .path = setup->paths[i], .file_name = "disk.img"};
        assert_non_null(setup->outputs[i].format);
        at += length;
        at += strspn(at, " ");
    }
}

__attribute__((unused)) static void setup_release(struct setup *setup)
{
    for (size_t i = 0; i < COPY_OUTPUTS_MAX; i++)
        free(setup->paths[i]);
    free(setup->journal);
}

/* Also the files. */
__attribute__((unused)) static void setup_remove(struct setup *setup)
{
    for (size_t i = 0; i < setup->options.output_count; i++)
        (void)unlink(setup->paths[i]);
    (void)unlink(setup->journal);
    setup_release(setup);
}

__attribute__((unused)) static int verify_image(const char *path, const char *format,
                                                const struct leaves *leaves, unsigned int threads,
                                                const atomic_bool *stopped, struct error *err)
{
    return copy_verify(&(struct copy_verify_options){.image = {.path = path, .format = format},
                                                     .leaves = leaves,
                                                     .threads = threads,
                                                     .stopped = stopped},
                       err);
}

__attribute__((unused)) static void setup_compare(const struct setup *setup,
                                                  const struct test_disk *disk,
                                                  const struct copy_result *result)
{
    for (size_t i = 0; i < setup->options.output_count; i++)
        compare_with_qemu(disk, setup->paths[i], setup->outputs[i].format->name);
    if (result->leaves == NULL)
        return;
    for (size_t i = 0; i < setup->options.output_count; i++) {
        struct error err = ERROR_NONE;
        assert_ok(verify_image(setup->paths[i], setup->outputs[i].format->name, result->leaves, 3,
                               NULL, &err));
    }
    assert_int_equal(leaves_disk_bytes(result->leaves), disk->size);
    for (size_t i = 0; i < leaves_count(result->leaves); i++) {
        uint8_t leaf[DIGEST_BYTES];
        leaf_digest(disk->data + i * LEAF_BYTES,
                    (size_t)min_u64(LEAF_BYTES, disk->size - i * LEAF_BYTES), leaf);
        assert_memory_equal(leaf, leaves_get(result->leaves, i), DIGEST_BYTES);
    }
}

#endif
