/*
 * Both ends of the paging tests: memory at a fixed address in which every page says which one it is.
 *
 * `paged_program source PAGES KIND` fills the memory, says "ready" and holds still. `paged_program
 * destination PAGES KIND` maps the same memory empty, makes a userfaultfd, says its number, and then does
 * what its standard input says, a command a line, with a line of answer each: the number of pages (or bytes)
 * that were wrong, or a figure. KIND is private or shared. Of eleven pages one is never touched and of seven
 * one is zero.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BASE ((char *)0x200000000000)
#define ELSEWHERE ((char *)0x210000000000)
enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t word_of(uint64_t page, uint64_t word) {
    if (page % 11 == 5 || page % 7 == 3)
        return 0;
    /* Half of a page compresses, half of it does not. */
    uint64_t value = page * 0x9e3779b97f4a7c15u + (word % 2 ? word : 0);
    if (word % 2) {
        value ^= value >> 29;
        value *= 0xbf58476d1ce4e5b9u;
        value ^= value >> 32;
    }
    return value;
}

static int page_is_wrong(const char *memory, uint64_t page) {
    const volatile uint64_t *words = (const volatile uint64_t *)memory;
    for (uint64_t i = 0; i < WORDS; i++)
        if (words[i] != word_of(page, i))
            return 1;
    return 0;
}

static int page_is_not_zero(const char *memory) {
    const volatile uint64_t *words = (const volatile uint64_t *)memory;
    for (uint64_t i = 0; i < WORDS; i++)
        if (words[i])
            return 1;
    return 0;
}

static long check(const char *memory, uint64_t first, uint64_t count) {
    long wrong = 0;
    for (uint64_t i = first; i < first + count; i++)
        wrong += page_is_wrong(memory + (i - first) * PAGE, i);
    return wrong;
}

static long check_zero(const char *memory, uint64_t count) {
    long wrong = 0;
    for (uint64_t i = 0; i < count; i++)
        wrong += page_is_not_zero(memory + i * PAGE);
    return wrong;
}

struct walk {
    uint64_t pages, steps, seed;
    long wrong;
};

