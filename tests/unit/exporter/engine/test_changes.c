/* Copies that read only what changed since an earlier export, and what is believed of a source that
 * tells it. */
#include <inttypes.h>

#include "services/exporter/engine/export_changes.h"
#include "tests/unit/exporter/engine/copy_fixture.h"

#define SIZE (40 * MIB + 3 * SECTOR)

/* ---- copying ---- */

/* A disk, an image of it as it was, and the disk as it is now. */
struct pair {
    struct test_disk disk;
    struct provider_session session;
    struct leaves *leaves; /* of the base */
    char *base;
    struct image_part image;
    uint8_t changed[SIZE / MIB / 8 + 1];
    uint64_t changed_bytes;
    struct setup setup;
};

static void pair_make(struct pair *pair, const struct provider *provider, const char *format)
{
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};
    uint64_t seed = 7;

    *pair = (struct pair){.disk = test_disk_make(PATTERN_SPARSE, SIZE)};
    pair->session = (struct provider_session){.data = pair->disk.data, .size_bytes = SIZE};
    setup_make(&pair->setup, provider, &pair->session, format);
    pair->setup.options.journal_path = NULL;
    assert_ok(copy_disk(&pair->setup.options, &result, &err));
    pair->leaves = STEAL(result.leaves);
    pair->base = test_path("base.img");
    assert_int_equal(rename(pair->setup.paths[0], pair->base), 0);
    pair->image = (struct image_part){.path = pair->base, .format = format};
    setup_release(&pair->setup);
    test_disk_scribble(&pair->disk, 9, 300000, &seed);
    atomic_store(&pair->session.bytes, 0);
}

static void pair_mark(struct pair *pair)
{
    for (size_t i = 0; i * MIB < SIZE; i++) {
        size_t n = (size_t)min_u64(MIB, SIZE - i * MIB);
        uint8_t leaf[DIGEST_BYTES];
        leaf_digest(pair->disk.data + i * MIB, n, leaf);
        /* every 11th although it is the same: a source may say too much */
        if (memcmp(leaf, leaves_get(pair->leaves, i), DIGEST_BYTES) == 0 && i % 11 != 0)
            continue;
        pair->changed[i / 8] = (uint8_t)(pair->changed[i / 8] | 1U << (i % 8));
        pair->changed_bytes += n;
    }
}

static void pair_next(struct pair *pair, const struct provider *provider, const char *formats)
{
    setup_make(&pair->setup, provider, &pair->session, formats);
    pair->setup.options.base_leaves = pair->leaves;
    pair->setup.options.changed = pair->changed;
    pair->setup.options.base_image = &pair->image;
    pair_mark(pair);
}

static void pair_back(struct pair *pair, const char *compression)
{
    pair->setup.outputs[0].backing = "base.img";
    pair->setup.outputs[0].backing_root = test_dir;
    pair->setup.outputs[0].compression = compression;
    pair->setup.outputs[0].compression_level = compression == NULL ? 0 : 1;
    pair->setup.options.base_image = NULL;
}

static void pair_remove(struct pair *pair)
{
    setup_remove(&pair->setup);
    test_disk_free(&pair->disk);
    leaves_free(pair->leaves);
    (void)unlink(pair->base);
    free(pair->base);
}

static const struct provider *const providers[] = {&file_provider, &stream_provider};

static void whole_images_take_what_did_not_change_from_the_earlier_one(void **state)
{
    static const char *const formats[][2] = {
        {"raw", "raw qcow2"}, {"vmdk", "vmdk"}, {"raw.zst", "raw.zst qcow2"}, {"qcow2", "qcow2"}};
    (void)state;
    need_qemu_img();
    for (size_t f = 0; f < 2 * ARRAY_LEN(formats); f++) {
        struct error err = ERROR_NONE;
        auto_copy_result result = {0};
        struct pair pair;
        pair_make(&pair, providers[f % 2], formats[f / 2][0]);
        pair_next(&pair, providers[f % 2], formats[f / 2][1]);
        assert_ok(copy_disk(&pair.setup.options, &result, &err));
        assert_int_equal(result.bytes_transferred, pair.changed_bytes);
        assert_int_equal(atomic_load(&pair.session.bytes), pair.changed_bytes);
        assert_true(pair.changed_bytes < SIZE / 2);
        setup_compare(&pair.setup, &pair.disk, &result);
        pair_remove(&pair);
    }
}

