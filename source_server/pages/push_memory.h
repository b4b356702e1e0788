/*
 * What was pushed: a digest of 128 bits per page, so that a second push sends only what has changed since.
 *
 * The digests are keyed with random numbers, so that nobody can make content that collides. The memory is bounded;
 * pages beyond it are simply sent again.
 */
#ifndef LM_PAGES_PUSH_MEMORY_H
#define LM_PAGES_PUSH_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lm_push_entry {
    uint64_t page; /* number of the page in its space, plus one; 0 for an empty place */
    uint32_t space;
    uint32_t discarded; /* 1: it was pushed, and with what content is no longer known */
    uint64_t digest[2];
};

struct lm_push_memory {
    struct lm_push_entry *entries;
    size_t size; /* a power of two, or 0 */
    size_t used;
    uint64_t key[4];
};

int lm_push_memory_init(struct lm_push_memory *memory);
void lm_push_memory_deinit(struct lm_push_memory *memory);

/* Whether the page was pushed with exactly this content. */
bool lm_push_memory_same(const struct lm_push_memory *memory, uint32_t space, uint64_t address,
                         const void *page);
/* Whether it was pushed at all. */
bool lm_push_memory_knows(const struct lm_push_memory *memory, uint32_t space, uint64_t address);
/* The first page in [start, end) that was pushed, or `end`. */
uint64_t lm_push_memory_next(const struct lm_push_memory *memory, uint32_t space, uint64_t start,
                             uint64_t end);
/* Remember its content, if there is room. */
void lm_push_memory_keep(struct lm_push_memory *memory, uint32_t space, uint64_t address, const void *page);
/* Discard what is known of the content with which the pages in [start, end) were pushed. */
void lm_push_memory_discard(struct lm_push_memory *memory, uint32_t space, uint64_t start, uint64_t end);

#endif
