/* See metric_totals.h. */
#include "common/metric_totals.h"

#include <string.h>

#include "common/autos.h"
#include "common/json.h"

const char *const metric_duration_bounds[] = {"1",    "5",     "10",    "30",    "60",
                                              "120",  "300",   "600",   "1800",  "3600",
                                              "7200", "14400", "28800", "86400", "+Inf"};
const size_t metric_duration_bounds_count = ARRAY_LEN(metric_duration_bounds);

static const char add_sql[] =
    "INSERT INTO metric_totals AS m (name, labels, value)"
    " SELECT name, labels, sum(value)"
    " FROM jsonb_to_recordset($1::jsonb) AS t(name text, labels jsonb, value double precision)"
    " GROUP BY name, labels ORDER BY name, labels"
    " ON CONFLICT (name, labels) DO UPDATE SET value = m.value + EXCLUDED.value";

void metric_batch_init(struct metric_batch *batch)
{
    batch->items = json_array();
}

void metric_batch_release(struct metric_batch *batch)
{
    json_decref(batch->items);
    batch->items = NULL;
}

/* The value of the same total, if the batch has it: ends that come together are mostly alike. */
static json_t *find_value(const struct metric_batch *batch, const char *name, const json_t *labels)
{
    json_t *item;
    size_t i;

    json_array_foreach(batch->items, i, item)
    {
        if (strcmp(json_str(item, "name"), name) == 0 &&
            json_equal(json_object_get(item, "labels"), labels))
            return json_object_get(item, "value");
    }
    return NULL;
}

void metric_batch_add(struct metric_batch *batch, const char *name, const json_t *labels,
                      double value)
{
    auto_json *own = labels == NULL ? json_object() : json_incref(json_unconst(labels));
    json_t *known = find_value(batch, name, own);
    json_t *item;

    if (known != NULL) {
        (void)json_real_set(known, json_real_value(known) + value);
        return;
    }
    item = json_object();
    json_set_text(item, "name", name);
    json_put(item, "labels", json_deep_copy(own));
    json_put(item, "value", json_real(value));
    (void)json_array_append_new(batch->items, item);
}

void metric_batch_observe(struct metric_batch *batch, const char *name, const json_t *labels,
                          double seconds)
{
    auto_json *with_le = labels == NULL ? json_object() : json_deep_copy(labels);
    autofree char *bucket = xasprintf("%s_bucket", name);
    autofree char *sum = xasprintf("%s_sum", name);
    autofree char *count = xasprintf("%s_count", name);
    size_t i = 0;

    while (i + 1 < metric_duration_bounds_count &&
           seconds > strtod(metric_duration_bounds[i], NULL))
        i++;
    json_set_text(with_le, "le", metric_duration_bounds[i]);
    metric_batch_add(batch, bucket, with_le, 1);
    metric_batch_add(batch, sum, labels, seconds);
    metric_batch_add(batch, count, labels, 1);
}

int metric_batch_store(struct db *db, const struct metric_batch *batch, struct error *err)
{
    autofree char *text = NULL;

    if (json_array_size(batch->items) == 0)
        return 0;
    text = json_text(batch->items);
    if (db_later(db, add_sql, DB_PARAMS(text), NULL, err) < 0)
        return error_wrap(err, "metric totals");
    return 0;
}
