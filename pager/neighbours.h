/* The pages that come behind a fault's own page in one answer. Only the fault loop uses this. */
#ifndef LM_PAGER_NEIGHBOURS_H
#define LM_PAGER_NEIGHBOURS_H

#include "pager/paging.h"

/* Mark the MISSING pages from `page` on REQUESTED, at most up to `end`, to come with the answer to the request; lock
 * held. Returns how many. */
uint32_t lm_neighbours_take(struct lm_pager *pager, uint32_t id, const struct lm_range *range, uint64_t page,
                            uint64_t end);
/* The answer under way that brings the page, or 0. */
uint32_t lm_neighbours_answer(const struct lm_pager *pager, uint32_t source_space, uint64_t source);
/* The answer is over; its last frame ended at `end`. What did not come can be requested again. If a fault waits for
 * such a page, `*waited_for` is set. Takes the lock. Returns 0 or -errno. */
int lm_neighbours_end(struct lm_pager *pager, uint32_t id, uint64_t end, bool *waited_for);

#endif
