/* See cleanup.h. The decision: newest first, so that who uses a base is decided before it. */
#include "services/exporter/engine/cleanup.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"

void cleanup_list_release(struct cleanup_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].dir);
        free(list->items[i].export_id);
        free(list->items[i].vm_name);
        free(list->items[i].vm);
        free(list->items[i].vm_id);
        free(list->items[i].base_id);
    }
    free(list->items);
    *list = (struct cleanup_list){0};
}

static int newest_first(const void *a, const void *b)
{
    const struct cleanup_item *left = a;
    const struct cleanup_item *right = b;

    if (left->completed_ms != right->completed_ms)
        return left->completed_ms > right->completed_ms ? -1 : 1;
    return strcmp(left->export_id, right->export_id);
}

static int by_base(const void *a, const void *b)
{
    const struct cleanup_item *const *left = a;
    const struct cleanup_item *const *right = b;

    return strcmp((*left)->base_id, (*right)->base_id);
}

static int by_vm(const void *a, const void *b)
{
    const struct cleanup_item *const *left = a;
    const struct cleanup_item *const *right = b;
    int order = strcmp((*left)->vm, (*right)->vm);

    return order != 0 ? order : newest_first(*left, *right);
}

/* ---- what must stay ---- */

static bool is_preserved(const struct cleanup_item *item, const struct cleanup_policy *policy)
{
    const char *slash = strrchr(item->dir, '/');
    const char *const names[] = {item->dir, slash == NULL ? item->dir : slash + 1, item->vm_name,
                                 item->export_id};
    const json_t *pattern;
    size_t i;

    json_array_foreach(policy->preserve, i, pattern)
    {
        for (size_t k = 0; k < ARRAY_LEN(names); k++) {
            if (json_is_string(pattern) && fnmatch(json_string_value(pattern), names[k], 0) == 0)
                return true;
        }
    }
    return false;
}

struct decision {
    struct cleanup_list *list;
    const struct cleanup_policy *policy;
    struct cleanup_item **users; /* all with a base, by base_id */
    size_t user_count;
    struct cleanup_item **by_vm; /* all, by VM, newest first */
};

/* Does an export that stays name it as its base? */
static bool is_needed(const struct decision *decision, const struct cleanup_item *item)
{
    size_t low = 0;
    size_t high = decision->user_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(decision->users[middle]->base_id, item->export_id) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (;
         low < decision->user_count && strcmp(decision->users[low]->base_id, item->export_id) == 0;
         low++) {
        if (!decision->users[low]->deleted)
            return true;
    }
    return false;
}

/* A limit wants it gone. */
static bool try_delete(const struct decision *decision, struct cleanup_item *item,
                       const char *reason)
{
    if (item->deleted || item->outside)
        return false;
    if (item->guarded == NULL && is_preserved(item, decision->policy))
        item->guarded = "preserved";
    if (item->guarded != NULL) {
        item->reason = item->guarded;
        return false;
    }
    if (is_needed(decision, item)) {
        item->reason = "base of a later export";
        return false;
    }
    item->deleted = true;
    item->reason = reason;
    return true;
}

/* The newest state of a VM, and the newest one that needs no other export. */
static void guard_newest(const struct decision *decision)
{
    const char *vm = NULL;
    bool has_full = false;

    for (size_t i = 0; i < decision->list->count; i++) {
        struct cleanup_item *item = decision->by_vm[i];
        bool newest = vm == NULL || strcmp(vm, item->vm) != 0;
        bool full = item->base_id[0] == '\0';
        if (item->unfinished)
            continue;
        has_full = newest ? false : has_full;
        vm = item->vm;
        if (item->guarded == NULL && (newest || (full && !has_full)))
            item->guarded = newest ? "newest export of its VM" : "newest full export of its VM";
        has_full = has_full || full;
    }
}

/* ---- the passes: age, count, size, free space ---- */

static void pass_age(const struct decision *decision, int64_t now_ms)
{
    for (size_t i = 0; i < decision->list->count; i++) {
        struct cleanup_item *item = &decision->list->items[i];
        if (now_ms - item->completed_ms > decision->policy->max_age_ms)
            (void)try_delete(decision, item, "age");
    }
}

static void pass_count(const struct decision *decision)
{
    const char *vm = NULL;
    uint64_t kept = 0;

    for (size_t i = 0; i < decision->list->count; i++) {
        struct cleanup_item *item =
            decision->policy->per_vm ? decision->by_vm[i] : &decision->list->items[i];
        if (decision->policy->per_vm && (vm == NULL || strcmp(vm, item->vm) != 0))
            kept = 0;
        vm = item->vm;
        if (item->outside || item->deleted)
            continue;
        if (kept < decision->policy->max_count || !try_delete(decision, item, "count"))
            kept++;
    }
}

/* Oldest first until `excess` bytes are gone. An old chain goes from its newest end, which comes
 * behind its base: several rounds. */
static uint64_t pass_bytes(const struct decision *decision, uint64_t excess, const char *reason)
{
    uint64_t gone = 0;
    bool again = true;

    while (gone < excess && again) {
        again = false;
        for (size_t i = decision->list->count; i > 0 && gone < excess; i--) {
            struct cleanup_item *item = &decision->list->items[i - 1];
            if (!try_delete(decision, item, reason))
                continue;
            gone += item->bytes;
            again = true;
        }
    }
    return gone;
}

static uint64_t bytes_of(const struct cleanup_list *list, bool deleted)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < list->count; i++) {
        if (!list->items[i].outside && list->items[i].deleted == deleted)
            sum += list->items[i].bytes;
    }
    return sum;
}

static void run_passes(const struct decision *decision, int64_t now_ms, uint64_t free_bytes)
{
    const struct cleanup_policy *policy = decision->policy;
    uint64_t left;
    uint64_t room;

    if (policy->min_free > 0 && free_bytes >= policy->min_free)
        return;
    if (policy->max_age_ms > 0)
        pass_age(decision, now_ms);
    if (policy->max_count > 0)
        pass_count(decision);
    left = bytes_of(decision->list, false);
    if (policy->max_size > 0 && left > policy->max_size)
        (void)pass_bytes(decision, left - policy->max_size, "size");
    room = free_bytes + bytes_of(decision->list, true);
    if (policy->min_free > 0 && room < policy->min_free)
        (void)pass_bytes(decision, policy->min_free - room, "free space");
}

void cleanup_decide(struct cleanup_list *list, const struct cleanup_policy *policy, int64_t now_ms,
                    uint64_t free_bytes)
{
    autofree struct cleanup_item **users = xcalloc(list->count + 1, sizeof *users);
    autofree struct cleanup_item **sorted = xcalloc(list->count + 1, sizeof *sorted);
    struct decision decision = {.list = list, .policy = policy, .users = users, .by_vm = sorted};

    if (list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, newest_first);
    for (size_t i = 0; i < list->count; i++) {
        struct cleanup_item *item = &list->items[i];
        sorted[i] = item;
        item->deleted = item->unfinished; /* it is no export any more */
        item->reason = item->unfinished ? "unfinished removal" : NULL;
        if (item->base_id[0] != '\0' && !item->unfinished)
            users[decision.user_count++] = item;
    }
    if (list->count > 1)
        qsort(sorted, list->count, sizeof *sorted, by_vm);
    if (decision.user_count > 1)
        qsort(users, decision.user_count, sizeof *users, by_base);
    guard_newest(&decision);
    run_passes(&decision, now_ms, free_bytes);
}
