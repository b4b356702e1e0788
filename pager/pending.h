/* Who waits for which page. All of it needs the pager's lock. */
#ifndef LM_PAGER_PENDING_H
#define LM_PAGER_PENDING_H

#include "pager/paging.h"

struct lm_pending *lm_pending_find(struct lm_pager *pager, const struct lm_space *space, uint64_t address);
struct lm_pending *lm_pending_add(struct lm_pager *pager, struct lm_space *space, uint64_t address,
                                  uint64_t since_ns);
/* Whether one waits within [start, end) of a space. */
bool lm_pending_within(const struct lm_pending *pending, const struct lm_space *space, uint64_t start,
                       uint64_t end);
/* The one at this place does not wait any more; the last one takes its place. */
void lm_pending_remove(struct lm_pager *pager, size_t at);
/* The pages of [start, end) are placed: nobody waits there any more. */
void lm_pending_settle(struct lm_pager *pager, const struct lm_space *space, uint64_t start, uint64_t end);
/* They have moved or gone: wake whoever waits; it will fault again at the right place. */
void lm_pending_drop(struct lm_pager *pager, const struct lm_space *space, uint64_t start, uint64_t end);

#endif
