/* Request bodies from flags. */
#include "command.h"
#include "common/json.h"

void body_add_text(json_t *body, const char *key, const struct command_line *line, enum flag_id id)
{
    if (flag_given(line, id))
        json_set_text(body, key, flag_text(line, id));
}

void body_add_bool(json_t *body, const char *key, const struct command_line *line, enum flag_id id)
{
    if (flag_given(line, id))
        (void)json_object_set_new(body, key, json_boolean(flag_on(line, id)));
}

void body_add_number(json_t *body, const char *key, const struct command_line *line,
                     enum flag_id id)
{
    if (flag_given(line, id))
        (void)json_object_set_new(body, key, json_integer(flag_number(line, id)));
}

void body_add_list(json_t *body, const char *key, const struct command_line *line, enum flag_id id,
                   char separator)
{
    json_t *list;

    if (!flag_given(line, id))
        return;
    list = json_array();
    if (json_array_add_split(list, flag_text(line, id), separator, true)) {
        (void)json_object_set_new(body, key, list);
        return;
    }
    json_decref(list); /* not UTF-8: no list, which the server refuses */
    json_set_text(body, key, flag_text(line, id));
}

void body_add_bandwidth(json_t *body, const struct command_line *line)
{
    body_add_number(body, "bandwidth_burst_mb", line, FLAG_BANDWIDTH_BURST);
    body_add_bool(body, "adaptive_bandwidth", line, FLAG_ADAPTIVE_BANDWIDTH);
    body_add_number(body, "bandwidth_min_mbps", line, FLAG_BANDWIDTH_MIN);
    body_add_number(body, "bandwidth_max_mbps", line, FLAG_BANDWIDTH_MAX);
}
