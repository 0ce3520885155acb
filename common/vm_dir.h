/* Names of the directories that VMs of one batch get below a common one. */
#ifndef COMMON_VM_DIR_H
#define COMMON_VM_DIR_H

#include <stdbool.h>

/* The VM's name as a file name. shared: others of the batch have the same one (in other folders);
 * then a part of the digest of its path stands behind it. Caller frees. */
char *vm_dir_name(const char *vm_path, bool shared);

#endif
