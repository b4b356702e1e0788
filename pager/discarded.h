/*
 * Pages that were pushed while the source ran and have changed since: they are dropped in the process,
 * which has not begun to run, and then requested again, or zero.
 */
#ifndef LM_PAGER_DISCARDED_H
#define LM_PAGER_DISCARDED_H

#include "pager/paging.h"

/* Remember a DISCARD or GONE frame of a push. Returns 0 or -errno. */
int lm_discarded_note(struct lm_pager *pager, const struct lm_frame *frame);
/* The same for pages that could not be pushed again. */
int lm_discarded_add(struct lm_pager *pager, uint64_t address, uint64_t pages, uint32_t source_space);
/* After a push: each page is in one run at most, as it was named last. Returns 0 or -ENOMEM. */
int lm_discarded_order(struct lm_pager *pager);

/* cffi: begin */
/* A stretch of the process's memory to be dropped there: madvise(2) MADV_DONTNEED, MADV_REMOVE where shared.
 */
struct lm_drop {
    uint64_t start;
    uint64_t length;
    uint64_t shared;
};

/* Whether pushes since the last lm_pager_dropped have taken anything back. */
bool lm_pager_is_to_discard(struct lm_pager *pager);
/* What they have taken back and the process has: at most `capacity` stretches, to be dropped in the process
 * before anything else. Returns how many there are. */
size_t lm_pager_drops(struct lm_pager *pager, struct lm_drop *drops, size_t capacity);
/* Call it before the drops (false) and after them (true): the ranges that they are in are not watched meanwhile, so
 * that the process need not wait until the pager has read each of them. Nothing may run in the process, and no huge
 * pages may be put together, which would fill what is missing. 0 or -errno. */
int lm_pager_watch_drops(struct lm_pager *pager, bool watch);
/* They are dropped: from now on they are missing, or zero. The missing ones are fetched before all else, unless
 * everything is to be fetched `in_order`. */
int lm_pager_dropped(struct lm_pager *pager, bool in_order);
/* cffi: end */

#endif
