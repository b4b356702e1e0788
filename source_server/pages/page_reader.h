/*
 * Reading pages of something that holds still: a frozen process's memory, or an object reached by a
 * descriptor.
 */
#ifndef LM_SOURCE_PAGE_READER_H
#define LM_SOURCE_PAGE_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lm_page_reader {
    uint32_t space;
    int pid;     /* 0 for an object */
    int memory;  /* /proc/PID/mem, or the object */
    int pagemap; /* /proc/PID/pagemap, -1 for an object */
};

/* Open the memory of process `pid`. Returns 0 or -errno. */
int lm_page_reader_init_process(struct lm_page_reader *reader, uint32_t space, int pid);
/* Read from a duplicate of `fd`. */
int lm_page_reader_init_object(struct lm_page_reader *reader, uint32_t space, int fd);
void lm_page_reader_deinit(struct lm_page_reader *reader);

/* Read `pages` pages at `address`. Returns 0 or -errno: -ESRCH when the process is gone. */
int lm_page_reader_read(const struct lm_page_reader *reader, uint64_t address, uint32_t pages, void *buffer);

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
