/*
 * What every program here shares. A program is started with a directory as its argument; it sets something
 * up, calls check_move(), in which it is moved to another machine (or not: the control run), and then checks
 * that everything is as it was. The file `ready` in the directory says that it may be moved, `moved` that it
 * has been, `result` holds its verdict.
 *
 * The comment at the top of each program is read by the tests: `feature:` and `limits:` make docs/limits.md,
 * `serve:` and `restore:` are more arguments for lm-serve and lm-restore, `stopped:` says that the program is
 * moved in a group-stop, `untracked:` that its writes cannot be tracked, `refused:` that it cannot be moved,
 * with a word of the blocker, `timing:` why nothing may run beside its move.
 */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static char check_directory[512];

/* Ends the program with a verdict; write and rename, so that the file is complete when it appears. */
static inline void check_verdict(const char *text) {
    char unfinished[600], result[600];
    snprintf(unfinished, sizeof(unfinished), "%s/result.%d", check_directory, (int)gettid());
    snprintf(result, sizeof(result), "%s/result", check_directory);
    int file = open(unfinished, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0 || write(file, text, strlen(text)) < 0 || rename(unfinished, result) < 0)
        _exit(2);
    close(file);
}

static inline __attribute__((noreturn, format(printf, 3, 4))) void check_failed(const char *file, int line,
                                                                                const char *format, ...) {
    char reason[1500], text[2000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof(reason), format, arguments);
    va_end(arguments);
    snprintf(text, sizeof(text), "failed: %s:%d: %s\n", file, line, reason);
    check_verdict(text);
    _exit(1);
}

/* CHECK(condition, "what was expected and found", ...) */
#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            check_failed(__FILE__, __LINE__, __VA_ARGS__);                                                   \
    } while (0)

/* The value of a call that must not answer -1. */
#define SYS(call)                                                                                            \
    ({                                                                                                       \
        __typeof__(call) check_value = (call);                                                               \
        CHECK((intptr_t)check_value != -1, "%s: %s", #call, strerror(errno));                                \
        check_value;                                                                                         \
    })

/* The same for pthread calls, which answer the error. */
#define PTHREAD(call)                                                                                        \
    do {                                                                                                     \
        int check_error = (call);                                                                            \
        CHECK(check_error == 0, "%s: %s", #call, strerror(check_error));                                     \
    } while (0)

static inline void check_start(int argc, char **argv) {
    if (argc < 2)
        _exit(2);
    snprintf(check_directory, sizeof(check_directory), "%s", argv[1]);
}

/* The path of a file of this run, for the caller to keep. */
static inline char *check_path(const char *name) {
    char *path;
    CHECK(asprintf(&path, "%s/%s", check_directory, name) > 0, "no memory for a path");
    return path;
}

static inline void check_sleep(long milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

static inline bool check_exists(const char *name) {
    char path[600];
    snprintf(path, sizeof(path), "%s/%s", check_directory, name);
    return access(path, F_OK) == 0;
}

static inline bool check_is_moved(void) {
    return check_exists("moved");
}

static inline void check_ready(void) {
    char path[600];
    snprintf(path, sizeof(path), "%s/ready", check_directory);
    close(SYS(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666)));
}

static inline void check_wait_moved(void) {
    while (!check_is_moved())
        check_sleep(10);
}

/* The move happens in here. */
static inline void check_move(void) {
    check_ready();
    check_wait_moved();
}

static inline int check_passed(void) {
    check_verdict("passed\n");
    return 0;
}

static inline double check_now(clockid_t clock) {
    struct timespec now;
    SYS(clock_gettime(clock, &now));
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static inline pthread_t check_thread(void *(*body)(void *), void *argument) {
    pthread_t thread;
    PTHREAD(pthread_create(&thread, NULL, body, argument));
    return thread;
}

/* After the move: another thread that counts its rounds goes on, and ends when it is told to. */
static inline void check_goes_on(pthread_t thread, const volatile uint64_t *rounds, volatile bool *stop) {
    uint64_t before = *rounds;
    for (int wait = 0; *rounds == before && wait < 500; wait++)
        check_sleep(10);
    CHECK(*rounds > before, "the other thread stopped");
    *stop = true;
    PTHREAD(pthread_join(thread, NULL));
}

/* The whole of a small file, for the caller to keep; NUL-terminated, `length` may be NULL. */
static inline char *check_read_file(const char *path, size_t *length) {
    size_t size = 1 << 20, used = 0;
    char *text = malloc(size + 1);
    int file = SYS(open(path, O_RDONLY | O_CLOEXEC));
    for (ssize_t got; used < size && (got = SYS(read(file, text + used, size - used))) > 0;)
        used += (size_t)got;
    close(file);
    text[used] = 0;
    if (length)
        *length = used;
    return text;
}

/* The line of /proc/self/status (or another such file) that begins with a key. */
static inline char *check_status(const char *path, const char *key) {
    char *text = check_read_file(path, NULL), *line = text, *found = NULL;
    for (char *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        if (strncmp(line, key, strlen(key)) == 0) {
            found = strdup(line);
            break;
        }
    }
    free(text);
    CHECK(found, "%s has no line %s", path, key);
    return found;
}

/* Waits until a thread of this process sleeps in a system call; twice in a row, for it may be on its way. */
static inline void check_wait_asleep(pid_t thread) {
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)thread);
    for (int asleep = 0; asleep < 3;) {
        char *text = check_read_file(path, NULL), *end = strrchr(text, ')');
        asleep = end && end[2] == 'S' ? asleep + 1 : 0;
        free(text);
        check_sleep(5);
    }
}

/* A value that belongs to a place: no two places, and no two seeds, have the same. */
static inline uint64_t check_tag(uint64_t place, uint64_t seed) {
    uint64_t x = place * 0x9e3779b97f4a7c15u + seed + 1;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 27);
}

