/* The messages of a userfaultfd: faults are handed on, and changes of the address space are followed. */
#ifndef LM_PAGER_EVENTS_H
#define LM_PAGER_EVENTS_H

#include "pager/paging.h"

/* Read all messages; lock held. `faults` has room for LM_MESSAGES addresses of pages. Returns 0 or -errno. */
int lm_events_read(struct lm_pager *pager, struct lm_space *space, uint64_t *faults, int *count);
/* Do what one message says that is no fault; lock held. Returns 0 or -errno. */
int lm_events_apply(struct lm_pager *pager, struct lm_space *space, const struct uffd_msg *message);

#endif
