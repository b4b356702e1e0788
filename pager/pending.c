#include "pager/pending.h"

#include "pager/userfault.h"

#include <stdlib.h>

struct lm_pending *lm_pending_find(struct lm_pager *pager, const struct lm_space *space, uint64_t address) {
    for (size_t i = 0; i < pager->pending_count; i++)
        if (pager->pending[i].address == address && pager->pending[i].space == space)
            return &pager->pending[i];
    return NULL;
}

struct lm_pending *lm_pending_add(struct lm_pager *pager, struct lm_space *space, uint64_t address,
                                  uint64_t since_ns) {
    if (pager->pending_count == pager->pending_capacity) {
        size_t capacity = pager->pending_capacity ? 2 * pager->pending_capacity : 64;
        struct lm_pending *pending = realloc(pager->pending, capacity * sizeof *pending);
        if (!pending)
            return NULL;
        pager->pending = pending;
        pager->pending_capacity = capacity;
    }
    struct lm_pending *added = &pager->pending[pager->pending_count++];
    *added = (struct lm_pending){.space = space, .address = address, .since_ns = since_ns};
    return added;
}

bool lm_pending_within(const struct lm_pending *pending, const struct lm_space *space, uint64_t start,
                       uint64_t end) {
    return pending->space == space && pending->address >= start && pending->address < end;
}

void lm_pending_remove(struct lm_pager *pager, size_t at) {
    pager->pending[at] = pager->pending[--pager->pending_count];
}

void lm_pending_settle(struct lm_pager *pager, const struct lm_space *space, uint64_t start, uint64_t end) {
    if (!pager->pending_count)
        return;
    uint64_t now = lm_now_ns();
    for (size_t i = pager->pending_count; i-- > 0;)
        if (lm_pending_within(&pager->pending[i], space, start, end)) {
            lm_histogram_add(&pager->statistics->latency, now - pager->pending[i].since_ns);
            lm_count(&pager->statistics->faulted_pages, 1);
            lm_pending_remove(pager, i);
        }
}

void lm_pending_drop(struct lm_pager *pager, const struct lm_space *space, uint64_t start, uint64_t end) {
    for (size_t i = pager->pending_count; i-- > 0;)
        if (lm_pending_within(&pager->pending[i], space, start, end))
            lm_pending_remove(pager, i);
    lm_userfault_wake(space->userfault, start, end - start);
}
