/* See deadlines.h. */
#include "deadlines.h"

#include <sys/socket.h>

#include "common/clock.h"

struct deadline {
    struct deadline *previous;
    struct deadline *next;
    int fd;
    int64_t due_ms; /* monotonic; 0: none */
};

struct deadlines {
    pthread_mutex_t mutex; /* guards the list and every entry; a removed fd may be closed */
    struct deadline head;  /* ring */
};

struct deadlines *deadlines_new(void)
{
    struct deadlines *deadlines = xcalloc(1, sizeof *deadlines);

    (void)pthread_mutex_init(&deadlines->mutex, NULL);
    deadlines->head.next = deadlines->head.previous = &deadlines->head;
    return deadlines;
}

struct deadline *deadline_add(struct deadlines *deadlines, int fd, int64_t ms)
{
    struct deadline *deadline = xcalloc(1, sizeof *deadline);

    deadline->fd = fd;
    deadline->due_ms = clock_mono_ms() + ms;
    LOCK_SCOPE(&deadlines->mutex);
    deadline->next = &deadlines->head;
    deadline->previous = deadlines->head.previous;
    deadline->previous->next = deadline;
    deadlines->head.previous = deadline;
    return deadline;
}

void deadline_set(struct deadlines *deadlines, struct deadline *deadline, int64_t ms)
{
    LOCK_SCOPE(&deadlines->mutex);
    deadline->due_ms = ms == 0 ? 0 : clock_mono_ms() + ms;
}

void deadline_remove(struct deadlines *deadlines, struct deadline *deadline)
{
    LOCK_SCOPE(&deadlines->mutex);
    deadline->previous->next = deadline->next;
    deadline->next->previous = deadline->previous;
    free(deadline);
}

size_t deadlines_enforce(struct deadlines *deadlines)
{
    int64_t now_ms = clock_mono_ms();
    size_t late = 0;
    LOCK_SCOPE(&deadlines->mutex);

    for (struct deadline *d = deadlines->head.next; d != &deadlines->head; d = d->next) {
        if (d->due_ms != 0 && d->due_ms <= now_ms) {
            (void)shutdown(d->fd, SHUT_RDWR);
            d->due_ms = 0;
            late++;
        }
    }
    return late;
}
