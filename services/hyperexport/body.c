/* Request bodies from flags. */
#include <string.h>

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
                   const char *separators)
{
    json_t *list;

    if (!flag_given(line, id))
        return;
    list = json_array();
    for (const char *p = flag_text(line, id); *p != '\0'; p += *p == '\0' ? 0 : 1) {
        p += strspn(p, " ");
        size_t length = strcspn(p, separators);
        if (length > 0 && json_array_append_new(list, json_stringn(p, length)) < 0)
            abort(); /* out of memory */
        p += length;
    }
    (void)json_object_set_new(body, key, list);
}

void body_add_bandwidth(json_t *body, const struct command_line *line)
{
    body_add_number(body, "bandwidth_burst_mb", line, FLAG_BANDWIDTH_BURST);
    body_add_bool(body, "adaptive_bandwidth", line, FLAG_ADAPTIVE_BANDWIDTH);
    body_add_number(body, "bandwidth_min_mbps", line, FLAG_BANDWIDTH_MIN);
    body_add_number(body, "bandwidth_max_mbps", line, FLAG_BANDWIDTH_MAX);
}
