/*
 * What to fetch next: around the recent faults, newest first and further outward each time; then hot pages; then
 * everything in the order of addresses.
 */
#ifndef LM_PAGER_PREFETCH_H
#define LM_PAGER_PREFETCH_H

#include "pager/paging.h"

/* A stretch to request. */
struct lm_run {
    uint32_t source_space;
    uint32_t flags; /* LM_REQUEST_... */
    uint64_t address;
    uint32_t pages, reach;
};

/* All but the last with the lock held. */

/* The page of a fault there has been requested, with what lies in [low, high). */
void lm_prefetch_note(struct lm_pager *pager, struct lm_space *space, uint64_t low, uint64_t high);
/* How many pages to request with a fault at the address: few, on a slow link one, unless faults follow one another in
 * order; then more each time, at most `most`. Tell the stream where that ended. */
struct lm_stream *lm_prefetch_stream(struct lm_pager *pager, const struct lm_space *space, uint64_t address,
                                     uint32_t most);
/* The next run to request, marked REQUESTED. Returns false when there is none. */
bool lm_prefetch_next(struct lm_pager *pager, struct lm_run *run);
/* The next stretch of which to request what exists there. Returns false when all has been requested. */
bool lm_prefetch_map(struct lm_pager *pager, struct lm_run *run);
/* Runs to fetch first, instead of those given before; takes them. */
void lm_prefetch_hot(struct lm_pager *pager, struct lm_hot_run *hot, size_t count);

/* cffi: begin */
/* Runs to fetch first, in this order; instead of those given before. Takes the lock. */
int lm_pager_prefetch_first(struct lm_pager *pager, const struct lm_hot_run *runs, size_t count);
/* cffi: end */

#endif
