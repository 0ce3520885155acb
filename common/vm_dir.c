/* See vm_dir.h. */
#include "common/vm_dir.h"

#include <openssl/sha.h>
#include <string.h>

#include "common/paths.h"

char *vm_dir_name(const char *vm_path, bool shared)
{
    autofree char *name = vm_file_name(path_last(vm_path));
    uint8_t digest[SHA256_DIGEST_LENGTH];

    if (!shared)
        return STEAL(name);
    (void)SHA256((const unsigned char *)vm_path, strlen(vm_path), digest);
    return xasprintf("%s-%02x%02x%02x%02x", name, digest[0], digest[1], digest[2], digest[3]);
}
