/* The built-in path: the exporter wrote qcow2 while it downloaded; what is left is a domain that
 * starts the guest as it is, with devices like those it had. No second copy is made. */
#include <string.h>

#include "common/json.h"
#include "common/paths.h"
#include "convert.h"

int builtin_convert(struct conversion *c, struct error *err)
{
    const char *images[CONVERT_DISKS_MAX];
    size_t count = convert_disk_count(c);
    autofree char *path = xasprintf("%s/%s.xml", c->export_dir, c->vm_file);
    autofree char *xml = NULL;

    if (strcmp(c->format, "qcow2") != 0) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "the built-in path writes qcow2, not %s: install hyper2kvm or ask for "
                         "target_format qcow2",
                         c->format);
    }
    for (size_t i = 0; i < count; i++)
        images[i] = json_str(convert_disk(c, i), "local_path");
    if (convert_domain(c, images, &(struct domain_options){0}, c->warnings, &xml, err) < 0 ||
        worker_task_permit(c->task, err) < 0 || worker_task_may_write(c->task, err) < 0)
        return -1;
    if (file_write_atomic(path, xml, strlen(xml), 0640, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++)
        convert_remark(c->output_files, "%s", images[i]);
    c->domain_xml = STEAL(path);
    c->path_used = "builtin";
    convert_remark(c->not_done, "guest not changed: no virtio drivers installed, initramfs and "
                                "fstab as they were, guest tools of the source still there");
    return 0;
}
