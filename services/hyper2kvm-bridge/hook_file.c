/* Which files may be run as scripts. */
#include "hook.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/paths.h"

/* Whoever may write it decides what we do. */
static int check_owner(const char *path, const struct stat *st, struct error *err)
{
    if (st->st_uid != 0 && st->st_uid != geteuid()) {
        return error_set(err, ERR_DENIED,
                         "'%.256s' must belong to root or to the user that the bridge runs as",
                         path);
    }
    if ((st->st_mode & (S_IWGRP | S_IWOTH)) != 0) {
        return error_set(err, ERR_DENIED,
                         "'%.256s' can be written by others: chmod go-w, or it is not run", path);
    }
    return 0;
}

static int check_dir(const char *path, struct error *err)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "'%.256s'", path);
    if (!S_ISDIR(st.st_mode))
        return error_set(err, ERR_INVALID, "'%.256s' is no directory", path);
    return check_owner(path, &st, err);
}

/* The scripts' directory and those between it and the file, which is resolved and inside dir. */
static int check_dirs(const char *dir, const char *file, struct error *err)
{
    autofree char *part = xstrdup(file);

    for (char *slash = strrchr(part, '/'); slash != NULL && slash != part;
         slash = strrchr(part, '/')) {
        *slash = '\0';
        if (check_dir(part, err) < 0)
            return -1;
        if (strcmp(part, dir) == 0)
            return 0;
    }
    return error_set(err, ERR_DENIED, "'%.256s' is not inside '%.256s'", file, dir);
}

int hook_script_file(const char *dir, const char *command, char **out, struct error *err)
{
    autofree char *real = realpath(dir, NULL);
    autofree char *path = command[0] == '/' ? xstrdup(command) : xasprintf("%s/%s", dir, command);
    autofree char *file = NULL;
    struct stat st;

    if (real == NULL)
        return error_set_errno(err, errno, "hooks.scripts_dir '%.256s'", dir);
    file = realpath(path, NULL);
    if (file == NULL)
        return error_set_errno(err, errno, "script '%.256s'", path);
    if (strncmp(file, real, strlen(real)) != 0 || file[strlen(real)] != '/')
        return error_set(err, ERR_DENIED, "script '%.256s' is not inside '%.256s'", file, real);
    if (check_dirs(real, file, err) < 0)
        return -1;
    if (stat(file, &st) < 0)
        return error_set_errno(err, errno, "script '%.256s'", file);
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERR_DENIED, "script '%.256s' is no regular file", file);
    if (check_owner(file, &st, err) < 0)
        return -1;
    if (access(file, X_OK) < 0)
        return error_set(err, ERR_DENIED, "script '%.256s' is not executable: chmod u+x", file);
    *out = STEAL(file);
    return 0;
}
