#define _GNU_SOURCE
#include "pager/events.h"

#include "kernel/kernel.h"
#include "pager/pending.h"
#include "pager/record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The pages of [start, end) that never came are zeros from now on. Shared memory is left alone unless it is
 * unmapped: MADV_DONTNEED, the usual cause, does not change its content. */
static int discard(struct lm_pager *pager, struct lm_space *space, uint64_t start, uint64_t end,
                   bool unmapped) {
    for (size_t i = lm_space_find(space, start); i < space->count && space->ranges[i].start < end; i++) {
        struct lm_range *range = &space->ranges[i];
        if (!range->table || (range->kind == LM_RANGE_SHARED && !unmapped))
            continue;
        uint64_t low = range->start > start ? range->start : start,
                 high = range->end < end ? range->end : end;
        uint64_t before = range->table->wanted;
        int error = lm_page_table_set(range->table, lm_range_page(range, low), (high - low) / LM_PAGE_SIZE,
                                      LM_STATES_WANTED | LM_STATES(LM_PAGE_ZERO), LM_PAGE_DISCARDED);
        lm_count(&pager->statistics->discarded_pages, before - range->table->wanted);
        if (error)
            return error;
    }
    return 0;
}

static int on_unmap(struct lm_pager *pager, struct lm_space *space, uint64_t start, uint64_t end) {
    int error = discard(pager, space, start, end, true);
    if (!error)
        error = lm_space_cut(space, start, end, NULL);
    lm_pending_drop(pager, space, start, end);
    lm_count(&pager->statistics->unmaps, 1);
    return error;
}

static int on_remap(struct lm_pager *pager, struct lm_space *space, uint64_t from, uint64_t to,
                    uint64_t length) {
    struct lm_space moved = {.userfault = -1, .memory = -1, .pagemap = -1};
    lm_count(&pager->statistics->remaps, 1);
    int error = lm_space_cut(space, from, from + length, &moved);
    if (!error)
        error = on_unmap(pager, space, to, to + length);
    for (size_t i = 0; !error && i < moved.count; i++) {
        struct lm_range range = moved.ranges[i];
        range.start += to - from;
        range.end += to - from;
        error = lm_space_insert(space, &range);
        if (!error)
            moved.ranges[i].table = NULL;
    }
    lm_pending_drop(pager, space, from, from + length);
    lm_space_deinit(&moved);
    return error;
}

/* The child has a descriptor of its own, and misses everything that its parent misses. */
static int on_fork(struct lm_pager *pager, struct lm_space *parent, int userfault) {
    lm_count(&pager->statistics->forks, 1);
    struct lm_space *child = lm_pager_new_space(pager, LM_CHILD_SPACE + pager->children++, userfault, 0, -1);
    if (!child)
        return -ENOMEM;
    int error = lm_space_copy(parent, child);
    if (!error)
        pthread_cond_broadcast(&pager->work);
    return error;
}

int lm_events_apply(struct lm_pager *pager, struct lm_space *space, const struct uffd_msg *message) {
    switch (message->event) {
    case UFFD_EVENT_FORK:
        return on_fork(pager, space, (int)message->arg.fork.ufd);
    case UFFD_EVENT_REMAP:
        return on_remap(pager, space, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
    case UFFD_EVENT_UNMAP:
        return on_unmap(pager, space, message->arg.remove.start, message->arg.remove.end);
    case UFFD_EVENT_REMOVE:
        lm_count(&pager->statistics->removes, 1);
        int error = discard(pager, space, message->arg.remove.start, message->arg.remove.end, false);
        lm_pending_drop(pager, space, message->arg.remove.start, message->arg.remove.end);
        return error;
    default:
        return -EPROTO;
    }
}

int lm_events_read(struct lm_pager *pager, struct lm_space *space, uint64_t *faults, int *count) {
    const uint64_t place = lm_ledger_committed(pager->ledger)->applied;
    bool changes = false;
    *count = 0;
    int error = lm_ledger_read(pager->ledger->base, place, space->userfault);
    if (error <= 0)
        return error;
    const struct lm_ledger_slot *slot = lm_ledger_slot(pager->ledger->base, place);
    for (size_t i = 0; i < LM_MESSAGES && slot->messages[i].event; i++) {
        const struct uffd_msg *message = &slot->messages[i];
        if (message->event == UFFD_EVENT_PAGEFAULT) {
            faults[(*count)++] = message->arg.pagefault.address & ~(uint64_t)(LM_PAGE_SIZE - 1);
            continue;
        }
        error = lm_events_apply(pager, space, message);
        if (error < 0)
            break;
        changes = true;
    }
    if (changes && error >= 0)
        error = lm_record(pager, 1);
    if (error >= 0)
        return 0;
    lm_status_set(&pager->status, LM_PAGER_FAILED,
                  "a change of the process's mappings cannot be followed: %s", strerror(-error));
    return error;
}