static void an_image_over_the_earlier_one_has_only_what_changed(void **state)
{
    static const char *const compressions[] = {NULL, "zlib", "zstd"};
    (void)state;
    need_qemu_img();
    for (size_t c = 0; c < ARRAY_LEN(compressions); c++) {
        struct error err = ERROR_NONE;
        auto_copy_result result = {0};
        struct pair pair;
        struct stat st;
        pair_make(&pair, providers[c % 2], "qcow2");
        pair_next(&pair, providers[c % 2], "qcow2");
        pair_back(&pair, compressions[c]);
        assert_ok(copy_disk(&pair.setup.options, &result, &err));
        assert_int_equal(atomic_load(&pair.session.bytes), pair.changed_bytes);
        setup_compare(&pair.setup, &pair.disk, &result);
        assert_int_equal(stat(pair.setup.paths[0], &st), 0);
        assert_true((uint64_t)st.st_size < pair.changed_bytes + MIB);
        pair_remove(&pair);
    }
}

static void a_copy_of_changes_goes_on_from_its_journal(void **state)
{
    (void)state;
    need_qemu_img();
    for (size_t backed = 0; backed < 2; backed++) {
        struct error err = ERROR_NONE;
        struct error failed = ERROR_NONE;
        auto_copy_result none = {0};
        auto_copy_result result = {0};
        struct pair pair;
        pair_make(&pair, &file_provider, "qcow2");
        pair_next(&pair, &file_provider, "qcow2");
        if (backed == 1)
            pair_back(&pair, NULL);
        pair.setup.options.checkpoint_bytes = 1;
        pair.setup.options.readers = 1;
        pair.session.fail_from = 21 * MIB;
        pair.session.fail_reads = 1;
        pair.session.fail_code = ERR_PROTOCOL;
        assert_int_equal(copy_disk(&pair.setup.options, &none, &failed), -1);
        assert_int_equal(failed.code, ERR_PROTOCOL);
        assert_ok(copy_disk(&pair.setup.options, &result, &err));
        /* all but the pieces that were under way */
        assert_true(result.bytes_resumed >= 9 * MIB);
        assert_true(result.bytes_transferred < pair.changed_bytes);
        setup_compare(&pair.setup, &pair.disk, &result);
        pair_remove(&pair);
    }
}