static uint64_t next(uint64_t *seed) {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void *walk(void *argument) {
    struct walk *walk = argument;
    for (uint64_t i = 0; i < walk->steps; i++) {
        uint64_t page = next(&walk->seed) % walk->pages;
        walk->wrong += page_is_wrong(BASE + page * PAGE, page);
    }
    return NULL;
}

static long walk_at_random(uint64_t pages, uint64_t threads, uint64_t steps) {
    pthread_t ids[64];
    struct walk walks[64];
    long wrong = 0;
    for (uint64_t i = 0; i < threads; i++) {
        walks[i] = (struct walk){.pages = pages, .steps = steps, .seed = i * 7919 + 1};
        pthread_create(&ids[i], NULL, walk, &walks[i]);
    }
    for (uint64_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        wrong += walks[i].wrong;
    }
    return wrong;
}

static int compare(const void *one, const void *other) {
    const uint64_t *a = one, *b = other;
    return *a < *b ? -1 : *a > *b;
}

/* The median time of a first touch, in nanoseconds, of `count` pages that hold something. */
static long time_faults(uint64_t pages, uint64_t count) {
    uint64_t *times = calloc(count, sizeof *times), seed = 42;
    for (uint64_t i = 0; i < count; i++) {
        struct timespec begin, end;
        uint64_t page = next(&seed) % pages;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        (void)*(volatile char *)(BASE + page * PAGE);
        clock_gettime(CLOCK_MONOTONIC, &end);
        times[i] =
            (uint64_t)(end.tv_sec - begin.tv_sec) * 1000000000u + (uint64_t)(end.tv_nsec - begin.tv_nsec);
    }
    qsort(times, count, sizeof *times, compare);
    long median = (long)times[count / 2];
    free(times);
    return median;
}

/* A child looks at all pages, while the parent writes to half of them. */
static long in_child(uint64_t first, uint64_t count, int grandchild) {
    pid_t child = fork();
    if (child == 0) {
        long wrong = grandchild ? in_child(first, count, 0) : 0;
        _exit(check(BASE + first * PAGE, first, count) + wrong ? 1 : 0);
    }
    int status = 0;
    for (uint64_t i = first; i < first + count; i += 2)
        BASE[i * PAGE + 100] = 'p';
    if (child < 0 || waitpid(child, &status, 0) != child)
        return -1;
    long wrong = 0;
    for (uint64_t i = first; i < first + count; i++) {
        if (i % 2 == first % 2)
            BASE[i * PAGE + 100] = (char)(word_of(i, 100 / 8) >> 100 % 8 * 8);
        wrong += page_is_wrong(BASE + i * PAGE, i);
    }
    return wrong + (WIFEXITED(status) ? WEXITSTATUS(status) : 1000);
}

/* The kernel reads missing pages: write(2) into a pipe. */
static long through_pipe(uint64_t first, uint64_t count) {
    int ends[2];
    long wrong = 0;
    static char page[PAGE];
    if (pipe(ends))
        return -1;
    for (uint64_t i = first; i < first + count; i++) {
        if (write(ends[1], BASE + i * PAGE, PAGE) != PAGE || read(ends[0], page, PAGE) != PAGE)
            wrong += 1000;
        wrong += page_is_wrong(page, i);
    }
    close(ends[0]);
    close(ends[1]);
    return wrong;
}

/* The kernel writes into a part of missing pages: read(2) from /dev/zero of the first 100 bytes. */
static long into_pages(uint64_t first, uint64_t count) {
    long wrong = 0;
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    for (uint64_t i = first; i < first + count; i++) {
        char *page = BASE + i * PAGE;
        if (read(zero, page, 104) != 104)
            wrong += 1000;
        for (uint64_t word = 0; word < 13; word++)
            ((uint64_t *)page)[word] = word_of(i, word);
        wrong += page_is_wrong(page, i);
    }
    close(zero);
    return wrong;
}

static long run(const char *verb, uint64_t a, uint64_t b, uint64_t c) {
    if (!strcmp(verb, "check"))
        return check(BASE + a * PAGE, a, b);
    if (!strcmp(verb, "check-moved"))
        return check(ELSEWHERE + c * PAGE, a, b);
    if (!strcmp(verb, "check-at"))
        return check(BASE + c * PAGE, a, b);
    if (!strcmp(verb, "check-zero"))
        return check_zero(BASE + a * PAGE, b);
    if (!strcmp(verb, "threads"))
        return walk_at_random(a, b, c);
    if (!strcmp(verb, "time"))
        return time_faults(a, b);
    if (!strcmp(verb, "fork"))
        return in_child(a, b, 0);
    if (!strcmp(verb, "fork-twice"))
        return in_child(a, b, 1);
    if (!strcmp(verb, "pipe"))
        return through_pipe(a, b);
    if (!strcmp(verb, "into"))
        return into_pages(a, b);
    if (!strcmp(verb, "dontneed"))
        return madvise(BASE + a * PAGE, b * PAGE, MADV_DONTNEED);
    if (!strcmp(verb, "free"))
        return madvise(BASE + a * PAGE, b * PAGE, MADV_FREE);
    if (!strcmp(verb, "remove"))
        return madvise(BASE + a * PAGE, b * PAGE, MADV_REMOVE);
    if (!strcmp(verb, "pageout"))
        return madvise(BASE + a * PAGE, b * PAGE, MADV_PAGEOUT);
    if (!strcmp(verb, "unmap"))
        return munmap(BASE + a * PAGE, b * PAGE);
    if (!strcmp(verb, "map"))
        return mmap(BASE + a * PAGE, b * PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
    if (!strcmp(verb, "protect"))
        return mprotect(BASE + a * PAGE, b * PAGE, PROT_READ);
    if (!strcmp(verb, "move"))
        return mremap(BASE + a * PAGE, b * PAGE, b * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                      ELSEWHERE + c * PAGE) == MAP_FAILED;
    if (!strcmp(verb, "move-keep"))
        return mremap(BASE + a * PAGE, b * PAGE, b * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | 4 /* DONTUNMAP */,
                      ELSEWHERE + c * PAGE) == MAP_FAILED;
    if (!strcmp(verb, "move-back"))
        return mremap(ELSEWHERE + c * PAGE, b * PAGE, b * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                      BASE + a * PAGE) == MAP_FAILED;
    if (!strcmp(verb, "lock"))
        return mlock(BASE + a * PAGE, b * PAGE);
    if (!strcmp(verb, "lock-onfault"))
        return mlock2(BASE + a * PAGE, b * PAGE, 1);
    if (!strcmp(verb, "set"))
        return (memset(BASE + a * PAGE, (int)b, PAGE), 0);
    if (!strcmp(verb, "get"))
        return (unsigned char)BASE[a * PAGE + b];
    if (!strcmp(verb, "exec"))
        return execl("/bin/true", "true", (char *)NULL);
    return -1;
}

static int make_userfaultfd(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                         UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
                                         UFFD_FEATURE_MISSING_SHMEM};
    return fd < 0 || ioctl(fd, UFFDIO_API, &api) ? -1 : fd;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    uint64_t pages = strtoull(argv[2], NULL, 0);
    int sharing = strcmp(argv[3], "shared") ? MAP_PRIVATE : MAP_SHARED;
    int flags = MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE | sharing;
    if (mmap(BASE, pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
        return 3;
    if (strcmp(argv[1], "destination")) {
        int sparse = !strcmp(argv[1], "sparse");
        for (uint64_t i = 0; i < pages; i++) {
            if (sparse && i == 100)
                i = pages - 100;
            for (uint64_t j = 0; j < WORDS && i % 11 != 5; j++)
                ((uint64_t *)(BASE + i * PAGE))[j] = word_of(i, j);
        }
        puts("ready");
    } else {
        int fd = make_userfaultfd();
        if (fd < 0)
            return 4;
        printf("%d\n", fd);
    }
    fflush(stdout);
    char line[256], verb[32];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long long a = 0, b = 0, c = 0;
        if (sscanf(line, "%31s %llu %llu %llu", verb, &a, &b, &c) < 1)
            return 5;
        if (!strcmp(verb, "close"))
            printf("%d\n", close((int)a));
        else
            printf("%ld\n", run(verb, a, b, c));
        fflush(stdout);
    }
    return 0;
}
