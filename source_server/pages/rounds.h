/*
 * Rounds: memory that is copied while the process runs, and corrected when it stands still.
 *
 *     create -> watch -> [collect, where bits are cleared by hand] -> round -> watch -> ... -> last ->
 * destroy
 *
 * A page is armed before it is read, so that the next round learns of a write after the reading. A page that was
 * written to in each of the last rounds waits for the end. The last call is exact: every page that was sent and has
 * changed since is sent again, or the destination is told to discard it.
 */
#ifndef LM_PAGES_ROUNDS_H
#define LM_PAGES_ROUNDS_H

#include "kernel/memory/dirty.h"
#include "source_server/pages/round_pages.h"

/* cffi: begin */
struct lm_rounds;

/* Memory of which pages are sent: [start, end) in bytes; `shared` anonymous memory, or private. The kernel follows
 * [follow_start, follow_end), which reaches over the free addresses around it: the process maps memory meanwhile, and
 * a border inside of a mapping would cut it in two, so that mremap(2) of it fails. Neighbours have the same. */
struct lm_round_range {
    uint64_t start;
    uint64_t end;
    uint64_t follow_start;
    uint64_t follow_end;
    uint32_t shared;
    uint32_t followed; /* set by lm_rounds_watch */
};

/* Rounds over the memory of `space`, for a client of a store that has it. They take the tracker's descriptors over.
 * NULL when there is no memory. */
struct lm_rounds *lm_rounds_create(struct lm_page_client *client, uint32_t space,
                                   const struct lm_dirty_tracker *tracker);
/* Ends the tracking. */
void lm_rounds_destroy(struct lm_rounds *rounds);

/* Set the ranges from now on. A part that cannot be followed, since it has gone, is left out. 0 or -errno: -ESRCH when
 * the process has gone, or runs another program. */
int lm_rounds_watch(struct lm_rounds *rounds, const struct lm_round_range *ranges, size_t count);

/* LM_DIRTY_SOFT: note what was written to, and arm everything; the process stands still. */
int lm_rounds_collect(struct lm_rounds *rounds);

/* Round `number` (from 1): send what was written to since the last one, without END, as push `id`, until
 * `deadline_ns` (CLOCK_MONOTONIC). When called again with the same number, it goes on where it was cut. 0 or
 * -errno: see lm_page_client_push. */
int lm_rounds_round(struct lm_rounds *rounds, uint32_t id, uint32_t number, uint64_t deadline_ns,
                    struct lm_round_result *result);

/* LM_DIRTY_USERFAULTFD: arm everything, and send nothing: what is written to from now on is hot. */
int lm_rounds_arm(struct lm_rounds *rounds);

/* How many pages a round would send now. */
int lm_rounds_dirty(struct lm_rounds *rounds, uint64_t *pages);

/* The process stands still: LM_LAST_PUSH sends what has changed again, LM_LAST_DISCARD tells the destination to
 * discard it; with LM_LAST_VOID nothing that was sent is trusted. Without END, as push `id`. */
int lm_rounds_last(struct lm_rounds *rounds, uint32_t id, uint32_t flags, struct lm_round_result *result);

/* Runs that were written to last, at most `capacity`. */
int lm_rounds_hot(struct lm_rounds *rounds, struct lm_page_run *runs, size_t capacity, size_t *count);
/* cffi: end */

#endif
