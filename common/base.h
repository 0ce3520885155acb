/* What every file of the suite may rely on: scope-bound ownership, allocation that
 * never returns NULL, arithmetic that never wraps, and a few macros.
 *
 * Out of memory aborts the process (the supervisor restarts it and the lease expires),
 * so a size that comes from outside is bounded before it reaches an allocator here. */
#ifndef COMMON_BASE_H
#define COMMON_BASE_H

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define MUST_CHECK        __attribute__((warn_unused_result))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define ARRAY_LEN(a)      (sizeof(a) / sizeof((a)[0]))
#define CLEANUP(fn)       __attribute__((cleanup(fn)))
/* New memory for free(); never NULL. */
#define ALLOCATED   __attribute__((malloc, returns_nonnull, warn_unused_result))
#define REALLOCATED __attribute__((returns_nonnull, warn_unused_result))

#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

/* Defines <name>_auto(), to be used with CLEANUP() on a pointer variable of that type. */
#define DEFINE_AUTO(name, type, release)                             \
    __attribute__((unused)) static inline void name##_auto(type **p) \
    {                                                                \
        if (*p != NULL)                                              \
            release(*p);                                             \
    }

/* Gives an owned pointer away: the variable becomes NULL and its auto does nothing. */
#define STEAL(ptr)                       \
    __extension__({                      \
        __typeof__(ptr) stolen_ = (ptr); \
        (ptr) = NULL;                    \
        stolen_;                         \
    })

static inline void autofree_cleanup(void *p)
{
    free(*(void **)p);
}

static inline void autoclose_cleanup(const int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
}

#define autofree  CLEANUP(autofree_cleanup)
#define autoclose CLEANUP(autoclose_cleanup)

static inline int fd_steal(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

static inline void lock_scope_end(pthread_mutex_t **mutex)
{
    (void)pthread_mutex_unlock(*mutex);
}

static inline pthread_mutex_t *lock_scope_begin(pthread_mutex_t *mutex)
{
    (void)pthread_mutex_lock(mutex);
    return mutex;
}

#define LOCK_SCOPE_NAME2(line) lock_scope_##line
#define LOCK_SCOPE_NAME(line)  LOCK_SCOPE_NAME2(line)
/* Holds the mutex until the end of the enclosing block. */
#define LOCK_SCOPE(mutex)                                                                         \
    pthread_mutex_t *LOCK_SCOPE_NAME(__LINE__) __attribute__((cleanup(lock_scope_end), unused)) = \
        lock_scope_begin(mutex)

/* Allocation; none of these returns NULL, all abort when memory is exhausted. */
ALLOCATED void *xmalloc(size_t size);
ALLOCATED void *xcalloc(size_t count, size_t size);
REALLOCATED void *xrealloc(void *p, size_t size);
REALLOCATED void *xreallocarray(void *p, size_t count, size_t size);
ALLOCATED char *xstrdup(const char *text);
ALLOCATED char *xstrndup(const char *text, size_t length_max);
ALLOCATED void *xmemdup(const void *data, size_t size);
/* 4096-aligned, as O_DIRECT and io_uring want it; free() it. */
ALLOCATED void *xalloc_aligned(size_t size);
ALLOCATED PRINTF_LIKE(1, 2) char *xasprintf(const char *format, ...);

/* true = did not overflow, *out written. */
static inline MUST_CHECK bool checked_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline MUST_CHECK bool checked_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* Is [offset, offset+length) inside [0, size)? Cannot wrap. */
static inline bool range_is_inside(uint64_t offset, uint64_t length, uint64_t size)
{
    return offset <= size && length <= size - offset;
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t round_up_u64(uint64_t value, uint64_t step)
{
    return (value + step - 1) / step * step;
}

/* Writes the whole buffer, restarting after EINTR and short writes; -1 leaves errno set. */
MUST_CHECK int write_all(int fd, const void *data, size_t size);
MUST_CHECK int pwrite_all(int fd, const void *data, size_t size, uint64_t offset);
/* Reads exactly size bytes; end of file before that is -1 with errno EIO. */
MUST_CHECK int pread_all(int fd, void *data, size_t size, uint64_t offset);

/* Is every byte zero? Runs at memory speed. size may be 0 (true). */
bool mem_is_zero(const void *data, size_t size);

/* Lower-case hex of data into out (2*size+1 bytes), NUL-terminated. */
void hex_encode(const void *data, size_t size, char *out);
/* Exactly 2*size hex digits of text into out; false when text is anything else. */
MUST_CHECK bool hex_decode(const char *text, void *out, size_t size);

#endif
