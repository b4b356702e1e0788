/*
 * The pager: fills the memory of a process that already runs, or is about to.
 *
 * This is the order of calls. All of them may come from any thread, and none needs the interpreter's lock:
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
 * page sources, also if nobody has noticed the loss yet. What is missing is in the page tables: pages that are REQUESTED
 * and have not come are MISSING again, faults that wait are requested at once, and nothing that is PLACED, ZERO or
 * DISCARDED is ever requested. So nobody has to tell the other side what was lost, whoever makes the new sources: the
 * same worker (restorer/finish.py), or one that has taken over the tables and the userfaultfds of another.
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

/* Add an address space, known by the number under which the source serves it. `userfaultfd` was made in the
 * process and its handshake is done (UFFD_FEATURE_EVENT_FORK, REMAP, REMOVE, UNMAP); the pager takes it over
 * and closes it. Returns 0 or -errno. */
int lm_pager_add_space(struct lm_pager *pager, uint32_t number, int userfaultfd, int pid);
/* Add an object that pushes write to through a duplicate of `fd`: `size` bytes. */
int lm_pager_add_object(struct lm_pager *pager, uint32_t number, int fd, uint64_t size);

/* Set where pages come from: for faults, and for bulk and pushes. The pager takes both, even if the call fails. After a
 * loss it goes on with the new ones. Returns 0 or -errno. */
int lm_pager_connect(struct lm_pager *pager, struct lm_page_source *fault, struct lm_page_source *bulk);

/* Begin to answer faults and events, and start the keeper. */
int lm_pager_start(struct lm_pager *pager);

/* Begin to fetch everything. */
int lm_pager_prefetch_start(struct lm_pager *pager);
/* Bytes per second to request in bulk, 0 for no limit. */
void lm_pager_limit(struct lm_pager *pager, uint64_t bytes_per_second);
/* How many pages a fault requests at most, 1 to LM_FAULT_PAGES: its own and, when faults follow one another in order,
 * those after it. At first it is 16. */
void lm_pager_fault_pages(struct lm_pager *pager, uint32_t pages);

/* Find out which processes have ended, since nobody needs their pages any more. Bulk would find out at the next page
 * that it places, which may take a while, or never happen without a connection. */
void lm_pager_notice_ends(struct lm_pager *pager);

/* LM_PAGER_..., and why it is stalled or failed. */
struct lm_status *lm_pager_status(struct lm_pager *pager);
/* The keeper's process id, 0 before start. */
int lm_pager_keeper(struct lm_pager *pager);

/* Every page has come: end the threads, close every userfaultfd and every connection. -EBUSY when pages are missing. The
 * keeper still has the note, for whoever has to tell the source. */
int lm_pager_let_go(struct lm_pager *pager);
/* The same, and end the keeper. */
int lm_pager_finish(struct lm_pager *pager);
/* End the threads and free the memory. While pages are missing in a living process, its userfaultfd stays open and the
 * keeper stays, so that the process waits instead of reading zeros. */
void lm_pager_destroy(struct lm_pager *pager);
/* cffi: end */

#endif
