/* Files of templates.dir into table templates (origin 'config'): <name>.yaml, .yml or .json, each a
 * template. One that is wrong is told and left out, whatever the others are. */
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "common/autos.h"
#include "common/job_template.h"
#include "common/json.h"
#include "common/log.h"
#include "common/paths.h"
#include "config_sync.h"

#define FILES_MAX      500
#define FILE_BYTES_MAX (256 * KIB)

/* One that was put over REST under that name stays: the file is told of in the log. */
static const char upsert_sql[] =
    "INSERT INTO templates AS t (name, template, origin) VALUES ($1, $2::jsonb, 'config')"
    " ON CONFLICT (name) DO UPDATE SET template = $2::jsonb, updated_at = now()"
    " WHERE t.origin = 'config' RETURNING 1";
static const char gone_sql[] = "DELETE FROM templates WHERE origin = 'config'"
                               " AND NOT name IN (SELECT jsonb_array_elements_text($1::jsonb))";

/* "web.yaml" -> "web"; NULL: no template. Caller frees. */
static char *name_of(const char *file)
{
    static const char *const suffixes[] = {".yaml", ".yml", ".json"};

    for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
        if (path_has_suffix(file, suffixes[i]))
            return xstrndup(file, strlen(file) - strlen(suffixes[i]));
    }
    return NULL;
}

static int read_file(const struct templates_config *config, const char *path, const char *name,
                     char **out, struct error *err)
{
    autofree char *text = NULL;
    auto_json *body = NULL;
    auto_json *canonical = NULL;
    struct field_problem problem = {0};
    size_t size = 0;

    if (file_read(path, FILE_BYTES_MAX, &text, &size, err) < 0 ||
        body_parse(text, size, FILE_BYTES_MAX, false, &body, err) < 0)
        return -1;
    if (!json_is_object(body))
        return error_set(err, ERR_INVALID, "a template must be an object of job fields");
    if (job_template_name_check(name, &problem, err) < 0 ||
        job_template_canonical(config, body, &canonical, &problem, err) < 0)
        return -1;
    *out = json_text(canonical);
    return 0;
}

static int take_file(const struct templates_config *config, const char *file, json_t *names,
                     struct db *db, struct error *err)
{
    autofree char *path = xasprintf("%s/%s", config->dir, file);
    autofree char *name = name_of(file);
    autofree char *text = NULL;
    auto_pgresult *rows = NULL;
    struct error why = ERROR_NONE;

    if (name == NULL)
        return 0;
    if (read_file(config, path, name, &text, &why) < 0) {
        LOG(ERROR, "template_refused", F_STR("file", path), F_ERR(&why));
        return 0;
    }
    if (db_exec(db, upsert_sql, DB_PARAMS(name, text), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        LOG(WARN, "template_hidden", F_STR("file", path), F_STR("template", name));
    (void)json_array_append_new(names, json_string(name));
    return 0;
}

int template_files_sync(const struct templates_config *config, struct db *db, struct error *err)
{
    auto_json *names = json_array();
    autofree char *text = NULL;
    DIR *dir = NULL;
    const struct dirent *entry;
    int rc = 0;

    if (config->dir[0] != '\0') {
        dir = opendir(config->dir);
        if (dir == NULL)
            return error_set_errno(err, errno, "templates.dir '%.256s'", config->dir);
    }
    while (rc == 0 && dir != NULL && json_array_size(names) < FILES_MAX &&
           (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.')
            rc = take_file(config, entry->d_name, names, db, err);
    }
    if (dir != NULL)
        (void)closedir(dir);
    text = json_text(names);
    return rc < 0 ? -1 : db_exec(db, gone_sql, DB_PARAMS(text), NULL, err);
}
