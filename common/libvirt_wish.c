/* See libvirt_wish.h. */
#include "common/libvirt_wish.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"

static bool is_allowed(const struct libvirt_config *config, const char *uri)
{
    if (strcmp(uri, config->uri) == 0)
        return true;
    for (size_t i = 0; i < config->allowed_uris.count; i++) {
        if (strcmp(uri, config->allowed_uris.items[i]) == 0)
            return true;
    }
    return false;
}

int libvirt_wish_check(const struct libvirt_config *config, const json_t *wish, const char *prefix,
                       struct field_problem *problem, struct error *err)
{
    static const char *const clashes[] = {"fail", "rename", "replace", NULL};
    const char *uri = field_text(wish, "uri", config->uri);
    const char *clash = field_text(wish, "if_exists", clashes[0]);
    char field[FIELD_NAME_MAX];

    (void)snprintf(field, sizeof field, "%suri", prefix);
    if (!is_allowed(config, uri)) {
        return field_fail(problem, 422, field, err, ERR_DENIED,
                          "'%s': '%.128s' is neither libvirt.uri nor in libvirt.allowed_uris of "
                          "the server's configuration",
                          field, uri);
    }
    (void)snprintf(field, sizeof field, "%sif_exists", prefix);
    if (!word_in(clash, clashes)) {
        return field_fail(problem, 400, field, err, ERR_INVALID,
                          "'%s': '%s' is not fail, rename or replace", field, clash);
    }
    (void)snprintf(field, sizeof field, "%sbridge", prefix);
    if (json_object_get(wish, "bridge") != NULL && json_object_get(wish, "network") != NULL) {
        return field_fail(problem, 400, field, err, ERR_INVALID,
                          "'%s' and 'network' both say where the NICs go: give one", field);
    }
    return 0;
}

json_t *libvirt_wish_spec(const struct libvirt_config *config, const json_t *wish)
{
    static const char *const copied[] = {"network", "bridge", "autostart", "start", "if_exists"};
    json_t *spec = json_object();

    json_set_text(spec, "uri", field_text(wish, "uri", config->uri));
    json_set_text(spec, "pool", field_text(wish, "pool", config->pool));
    for (size_t i = 0; i < ARRAY_LEN(copied); i++) {
        json_t *value = json_object_get(wish, copied[i]);
        if (value != NULL)
            json_put(spec, copied[i], json_incref(value));
    }
    return spec;
}
