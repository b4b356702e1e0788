/* The bulk stream requests runs, a few at a time, and places what comes. Pushes come without a request. */
#ifndef LM_PAGER_BULK_H
#define LM_PAGER_BULK_H

#include "pager/paging.h"

/* The thread. */
void *lm_bulk_main(void *pager);

/* cffi: begin */
/* Receive pushed pages up to END `id` into the process; not while prefetching. Returns 0 or -errno: -EPROTO
 * for a peer that breaks the rules (for example by an address that is not in a range), -EPIPE when it is gone. */
int lm_pager_receive_push(struct lm_pager *pager, uint32_t id);
/* cffi: end */

#endif
