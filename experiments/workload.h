/* What the benchmark's programs share: a clock, memory full of data that does not shrink, a file of numbers.
 */
#ifndef EXPERIMENTS_WORKLOAD_H
#define EXPERIMENTS_WORKLOAD_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static inline void fail(const char *what) {
    perror(what);
    exit(1);
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t next_random(uint64_t *seed) {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Every page written, and small pages as in the floor. */
static inline char *touched_memory(uint64_t size) {
    char *memory =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t seed = 42;
    if (memory == MAP_FAILED)
        fail("mmap");
    madvise(memory, size, MADV_NOHUGEPAGE);
    for (uint64_t i = 0; i < size; i += 8)
        *(uint64_t *)(memory + i) = next_random(&seed);
    return memory;
}

/* A file of 64-bit numbers; complete when it appears. */
static inline void write_numbers(const char *path, const uint64_t *numbers, uint64_t count) {
    char partial[4096];
    snprintf(partial, sizeof partial, "%s.partial", path);
    int fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    const char *at = (const char *)numbers;
    if (fd < 0)
        fail(partial);
    for (uint64_t left = count * sizeof *numbers; left;) {
        ssize_t written = write(fd, at, left);
        if (written <= 0)
            fail(partial);
        at += written;
        left -= (uint64_t)written;
    }
    close(fd);
    if (rename(partial, path))
        fail(path);
}

#endif
