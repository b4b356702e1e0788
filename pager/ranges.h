/* Which addresses of a space hold which pages of the source. Python sets them, and may set them anew. */
#ifndef LM_PAGER_RANGES_H
#define LM_PAGER_RANGES_H

#include "pager/paging.h"

/* cffi: begin */
/* Destination addresses [start, end) hold the pages from `source` on of the source's space. ANONYMOUS and
 * SHARED (shared anonymous memory that is mapped once) are paged on demand; WRITTEN is only written to by
 * pushes. */
struct lm_range_description {
    uint64_t start;
    uint64_t end;
    uint64_t source;
    uint32_t source_space;
    uint32_t kind;
};

/* Set the whole list of a space's ranges, in the order of their addresses, instead of the one before. Ranges that
 * are paged on demand are registered here (doing so again is harmless). Placed pages stay placed where destination
 * and source address have not changed. Returns 0 or -errno, with the place of the range at fault in `*failed`. */
int lm_pager_set_ranges(struct lm_pager *pager, uint32_t space, const struct lm_range_description *ranges,
                        size_t count, size_t *failed);
/* Pages are pushed while the source runs, and the source follows what changes there: what it said to be empty stays
 * known after the next set_ranges. */
void lm_pager_follow(struct lm_pager *pager);
/* Fetch pages again that were placed and have been dropped in the process since. By source address. */
int lm_pager_discard(struct lm_pager *pager, uint32_t source_space, uint64_t start, uint64_t end);
/* cffi: end */

/* REQUESTED pages of all spaces are MISSING again. Lock held. */
int lm_pager_discard_requests(struct lm_pager *pager);

#endif
