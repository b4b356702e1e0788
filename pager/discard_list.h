/* The list of what pushes have taken back: each page once, as it was named last, however often a peer names it. */
#ifndef LM_PAGER_DISCARD_LIST_H
#define LM_PAGER_DISCARD_LIST_H

#include "pager/paging.h"

/* Add a run, which is not empty. Returns 0 or -ENOMEM. */
int lm_discard_list_add(struct lm_discarded *list, const struct lm_discarded_run *run);

/* Bring the list into order, with each page in one run at most. What an honest peer names is in order already, or consists
 * of a few stretches that are. Each pass halves the stretches. Returns 0 or -ENOMEM. */
int lm_discard_list_order(struct lm_discarded *list);

#endif