static void an_earlier_image_that_is_damaged_does_not_spread(void **state)
{
    (void)state;
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};
    struct pair pair;
    int fd;
    size_t leaf = 1; /* not changed, see pair_make's seed */

    pair_make(&pair, &file_provider, "raw");
    pair_next(&pair, &file_provider, "raw");
    while ((pair.changed[leaf / 8] >> (leaf % 8) & 1) != 0)
        leaf++;
    fd = open(pair.base, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite_all(fd, "flipped", 7, leaf * MIB + 1000), 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(copy_disk(&pair.setup.options, &result, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_non_null(strstr(err.message, "base.img"));
    pair_remove(&pair);
}

/* ---- asking ---- */

static struct {
    const struct extent *extents; /* of the whole disk */
    size_t count;
    uint64_t window; /* most that one answer covers */
    int fail_times;
    enum error_code fail_code;
    bool stuck;
    unsigned int asked;
    char since[32];
} script;

static int scripted_changes(struct provider_session *session, const struct frozen_vm *frozen,
                            const struct changes_query *query, struct extent_list *out,
                            struct error *err)
{
    uint64_t size = frozen->disks[query->disk_index].size_bytes;

    (void)session;
    script.asked++;
    (void)snprintf(script.since, sizeof script.since, "%s", query->since);
    if (script.fail_times-- > 0)
        return error_set(err, script.fail_code, "scripted: no answer");
    out->end = script.stuck ? query->offset + 1 : min_u64(query->offset + script.window, size);
    for (size_t i = 0; i < script.count; i++) {
        uint64_t from = max_u64(script.extents[i].offset, query->offset);
        uint64_t to = min_u64(script.extents[i].offset + script.extents[i].length, out->end);
        if (script.window < SIZE ? from < to : true)
            out->items[out->count++] =
                script.window < SIZE ? (struct extent){from, to - from} : script.extents[i];
    }
    return 0;
}

static const struct provider changes_provider = {
    .name = "changes", .title = "Scripted", .disk_changes = scripted_changes};

static int ask(const struct provider *provider, const char *since, uint64_t size, uint8_t **out,
               uint64_t *out_bytes, struct error *err)
{
    struct frozen_disk disk = {.size_bytes = size};
    struct frozen_vm frozen = {.disks = &disk, .disk_count = 1};

    return changes_ask(
        &(struct changes_request){
            .provider = provider, .frozen = &frozen, .since = since, .retries_max = 2},
        out, out_bytes, err);
}

static void changes_are_rounded_to_whole_mib_over_all_windows(void **state)
{
    static const struct extent extents[] = {
        {MIB - 1, 2}, {5 * MIB, MIB}, {9 * MIB + 5, 3 * MIB}, {SIZE - 1, 1}};
    static const uint8_t expected[] = {0x23, 0x1e, 0, 0, 0, 0x01};
    (void)state;
    struct error err = ERROR_NONE;
    uint64_t windows[] = {SIZE, 7 * MIB, 3 * SECTOR + 1};

    for (size_t w = 0; w < ARRAY_LEN(windows); w++) {
        autofree uint8_t *changed = NULL;
        uint64_t bytes = 0;
        memset(&script, 0, sizeof script);
        script.extents = extents;
        script.count = ARRAY_LEN(extents);
        script.window = windows[w];
        assert_ok(ask(&changes_provider, "id/1", SIZE, &changed, &bytes, &err));
        assert_memory_equal(changed, expected, sizeof expected);
        assert_int_equal(bytes, 7 * MIB + 3 * SECTOR);
        assert_int_equal(script.asked, round_up_u64(SIZE, windows[w]) / windows[w]);
        assert_string_equal(script.since, "id/1");
    }
}

static void refuses(const struct provider *provider, const char *since, enum error_code code,
                    const char *part)
{
    struct error err = ERROR_NONE;
    uint8_t *changed = NULL;
    uint64_t bytes = 0;

    assert_int_equal(ask(provider, since, SIZE, &changed, &bytes, &err), -1);
    if (err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%s: %s", error_code_name(err.code), err.message);
    assert_null(changed);
}

static void without_tracking_nothing_is_asked(void **state)
{
    (void)state;
    memset(&script, 0, sizeof script);
    refuses(&(struct provider){.name = "x", .title = "Other cloud"}, "id/1", ERR_NOT_AVAILABLE,
            "Other cloud does not tell");
    refuses(&changes_provider, "", ERR_NOT_AVAILABLE, "has no change id");
    assert_int_equal(script.asked, 0);
}

static void a_list_that_does_not_fit_the_disk_is_not_believed(void **state)
{
    static const struct extent lists[][2] = {
        {{0, 2 * MIB}, {MIB, MIB}},  /* overlapping */
        {{2 * MIB, MIB}, {0, MIB}},  /* out of order */
        {{0, MIB}, {SIZE - 1, 2}},   /* over the end */
        {{0, MIB}, {UINT64_MAX, 2}}, /* a sum that wraps */
        {{0, MIB}, {MIB, UINT64_MAX}},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        memset(&script, 0, sizeof script);
        script.extents = lists[i];
        script.count = 2;
        script.window = SIZE;
        refuses(&changes_provider, "id/1", ERR_PROTOCOL, "out of order");
    }
    memset(&script, 0, sizeof script);
    refuses(&changes_provider, "id/1", ERR_PROTOCOL, "should go on from 0");
    script.stuck = true;
    refuses(&changes_provider, "id/1", ERR_LIMIT, "has no end");
}

static void a_source_that_does_not_answer_is_asked_again(void **state)
{
    (void)state;
    struct error err = ERROR_NONE;
    autofree uint8_t *changed = NULL;
    uint64_t bytes = 1;

    memset(&script, 0, sizeof script);
    script.window = SIZE;
    script.fail_times = 2;
    script.fail_code = ERR_UNAVAILABLE;
    assert_ok(ask(&changes_provider, "id/1", SIZE, &changed, &bytes, &err));
    assert_int_equal(script.asked, 3);
    assert_int_equal(bytes, 0);
    script.fail_times = 3;
    refuses(&changes_provider, "id/1", ERR_UNAVAILABLE, "scripted");
    script.asked = 0;
    script.fail_times = 1;
    script.fail_code = ERR_DENIED;
    refuses(&changes_provider, "id/1", ERR_DENIED, "scripted");
    assert_int_equal(script.asked, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_images_take_what_did_not_change_from_the_earlier_one),
        cmocka_unit_test(an_image_over_the_earlier_one_has_only_what_changed),
        cmocka_unit_test(a_copy_of_changes_goes_on_from_its_journal),
        cmocka_unit_test(an_earlier_image_that_is_damaged_does_not_spread),
        cmocka_unit_test(changes_are_rounded_to_whole_mib_over_all_windows),
        cmocka_unit_test(without_tracking_nothing_is_asked),
        cmocka_unit_test(a_list_that_does_not_fit_the_disk_is_not_believed),
        cmocka_unit_test(a_source_that_does_not_answer_is_asked_again),
    };
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
