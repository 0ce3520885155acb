/* Part of the built-in path: where virt-v2v-in-place is installed (Debian: virt-v2v and nbdkit), it
 * mends the guest for KVM in overlays, which are then copied to images. Facts:
 * virt-v2v-in-place(1); hyper2kvm-contract.md section 8.
 *
 * It refuses guests that it does not know: then nothing is lost, and the plain mapping follows. */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "guest_tool.h"

#define V2V_PROGRAM "virt-v2v-in-place"
/* Not TMPDIR: there it puts its sockets, whose paths must be short. */
#define V2V_TMP          "VIRT_V2V_TMPDIR"
#define V2V_REASON_BYTES 300
/* Its last word about a guest whose boot disk and card may be virtio; without it the guest keeps
 * the devices that it had. */
#define V2V_VIRTIO "This guest has virtio drivers installed"
#define V2V_ERROR  V2V_PROGRAM ": error: "

struct v2v {
    struct conversion *c;
    struct stage stage;
    bool virtio;
    char reason[V2V_REASON_BYTES]; /* why it gave up */
};

static void on_line(void *arg, const char *line)
{
    struct v2v *v2v = arg;
    const char *error = strstr(line, V2V_ERROR);

    if (strstr(line, V2V_VIRTIO) != NULL)
        v2v->virtio = true;
    if (error != NULL)
        (void)snprintf(v2v->reason, sizeof v2v->reason, "%s", error + strlen(V2V_ERROR));
}

/* The machine over the work copies; what it is read for is disks, firmware and network cards. */
static int write_domain(const struct v2v *v2v, const char *path, struct error *err)
{
    struct conversion work = *v2v->c;
    autofree char *xml = NULL;

    work.format = "qcow2"; /* the overlays' */
    if (convert_domain(&work, (const char *const *)v2v->stage.overlays, &(struct domain_options){0},
                       NULL, &xml, err) < 0)
        return -1;
    return file_write_atomic(path, xml, strlen(xml), 0640, err);
}

static int mend(struct v2v *v2v, const char *program, bool *out_next, struct error *err)
{
    autofree char *domain = xasprintf("%s/domain.xml", v2v->stage.dir);
    const char *const argv[] = {program, "-i", "libvirtxml", domain, NULL};
    const struct guest_tool tool = {.c = v2v->c,
                                    .stage = &v2v->stage,
                                    .name = "virt-v2v",
                                    .argv = argv,
                                    .tmp = V2V_TMP,
                                    .line = on_line,
                                    .arg = v2v};

    if (write_domain(v2v, domain, err) < 0)
        return -1;
    if (guest_tool_run(&tool, err) == 0)
        return 0;
    *out_next = err->code == ERR_INTERNAL; /* it gave up, by itself */
    if (*out_next && v2v->reason[0] != '\0') {
        error_clear(err);
        return error_set(err, ERR_NOT_AVAILABLE, "virt-v2v: %s", v2v->reason);
    }
    return -1;
}

static int finish(struct v2v *v2v, struct error *err)
{
    struct conversion *c = v2v->c;
    struct stage *stage = &v2v->stage;
    char *images[CONVERT_DISKS_MAX] = {0};
    int rc;

    if (stage_copy_disks(c, stage, err) < 0)
        return -1;
    if (!v2v->virtio) {
        convert_remark(c->not_done, "virt-v2v has no virtio drivers for this guest: the domain "
                                    "has devices like the source's");
    }
    for (size_t i = 0; i < stage->count; i++)
        images[i] = stage_image(c, stage, i);
    rc = publish_images(c, stage, images, v2v->virtio, NULL, err);
    for (size_t i = 0; i < stage->count; i++)
        free(images[i]);
    return rc;
}

static void v2v_release(struct v2v *v2v)
{
    stage_close(&v2v->stage);
}

int v2v_convert(struct conversion *c, bool *out_next, struct error *err)
{
    CLEANUP(v2v_release) struct v2v v2v = {.c = c, .stage = {.lock = -1}};
    const char *configured = c->bridge->hyper2kvm.virt_v2v;
    const char *program = strcmp(configured, "auto") == 0 ? V2V_PROGRAM : configured;
    const char *const help[] = {program, "--help", NULL};

    if (guest_tool_probe(c, help, "libvirtxml", out_next, err) < 0)
        return -1;
    c->path_used = "virt-v2v";
    if (stage_open(c, &v2v.stage, err) < 0 || stage_fill(c, &v2v.stage, err) < 0 ||
        mend(&v2v, program, out_next, err) < 0)
        return -1;
    return finish(&v2v, err);
}
