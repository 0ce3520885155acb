/* See stage.h. */
#include "stage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "child.h"
#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/targets/local.h"

#define QEMU_IMG_TIMEOUT_MS   (48 * INT64_C(3600000)) /* a copy of a large data disk */
#define QEMU_IMG_OUTPUT_BYTES 4096
#define QEMU_IMG_MEMORY_MAX   (8 * GIB) /* it reads images of strangers */
#define MARK_BYTES_MAX        256
#define SPACE_STEP_BYTES      ((uint64_t)(64 * KIB)) /* qcow2's cluster; 3 s of looking per 10 TiB */
#define LOCK_TRIES            5
#define LOCK_NAME             "lock"
#define CHILD_NAME            "child"

/* ---- trees ---- */

/* NULL-safe for missing paths. Stays on the file system and follows no symlinks. */
static FTS *open_tree(const char *path)
{
    char *roots[] = {(char *)(uintptr_t)path, NULL};

    return fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
}

void stage_remove(const char *path)
{
    FTS *tree = open_tree(path);
    const FTSENT *entry;

    while (tree != NULL && (entry = fts_read(tree)) != NULL) {
        if (entry->fts_info == FTS_DP) {
            (void)rmdir(entry->fts_accpath);
        } else if (entry->fts_info != FTS_D) {
            (void)unlink(entry->fts_accpath);
        }
    }
    if (tree != NULL)
        (void)fts_close(tree);
}

uint64_t stage_used(const char *path)
{
    FTS *tree = open_tree(path);
    const FTSENT *entry;
    uint64_t bytes = 0;

    while (tree != NULL && (entry = fts_read(tree)) != NULL) {
        if (entry->fts_info == FTS_F)
            bytes += (uint64_t)entry->fts_statp->st_blocks * 512;
    }
    if (tree != NULL)
        (void)fts_close(tree);
    return bytes;
}

/* ---- programs ---- */

struct words {
    struct strbuf sb;
    const struct stage *stage;
};

static void on_line(void *arg, const char *line)
{
    struct words *words = arg;

    strbuf_addf(&words->sb, "%s%s", words->sb.length > 0 ? "; " : "", line);
}

void stage_note_child(const struct stage *stage, pid_t pid)
{
    autofree char *path = xasprintf("%s/" CHILD_NAME, stage->dir);
    autofree char *mark = child_mark(pid);
    autoclose int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd >= 0)
        (void)!write_all(fd, mark, strlen(mark)); /* it is only needed after a kill */
}

static void on_start(void *arg, pid_t pid)
{
    const struct words *words = arg;

    stage_note_child(words->stage, pid);
}

int stage_qemu_img(const struct conversion *c, const struct stage *stage, const char *const *argv,
                   struct error *err)
{
    /* Arenas of many threads would look like memory in use. */
    static const char *const env[] = {"LC_ALL=C.UTF-8", "MALLOC_ARENA_MAX=4", NULL};
    struct words words = {.stage = stage};
    struct child_options options = {
        .argv = argv,
        .env = env,
        .stopped = worker_task_stopped(c->task),
        .timeout_ms = QEMU_IMG_TIMEOUT_MS,
        .memory_max = QEMU_IMG_MEMORY_MAX,
        .started = on_start,
        .line = on_line,
        .arg = &words,
    };
    int status = 0;
    int rc;

    strbuf_init(&words.sb, QEMU_IMG_OUTPUT_BYTES);
    rc = child_run(&options, &status, err);
    if (rc == 0 && status != 0) {
        rc = error_set(err, ERR_INTERNAL, "qemu-img %s failed (%d): %.300s", argv[1], status,
                       words.sb.data);
    }
    strbuf_release(&words.sb);
    return rc;
}

char *stage_image(const struct conversion *c, const struct stage *stage, size_t index)
{
    return xasprintf("%s/%s.%s", stage->out, json_str(convert_disk(c, index), "id"), c->format);
}

char *stage_report(const struct stage *stage)
{
    return xasprintf("%s/report.json", stage->dir);
}

int stage_copy_disk(const struct conversion *c, const struct stage *stage, size_t index,
                    struct error *err)
{
    autofree char *to = stage_image(c, stage, index);
    autofree char *partial = xasprintf("%s.part", to);
    const char *argv[] = {
        "qemu-img", "convert", "-f", "qcow2", "-O", c->format, stage->overlays[index],
        partial,    NULL};

    if (stage_qemu_img(c, stage, argv, err) < 0)
        return error_wrap(err, "copy of disk %zu", index + 1);
    if (rename(partial, to) < 0)
        return error_set_errno(err, errno, "rename '%s' to '%s'", partial, to);
    return 0;
}

