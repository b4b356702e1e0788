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
 * start before anything of the kind can happen in it. When a connection is lost the state is
 * LM_PAGER_STALLED, faults wait, nothing exits and nothing is discarded; connect goes on with two new
 * connections.
 *
 * From start on a second process, the keeper, shares the descriptor table, so that whatever becomes of this
 * process no userfaultfd closes before its memory is complete. Only finish lets go, and destroy when the
 * memory is no more.
 */
#ifndef LM_PAGER_PAGER_H
#define LM_PAGER_PAGER_H

#include "pager/statistics.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define LM_PAGER_STAGED 0
#define LM_PAGER_RUNNING 1
#define LM_PAGER_COMPLETE 2
#define LM_PAGER_STALLED 3
#define LM_PAGER_FAILED 4
#define LM_PAGER_FINISHED 5

#define LM_RANGE_ANONYMOUS 1
#define LM_RANGE_SHARED 2
#define LM_RANGE_WRITTEN 3

struct lm_pager;

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

/* What to fetch before all else, by source address. */
struct lm_hot_run {
    uint64_t start;
    uint64_t end;
    uint32_t source_space;
    uint32_t reserved;
};

/* A stretch of the process's memory to be dropped there: madvise(2) MADV_DONTNEED, MADV_REMOVE where shared.
 */
struct lm_drop {
    uint64_t start;
    uint64_t length;
    uint64_t shared;
};

/* `statistics` may be NULL, else it must outlive the pager. Returns NULL when there is no memory. */
struct lm_pager *lm_pager_create(struct lm_pager_statistics *statistics);

/* An address space, known by the number under which the source serves it. `userfaultfd` was made in the
 * process and its handshake is done (UFFD_FEATURE_EVENT_FORK, REMAP, REMOVE, UNMAP); the pager takes it over
 * and closes it. Returns 0 or -errno. */
int lm_pager_add_space(struct lm_pager *pager, uint32_t number, int userfaultfd, int pid);
/* An object that pushes write to through a duplicate of `fd`: `size` bytes. */
int lm_pager_add_object(struct lm_pager *pager, uint32_t number, int fd, uint64_t size);

/* Two connected sockets, which are duplicated; `session` is 16 bytes. Also after a loss. */
int lm_pager_connect(struct lm_pager *pager, int fault_fd, int bulk_fd, const uint8_t *session,
                     uint32_t attempt);

/* The whole list of a space's ranges, in the order of their addresses, instead of the one before. Ranges that
 * are paged on demand are registered here (again is harmless). What was placed stays placed where destination
 * and source address are as they were. Returns 0 or -errno, with the place of the range at fault in
 * `*failed`. */
int lm_pager_set_ranges(struct lm_pager *pager, uint32_t space, const struct lm_range_description *ranges,
                        size_t count, size_t *failed);

/* Begin to answer faults and events, and start the keeper. */
int lm_pager_start(struct lm_pager *pager);

/* Receive pushed pages up to END `id` into the process; not while prefetching. Returns 0 or -errno: -EPROTO
 * for a peer that breaks the rules (an address that is not in a range, for one), -EPIPE when it is gone. */
int lm_pager_receive_push(struct lm_pager *pager, uint32_t id);
/* Pages are pushed while the source runs, and the source follows what changes there: what it said to be empty
 * stays known over the next set_ranges. */
void lm_pager_follow(struct lm_pager *pager);
/* Whether pushes since the last lm_pager_dropped have told to discard anything. */
bool lm_pager_is_to_discard(struct lm_pager *pager);
/* What they have told to discard and the process has: at most `capacity`
 * stretches, to be dropped in the process before anything else. Returns how many there are. */
size_t lm_pager_drops(struct lm_pager *pager, struct lm_drop *drops, size_t capacity);
/* Before the drops (false) and after them (true): the ranges that they are in are not watched meanwhile, so
 * that the process need not wait at each until it has been heard of. Nothing may run in it, nor huge pages be
 * put together, which would fill what is missing. 0 or -errno. */
int lm_pager_watch_drops(struct lm_pager *pager, bool watch);
/* They are dropped: from now on they are missing, or zero; what is missing is fetched before all else, unless
 * everything is to be fetched `in_order`. */
int lm_pager_dropped(struct lm_pager *pager, bool in_order);
/* Write pages that came by another way: `length` bytes for source address `address`, both multiples of the
 * page size. */
int lm_pager_place(struct lm_pager *pager, uint32_t source_space, uint64_t address, const void *data,
                   size_t length);
/* Pages that were placed, and have been dropped in the process since, are to be fetched again. By source
 * address. */
int lm_pager_discard(struct lm_pager *pager, uint32_t source_space, uint64_t start, uint64_t end);

/* Begin to fetch everything. */
int lm_pager_prefetch_start(struct lm_pager *pager);
/* Runs to fetch first, in this order; instead of those given before. */
int lm_pager_prefetch_first(struct lm_pager *pager, const struct lm_hot_run *runs, size_t count);
/* Bytes per second to ask for in bulk, 0 for no limit. */
void lm_pager_limit(struct lm_pager *pager, uint64_t bytes_per_second);
/* How many pages a fault asks for at most, 1 to LM_FAULT_PAGES: the one and, when faults come one behind the
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