/* Fills memory: tags in the first and last word of every page, so that the rest may be compressed away. */
static inline void check_fill(void *memory, size_t length, uint64_t seed) {
    for (size_t at = 0; at + PAGE <= length; at += PAGE) {
        uint64_t *page = (uint64_t *)((char *)memory + at);
        page[0] = check_tag(at, seed);
        page[PAGE / 8 - 1] = ~check_tag(at, seed);
    }
}

static inline bool check_page_is_filled(const void *memory, size_t at, uint64_t seed) {
    const uint64_t *page = (const uint64_t *)((const char *)memory + at);
    return page[0] == check_tag(at, seed) && page[1] == 0 && page[PAGE / 8 - 1] == ~check_tag(at, seed);
}

static inline void check_filled(const char *name, const void *memory, size_t length, uint64_t seed) {
    for (size_t at = 0; at + PAGE <= length; at += PAGE)
        CHECK(check_page_is_filled(memory, at, seed), "%s: the page at +%#zx is not what was written", name,
              at);
}

static inline void check_zero(const char *name, const void *memory, size_t length) {
    const uint64_t *words = memory;
    for (size_t i = 0; i < length / 8; i++)
        CHECK(words[i] == 0, "%s: not zero at +%#zx", name, i * 8);
}

static inline void *check_map(size_t length) {
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap of %zu bytes: %s", length, strerror(errno));
    return memory;
}

/* Writes or reads all of a short buffer. */
static inline void check_write(int descriptor, const void *data, size_t length) {
    CHECK(write(descriptor, data, length) == (ssize_t)length, "write to %d: %s", descriptor, strerror(errno));
}

static inline void check_expect(int descriptor, const void *data, size_t length) {
    char buffer[8192] = {0};
    size_t used = 0;
    for (ssize_t got; used < length && (got = SYS(read(descriptor, buffer + used, length - used))) > 0;)
        used += (size_t)got;
    CHECK(used == length && memcmp(buffer, data, length) == 0, "descriptor %d: read \"%.*s\"", descriptor,
          (int)used, buffer);
}

#endif
