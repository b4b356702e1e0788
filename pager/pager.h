/*
 * The pager: fills the memory of a process that already runs, or is about to.
 *
 * The order of calls, all of which may come from any thread and none of which needs the interpreter's lock:
 *
 *     create -> add_space, add_object -> connect -> set_ranges -> start       faults and events are answered
 * from here on
 *            -> receive_push, place ... -> set_ranges again (final)           while the process is being
 * restored
 *            -> prefetch_start -> wait until LM_PAGER_COMPLETE -> finish -> destroy
 *
 * A process with registered ranges sleeps in fork, mremap, munmap and madvise until its event has been read:
 * start before anything of the kind can happen in it. When a page source is lost the state is
 * LM_PAGER_STALLED, faults wait, nothing exits and nothing is discarded; connect goes on with two new
 * page sources.
 *
 * From start on a second process, the keeper, shares the descriptor table, so that whatever becomes of this
 * process no userfaultfd closes before its memory is complete. Only finish lets go, and destroy when the
 * memory is no more.
 */
#ifndef LM_PAGER_PAGER_H
#define LM_PAGER_PAGER_H

#include "pager/paging.h"

/* cffi: begin */
struct lm_pager;

/* `statistics` may be NULL, else it must outlive the pager. Returns NULL when there is no memory. */
struct lm_pager *lm_pager_create(struct lm_pager_statistics *statistics);

/* An address space, known by the number under which the source serves it. `userfaultfd` was made in the
 * process and its handshake is done (UFFD_FEATURE_EVENT_FORK, REMAP, REMOVE, UNMAP); the pager takes it over
 * and closes it. Returns 0 or -errno. */
int lm_pager_add_space(struct lm_pager *pager, uint32_t number, int userfaultfd, int pid);
/* An object that pushes write to through a duplicate of `fd`: `size` bytes. */
int lm_pager_add_object(struct lm_pager *pager, uint32_t number, int fd, uint64_t size);

/* Where pages come from: for faults, and for bulk and pushes. The pager takes both, whatever becomes of it. Also after a
 * loss, when it goes on with them. Returns 0 or -errno. */
int lm_pager_connect(struct lm_pager *pager, struct lm_page_source *fault, struct lm_page_source *bulk);

/* Begin to answer faults and events, and start the keeper. */
int lm_pager_start(struct lm_pager *pager);

/* Begin to fetch everything. */
int lm_pager_prefetch_start(struct lm_pager *pager);
/* Bytes per second to request in bulk, 0 for no limit. */
void lm_pager_limit(struct lm_pager *pager, uint64_t bytes_per_second);
/* How many pages a fault requests at most, 1 to LM_FAULT_PAGES: the one and, when faults come one behind the
 * other, those after it. 16 at first. */
void lm_pager_fault_pages(struct lm_pager *pager, uint32_t pages);

/* See which processes have ended, whose pages nobody needs any more: bulk would find out at the next page it
 * places, which it may be a while from, or have no connection for. */
void lm_pager_notice_ends(struct lm_pager *pager);

/* LM_PAGER_..., and why it is stalled or failed. */
struct lm_status *lm_pager_status(struct lm_pager *pager);
/* The keeper's process id, 0 before start. */
int lm_pager_keeper(struct lm_pager *pager);

/* Every page is in: end the threads, close every userfaultfd and every connection, end the keeper. -EBUSY
 * when pages are missing. */
int lm_pager_finish(struct lm_pager *pager);
/* End the threads and free the memory. As long as pages are missing in a living process its userfaultfd stays
 * open and the keeper stays, so that it waits instead of reading zeros. */
void lm_pager_destroy(struct lm_pager *pager);
/* cffi: end */

#endif
