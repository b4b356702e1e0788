/*
 * What the rounds know of each page that they have met: one byte each, kept in chunks, so that memory that
 * nobody ever wrote to costs nothing.
 */
#ifndef LM_PAGES_PAGE_HISTORY_H
#define LM_PAGES_PAGE_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LM_HISTORY_PAGES = 512,
    LM_PAGE_SENT = 0x80,    /* the destination has a copy of it */
    LM_PAGE_PENDING = 0x40, /* written to since, and not sent again yet */
    LM_PAGE_STREAK = 0x30,  /* in so many rounds behind one another it was written to: 1 to 3, and more */
    LM_PAGE_STREAK_ONE = 0x10,
    LM_PAGE_ROUND = 0x0f /* the last of them, modulo 16 */
};

struct lm_history_chunk {
    uint64_t number; /* address / (LM_HISTORY_PAGES * page size) */
    uint32_t pending;
    uint8_t pages[LM_HISTORY_PAGES];
};

struct lm_page_history {
    struct lm_history_chunk **chunks; /* a hash table */
    size_t size;                      /* a power of two, or 0 */
    size_t used;
};

void lm_page_history_deinit(struct lm_page_history *history);

/* The chunk that holds the page at `address`; NULL when there is none, with `make`: when there is no memory.
 */
struct lm_history_chunk *lm_page_history_chunk(struct lm_page_history *history, uint64_t address, bool make);

/* Note that a page was written to in a round. Returns how many rounds behind one another that is, at most 3.
 */
unsigned lm_page_history_written(uint8_t *page, unsigned round);

void lm_page_history_set_pending(struct lm_history_chunk *chunk, uint8_t *page, bool pending);

#endif
