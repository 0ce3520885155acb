/* Confinement of user-given paths to configured base directories. */
#ifndef COMMON_PATHS_H
#define COMMON_PATHS_H

#include "common/config.h"

#define PATH_BYTES_MAX 4096

/* Absolute, clean form of `path` (relative: below bases->items[0]) that lies inside one of the
 * bases: no "..", no symlink on the way that leads outside (the existing part is resolved), no NUL
 * or control bytes. The path itself need not exist. Caller frees. ERR_DENIED says which bases are
 * allowed. */
MUST_CHECK int path_confine(const struct config_list *bases, const char *path, char **out,
                            struct error *err);
/* mkdir -p below an existing base, mode 0750. */
MUST_CHECK int path_make_dirs(const char *path, struct error *err);
/* Whole regular file, at most size_max bytes, NUL-terminated. */
MUST_CHECK int file_read(const char *path, size_t size_max, char **out, size_t *out_size,
                         struct error *err);
/* temp file next to it, fsync, rename, fsync of the directory. mode e.g. 0640. */
MUST_CHECK int file_write_atomic(const char *path, const void *data, size_t size, unsigned int mode,
                                 struct error *err);
/* Is this the temporary file of a file_write_atomic, "<name>.tmp-1a2b3c4d"? Killed processes leave
 * such. *out_length: bytes of <name>. */
bool file_name_is_temp(const char *base_name, size_t *out_length);
/* fsync of the directory that holds path. */
MUST_CHECK int dir_sync_parent(const char *path, struct error *err);
/* The directory that path names its file in, without the last '/'; "" when it names none. Caller
 * frees. */
char *path_parent(const char *path);
/* What stands behind the last '/'; the path itself when nothing does. Borrowed. */
const char *path_last(const char *path);
/* Does text end in suffix, with something before it? */
bool path_has_suffix(const char *text, const char *suffix);
/* VM name to file name (manifest-and-ovf.md section 1): caller frees, never empty. */
char *vm_file_name(const char *name);

#endif
