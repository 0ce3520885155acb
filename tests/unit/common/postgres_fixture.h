/* A private PostgreSQL for a test program's cases; without the server's programs they are skipped.
 * Groups run with start_postgres and stop_postgres. */
#ifndef TESTS_UNIT_COMMON_POSTGRES_FIXTURE_H
#define TESTS_UNIT_COMMON_POSTGRES_FIXTURE_H

#include "tests/unit/common/stores_fixture.h"

#include <glob.h>

#include "common/db.h"

static char *dir; /* NULL: PostgreSQL is not installed */
static struct database_config app;
static struct database_config owner;

static char *password_of(const char *user)
{
    autofree char *path = xasprintf("%s/pgpass", dir);
    autofree char *wanted = xasprintf("127.0.0.1:*:*:%s:", user);
    autofree char *text = NULL;
    struct error err = ERROR_NONE;
    size_t size = 0;
    const char *at;

    assert_ok(file_read(path, 4096, &text, &size, &err), err);
    at = strstr(text, wanted);
    assert_non_null(at);
    at += strlen(wanted);
    return xstrndup(at, strcspn(at, "\n"));
}

static struct database_config config_of(const char *user, const char *port)
{
    return (struct database_config){
        .url = xasprintf("postgresql://%s@127.0.0.1:%s/hypersdk", user, port),
        .owner_url = xstrdup(""),
        .password = password_of(user),
    };
}

static void config_free(struct database_config *config)
{
    free(config->url);
    free(config->owner_url);
    free(config->password);
}

static int start_postgres(void **state)
{
    glob_t found;
    autofree char *port = NULL;
    int rv = glob("/usr/lib/postgresql/*/bin/initdb", 0, NULL, &found);

    (void)state;
    globfree(&found);
    if (rv != 0) {
        print_message("SKIPPED: PostgreSQL is not installed (apt-get install postgresql)\n");
        return 0;
    }
    dir = scratch_make();
    assert_int_equal(setenv("PG_FSYNC", "off", 1), 0);
    assert_int_equal(chmod(dir, 0755), 0);
    assert_true(store_script("postgres.sh", "start", dir));
    port = read_line(dir, "port");
    app = config_of("hypersdk_app", port);
    owner = config_of("hypersdk_owner", port);
    return 0;
}

static int stop_postgres(void **state)
{
    (void)state;
    if (dir == NULL)
        return 0;
    (void)store_script("postgres.sh", "stop", dir);
    config_free(&app);
    config_free(&owner);
    scratch_remove(dir);
    return 0;
}

__attribute__((unused)) static struct db *connect_app(const char *role)
{
    if (dir == NULL)
        skip();
    return db_new(&app, role, "unit");
}

#endif
