/*
 * Reading the pages of a space, which either holds still or will be read again. Only its reader knows what a space is
 * made of: a process's memory, or an object reached by a descriptor.
 */
#ifndef LM_PAGES_READERS_H
#define LM_PAGES_READERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct lm_page_reader;

/* Everything in bytes, addresses and lengths multiples of the page size. All return 0 or -errno. */
struct lm_page_reader_operations {
    /* Read `parts` stretches, each as long as its place in `local`. -ESRCH when there is nothing to read any more. */
    int (*read)(const struct lm_page_reader *reader, const struct iovec *local, const struct iovec *remote,
                int parts);
    /* Set `present` for those of `pages` pages, which are all false, that are there. */
    int (*present)(const struct lm_page_reader *reader, uint64_t address, uint32_t pages, bool *present);
    /* The first page at or after `address` that is there, `end` if there is none before it. */
    int (*next)(const struct lm_page_reader *reader, uint64_t address, uint64_t end, uint64_t *next);
};

struct lm_page_reader {
    const struct lm_page_reader_operations *operations;
    uint32_t space;
    int pid;            /* of a process */
    int process;        /* a pidfd, -1 for an object */
    int memory;         /* /proc/PID/mem, or the object */
    int pagemap;        /* /proc/PID/pagemap, -1 for an object */
    bool shares_offset; /* the object's open file is the process's own */
};

/* Open the memory of process `pid`. Returns 0 or -errno. */
int lm_page_reader_init_process(struct lm_page_reader *reader, uint32_t space, int pid);
/* Read what `fd` stands for, by offset. Past its end there are zeros. */
int lm_page_reader_init_object(struct lm_page_reader *reader, uint32_t space, int fd);
void lm_page_reader_deinit(struct lm_page_reader *reader);

/* Read `pages` pages at `address`. Returns 0 or -errno: -ESRCH when the process is gone. */
int lm_page_reader_read(const struct lm_page_reader *reader, uint64_t address, uint32_t pages, void *buffer);

/* Whether the result of a read says that the kernel lets nobody read what is there: a guard, or broken memory. */
bool lm_page_is_poison(int error);
/* Read those of the `pages` pages at `address` for which `wanted` is set, one by one; `poison` tells which of them nobody
 * can read. Returns 0 or what ends all reading. */
int lm_page_reader_read_each(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                             const bool *wanted, void *buffer, bool *poison);

/* Read those of the `pages` (at most LM_RUN_PAGES) pages at `address` for which `wanted` is set, each at its
 * own place in the buffer, in one call where the kernel lets us. */
int lm_page_reader_read_some(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                             const bool *wanted, void *buffer);

/* Read `pages` (at most LM_RUN_PAGES) pages that lie anywhere, one after the other into the buffer, in one
 * call where the kernel lets us. */
int lm_page_reader_read_scattered(const struct lm_page_reader *reader, const uint64_t *addresses,
                                  uint32_t pages, void *buffer);

/* Which of the `pages` (at most LM_RUN_PAGES) pages at `address` are there, in memory or in swap. The others
 * are as they were mapped: zero in anonymous memory, the file's in a file mapping. */
int lm_page_reader_present(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                           bool *present);

/* The first page at or after `address` that is there, `end` if there is none before it. */
int lm_page_reader_next(const struct lm_page_reader *reader, uint64_t address, uint64_t end, uint64_t *next);

bool lm_page_is_zero(const void *page);

#endif
