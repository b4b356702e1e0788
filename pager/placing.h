/*
 * Placing pages. Every address that comes from the peer is looked up in the ranges first, so that a page can land only
 * where it was described, and only where it is still wanted.
 */
#ifndef LM_PAGER_PLACING_H
#define LM_PAGER_PLACING_H

#include "pager/paging.h"

/* Why pages are placed. */
enum lm_purpose { LM_FOR_FAULT, LM_FOR_BULK, LM_FOR_PUSH };

/* Put the next pages of a frame where they belong (`data` NULL for zero and absent ones), under the lock: a few, or
 * all when there is no data. `*placed` pages of it are done, at first 0. Returns 0 or -errno: -EAGAIN when an event has to be read first (then call again), -EPROTO for a push to where nothing
 * was described. */
int lm_place_some(struct lm_pager *pager, enum lm_purpose purpose, const struct lm_frame *frame,
                  const void *data, uint32_t *placed);
/* Place the whole frame; whenever an event has to be read first, let the fault loop do it. Returns -ECANCELED when the
 * pager stops meanwhile. */
int lm_place_frame(struct lm_pager *pager, enum lm_purpose purpose, const struct lm_frame *frame,
                   const void *data);
/* Answer with a zero page at a destination address. Lock held. Returns 0 or -EAGAIN. */
int lm_place_zero(struct lm_pager *pager, struct lm_space *space, uint64_t address);

/* cffi: begin */
/* Write pages that came by another way: `length` bytes for source address `address`, both multiples of the
 * page size. */
int lm_pager_place(struct lm_pager *pager, uint32_t source_space, uint64_t address, const void *data,
                   size_t length);
/* The source is gone for good: whoever touches a page that is missing gets SIGBUS, and nothing is missing any more. Returns 0
 * or -errno; -EINVAL before Linux 6.6, which cannot. */
int lm_pager_poison(struct lm_pager *pager);
/* cffi: end */

#endif