int stage_copy_disks(const struct conversion *c, const struct stage *stage, struct error *err)
{
    for (size_t i = 0; i < stage->count; i++) {
        if (stage_copy_disk(c, stage, i, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- the area ---- */

/* Is the lock file that we hold still the one in the directory? Its holder may have removed it. */
static bool is_still(const char *path, int fd)
{
    struct stat by_fd;
    struct stat by_path;

    return fstat(fd, &by_fd) == 0 && lstat(path, &by_path) == 0 && by_fd.st_ino == by_path.st_ino &&
           by_fd.st_dev == by_path.st_dev;
}

static int lock_area(const char *dir, int64_t wait_ms, const atomic_bool *stopped, int *out_fd,
                     struct error *err)
{
    autofree char *path = xasprintf("%s/" LOCK_NAME, dir);

    for (int i = 0; i < LOCK_TRIES; i++) {
        autoclose int fd = -1;
        if (path_make_dirs(dir, err) < 0)
            return error_wrap(err, "work area of the conversion (hyper2kvm.output_dir)");
        if (local_lock(path, wait_ms, stopped, &fd, err) < 0) {
            if (err->code != ERR_NOT_FOUND)
                return -1;
            error_clear(err); /* the directory was removed just now */
            continue;
        }
        if (is_still(path, fd)) {
            *out_fd = fd_steal(&fd);
            return 0;
        }
    }
    return error_set(err, ERR_CONFLICT, "'%s' is removed again and again", dir);
}

static void end_child(const char *dir)
{
    autofree char *path = xasprintf("%s/" CHILD_NAME, dir);
    autofree char *mark = NULL;
    struct error ignored = ERROR_NONE;
    size_t size = 0;

    if (file_read(path, MARK_BYTES_MAX, &mark, &size, &ignored) == 0)
        child_end_marked(mark);
    (void)unlink(path);
}

static bool area_exists(const char *dir)
{
    autofree char *lock = xasprintf("%s/" LOCK_NAME, dir);
    struct stat st;

    return stat(lock, &st) == 0;
}

static int take_area(const struct conversion *c, struct stage *stage, const char *name,
                     int64_t wait_ms, struct error *err)
{
    free(stage->dir);
    stage->dir = xasprintf("%s/" STAGE_DIR "/%s", c->bridge->hyper2kvm.output_dir, name);
    stage->found = area_exists(stage->dir);
    return lock_area(stage->dir, wait_ms, worker_task_stopped(c->task), &stage->lock, err);
}

static void name_files(const struct conversion *c, struct stage *stage)
{
    stage->out = xasprintf("%s/out", stage->dir);
    stage->tmp = xasprintf("%s/tmp", stage->dir);
    stage->final = xasprintf("%s/final", stage->dir);
    for (size_t i = 0; i < stage->count; i++) {
        const char *id = json_str(convert_disk(c, i), "id");
        stage->overlays[i] = xasprintf("%s/%s.qcow2", stage->dir, id);
        stage->links[i] = xasprintf("%s/%s.vmdk", stage->dir, id);
    }
}

/* What a disk holds, in clusters. Compression is not counted on. */
static int add_used(const struct image_part *part, uint64_t *sum, struct error *err)
{
    auto_image *image = NULL;
    uint64_t size;

    if (image_open_part(part, &image, err) < 0)
        return -1;
    size = image_size_bytes(image);
    for (uint64_t at = 0; at < size; at += SPACE_STEP_BYTES) {
        uint64_t length = min_u64(SPACE_STEP_BYTES, size - at);
        if (!image_is_hole(image, at, length))
            *sum += length;
    }
    return 0;
}

/* Of the images that are to be written some may be there, from the lease before. */
static int check_space(const struct conversion *c, const struct stage *stage, struct error *err)
{
    uint64_t present = stage_used(stage->dir);
    uint64_t needed = 0;

    for (size_t i = 0; i < stage->count; i++) {
        const struct image_part part = convert_part(c, i);
        if (add_used(&part, &needed, err) < 0)
            return error_wrap(err, "disk %zu", i + 1);
    }
    if (local_check_space(stage->dir, needed - min_u64(needed, present), err) < 0)
        return error_wrap(err, "hyper2kvm.output_dir");
    return 0;
}

int stage_open(const struct conversion *c, struct stage *out, struct error *err)
{
    autofree char *name = vm_file_name(c->job_id);
    autofree char *own = xasprintf("%s-%" PRIu64, name, worker_task_epoch(c->task));
    int rc;

    *out = (struct stage){.lock = -1, .keep = true}; /* not ours to remove yet */
    stage_sweep(c->bridge->hyper2kvm.output_dir);
    rc = take_area(c, out, name, STAGE_LOCK_MS, err);
    /* A process that lost the lease still works there, or the file system has no locks. */
    if (rc < 0 && (err->code == ERR_TIMEOUT || err->code == ERR_NOT_AVAILABLE)) {
        bool locks = err->code == ERR_TIMEOUT;
        error_clear(err);
        rc = take_area(c, out, own, 0, err);
        if (rc < 0 && !locks && err->code == ERR_NOT_AVAILABLE) {
            error_clear(err);
            rc = 0;
        }
    }
    if (rc < 0)
        return -1;
    out->keep = false;
    out->count = convert_disk_count(c);
    name_files(c, out);
    end_child(out->dir);
    return check_space(c, out, err);
}

/* Everything in it but the lock. */
static void empty(const struct stage *stage)
{
    DIR *d = opendir(stage->dir);
    const struct dirent *entry;

    while (d != NULL && (entry = readdir(d)) != NULL) {
        autofree char *path = xasprintf("%s/%s", stage->dir, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, LOCK_NAME) != 0)
            stage_remove(path);
    }
    if (d != NULL)
        (void)closedir(d);
}

/* As qemu-img takes it: a member of an OVA is a range of the file. Caller frees. */
static char *backing_name(const struct image_part *part)
{
    auto_json *name = NULL;
    autofree char *text = NULL;

    if (part->length == 0)
        return xstrdup(part->path);
    name = json_pack("{s:s, s:{s:s, s:I, s:I, s:{s:s, s:s}}}", "driver", part->format, "file",
                     "driver", "raw", "offset", (json_int_t)part->offset, "size",
                     (json_int_t)part->length, "file", "driver", "file", "filename", part->path);
    text = json_text(name);
    return xasprintf("json:%s", text);
}

static int make_overlay(const struct conversion *c, struct stage *stage, size_t i,
                        struct error *err)
{
    const struct image_part part = convert_part(c, i);
    autofree char *base = backing_name(&part);
    const char *argv[] = {"qemu-img", "create",    "-q", "-f", "qcow2",
                          "-F",       part.format, "-b", base, stage->overlays[i],
                          NULL};

    if (stage_qemu_img(c, stage, argv, err) < 0)
        return error_wrap(err, "work copy of disk %zu", i + 1);
    if (link(stage->overlays[i], stage->links[i]) < 0)
        return error_set_errno(err, errno, "link '%s'", stage->links[i]);
    return 0;
}

int stage_fill(const struct conversion *c, struct stage *stage, struct error *err)
{
    empty(stage);
    if (path_make_dirs(stage->out, err) < 0 || path_make_dirs(stage->tmp, err) < 0)
        return error_wrap(err, "work area of the conversion (hyper2kvm.output_dir)");
    for (size_t i = 0; i < stage->count; i++) {
        if (make_overlay(c, stage, i, err) < 0)
            return -1;
    }
    return 0;
}

void stage_close(struct stage *stage)
{
    if (stage->dir != NULL && !stage->keep) {
        empty(stage);
        stage_remove(stage->dir); /* the lock last: who waits for it looks whether it is there */
    }
    if (stage->lock >= 0)
        (void)close(stage->lock);
    free(stage->dir);
    free(stage->out);
    free(stage->tmp);
    free(stage->final);
    for (size_t i = 0; i < stage->count; i++) {
        free(stage->overlays[i]);
        free(stage->links[i]);
    }
    *stage = (struct stage){.lock = -1};
}

/* ---- what others left ---- */

static void sweep_one(const char *dir)
{
    autofree char *path = xasprintf("%s/" LOCK_NAME, dir);
    autoclose int fd = -1;
    struct error ignored = ERROR_NONE;
    struct stat st;

    if (lstat(path, &st) < 0 || local_lock(path, 0, NULL, &fd, &ignored) < 0 || !is_still(path, fd))
        return;
    end_child(dir);
    if (clock_wall_ms() - (int64_t)st.st_mtim.tv_sec * 1000 > STAGE_LEFTOVER_MS)
        stage_remove(dir);
}

void stage_sweep(const char *output_dir)
{
    autofree char *path = xasprintf("%s/" STAGE_DIR, output_dir);
    DIR *d = opendir(path);
    const struct dirent *entry;

    while (d != NULL && (entry = readdir(d)) != NULL) {
        autofree char *dir = xasprintf("%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.')
            sweep_one(dir);
    }
    if (d != NULL)
        (void)closedir(d);
}
