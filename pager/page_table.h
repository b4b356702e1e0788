/*
 * The state of every page, kept in chunks, so that an address range of terabytes that nobody ever touched costs next
 * to nothing.
 *
 * A table belongs to a stretch of the source's addresses and never moves; mappings of the destination refer
 * to parts of it. So a mapping can be split or moved without copying anything.
 */
#ifndef LM_PAGER_PAGE_TABLE_H
#define LM_PAGER_PAGE_TABLE_H

#include "pager/ledger.h"

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* A page is wanted as long as it is MISSING or REQUESTED. */
enum lm_page_state {
    LM_PAGE_MISSING = 0,   /* only the source has it */
    LM_PAGE_REQUESTED = 1, /* under way, or being placed */
    LM_PAGE_PLACED =
        2, /* the process has it: it is never fetched again; a fault here means that the process gave the page back */
    LM_PAGE_ZERO = 3,      /* the source has none, or zeros: answered locally */
    LM_PAGE_DISCARDED = 4, /* thrown away by the process before it came: zeros from now on */
    LM_PAGE_STATES
};

/* cffi: end */

#define LM_STATES(state) (1u << (state))
#define LM_STATES_WANTED (LM_STATES(LM_PAGE_MISSING) | LM_STATES(LM_PAGE_REQUESTED))

/* cffi: begin */
enum { LM_CHUNK_PAGES = 512 };

struct lm_page_table {
    uint32_t references;
    uint64_t pages;
    uint64_t wanted;
    uint64_t *total_wanted;   /* of all tables together */
    struct lm_ledger *ledger; /* where the states are; NULL: on the heap */
    uint64_t place;           /* there, of the number of pages, which the chunks follow */
    uint64_t
        *chunks; /* below LM_PAGE_STATES: the state of all its pages; else the place of a byte per page */
};

/* All pages MISSING, one reference. Returns NULL when there is no memory. */
struct lm_page_table *lm_page_table_create(struct lm_ledger *ledger, uint64_t pages, uint64_t *total_wanted);
void lm_page_table_hold(struct lm_page_table *table);
void lm_page_table_release(struct lm_page_table *table);

enum lm_page_state lm_page_table_get(const struct lm_page_table *table, uint64_t page);

/* Give `count` pages from `first` the state `to`, as far as their state is one of the set `from` (LM_STATES).
 * Returns 0 or -ENOMEM. */
int lm_page_table_set(struct lm_page_table *table, uint64_t first, uint64_t count, uint32_t from,
                      enum lm_page_state to);

/* Take over those states of another table that are in `set`, for `count` pages from `from_first` on, to
 * `first` on. */
int lm_page_table_take(struct lm_page_table *table, uint64_t first, const struct lm_page_table *from,
                       uint64_t from_first, uint64_t count, uint32_t set);

/* The first page in [first, end) whose state is one of `set`, or `end`; `*count` is how many such pages
 * follow one another there, looking no further than `most`. */
uint64_t lm_page_table_find(const struct lm_page_table *table, uint64_t first, uint64_t end, uint32_t set,
                            uint64_t most, uint64_t *count);
/* cffi: end */

/* The table at a place of a ledger that somebody else has written, to be read only and not released; `total` takes what is
 * of no use. */
struct lm_page_table lm_page_table_view(struct lm_ledger *ledger, uint64_t place, uint64_t *total);

#endif
