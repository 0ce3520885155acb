/* See limiter.h. A hash table with chains by index and one list in order of use. */
#include "limiter.h"

#include <stdio.h>
#include <string.h>

#define BUCKETS   1024 /* chains of 4 when full */
#define NONE      UINT32_MAX
#define MINUTE_MS 60000

struct entry {
    char key[LIMITER_KEY_MAX];
    double tokens;
    int64_t at_ms;
    uint32_t chain;
    uint32_t newer, older;
};

struct limiter {
    pthread_mutex_t mutex; /* guards everything below */
    uint32_t per_min;
    uint32_t buckets[BUCKETS];
    struct entry *entries;
    uint32_t count;
    uint32_t newest, oldest;
};

struct limiter *limiter_new(uint32_t per_min)
{
    struct limiter *limiter = xcalloc(1, sizeof *limiter);

    (void)pthread_mutex_init(&limiter->mutex, NULL);
    limiter->per_min = per_min;
    limiter->entries = xcalloc(LIMITER_ENTRIES_MAX, sizeof *limiter->entries);
    for (size_t i = 0; i < BUCKETS; i++)
        limiter->buckets[i] = NONE;
    limiter->newest = limiter->oldest = NONE;
    return limiter;
}

void limiter_free(struct limiter *limiter)
{
    if (limiter == NULL)
        return;
    free(limiter->entries);
    free(limiter);
}

static uint32_t bucket_of(const char *key)
{
    uint32_t hash = 2166136261U; /* FNV-1a: the table is bounded, so collisions cost little */

    for (const char *p = key; *p != '\0'; p++)
        hash = (hash ^ (unsigned char)*p) * 16777619U;
    return hash % BUCKETS;
}

static void use_unlink(struct limiter *limiter, uint32_t i)
{
    struct entry *entry = &limiter->entries[i];

    if (entry->newer != NONE) {
        limiter->entries[entry->newer].older = entry->older;
    } else {
        limiter->newest = entry->older;
    }
    if (entry->older != NONE) {
        limiter->entries[entry->older].newer = entry->newer;
    } else {
        limiter->oldest = entry->newer;
    }
}

static void use_push(struct limiter *limiter, uint32_t i)
{
    struct entry *entry = &limiter->entries[i];

    entry->newer = NONE;
    entry->older = limiter->newest;
    if (limiter->newest != NONE)
        limiter->entries[limiter->newest].newer = i;
    limiter->newest = i;
    if (limiter->oldest == NONE)
        limiter->oldest = i;
}

static void chain_unlink(struct limiter *limiter, uint32_t i)
{
    uint32_t *at = &limiter->buckets[bucket_of(limiter->entries[i].key)];

    while (*at != i)
        at = &limiter->entries[*at].chain;
    *at = limiter->entries[i].chain;
}

static struct entry *find(struct limiter *limiter, const char *key, int64_t now_ms)
{
    uint32_t bucket = bucket_of(key);
    uint32_t i = limiter->buckets[bucket];

    while (i != NONE && strcmp(limiter->entries[i].key, key) != 0)
        i = limiter->entries[i].chain;
    if (i != NONE) {
        use_unlink(limiter, i);
        use_push(limiter, i);
        return &limiter->entries[i];
    }
    if (limiter->count < LIMITER_ENTRIES_MAX) {
        i = limiter->count++;
    } else {
        i = limiter->oldest;
        use_unlink(limiter, i);
        chain_unlink(limiter, i);
    }
    (void)snprintf(limiter->entries[i].key, LIMITER_KEY_MAX, "%s", key);
    limiter->entries[i].tokens = limiter->per_min;
    limiter->entries[i].at_ms = now_ms;
    limiter->entries[i].chain = limiter->buckets[bucket];
    limiter->buckets[bucket] = i;
    use_push(limiter, i);
    return &limiter->entries[i];
}

uint32_t limiter_take(struct limiter *limiter, const char *key, int64_t now_ms)
{
    char cut[LIMITER_KEY_MAX];
    struct entry *entry;
    double missing;
    LOCK_SCOPE(&limiter->mutex);

    if (limiter->per_min == 0)
        return 0;
    (void)snprintf(cut, sizeof cut, "%s", key);
    entry = find(limiter, cut, now_ms);
    if (now_ms > entry->at_ms) {
        entry->tokens += (double)(now_ms - entry->at_ms) * limiter->per_min / MINUTE_MS;
        if (entry->tokens > limiter->per_min)
            entry->tokens = limiter->per_min;
        entry->at_ms = now_ms;
    }
    missing = 1.0 - entry->tokens;
    if (missing > 1e-9) /* rounding */
        return 1 + (uint32_t)(missing * MINUTE_MS / 1000 / limiter->per_min);
    entry->tokens -= 1.0;
    return 0;
}
