#include "pager/discarded.h"

#include "pager/discard_list.h"
#include "pager/prefetch.h"
#include "pager/userfault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int lm_discarded_note(struct lm_pager *pager, const struct lm_frame *frame) {
    struct lm_discarded_run run = {.start = frame->address,
                                   .end = frame->address + (uint64_t)frame->pages * LM_PAGE_SIZE,
                                   .source_space = frame->space,
                                   .gone = frame->kind == LM_FRAME_GONE};
    return frame->space >= LM_FIRST_OBJECT ? -EPROTO : lm_discard_list_add(&pager->discarded, &run);
}

int lm_discarded_add(struct lm_pager *pager, uint64_t address, uint64_t pages, uint32_t source_space) {
    struct lm_discarded_run run = {
        .start = address, .end = address + pages * LM_PAGE_SIZE, .source_space = source_space};
    return lm_discard_list_add(&pager->discarded, &run);
}

int lm_discarded_order(struct lm_pager *pager) {
    return lm_discard_list_order(&pager->discarded);
}

/* Call `visit` for each part of a range that the runs of the list fall into. */
static int each_part(struct lm_pager *pager, void *out,
                     int (*visit)(struct lm_space *space, struct lm_range *range, uint64_t first,
                                  uint64_t pages, const struct lm_discarded_run *run, void *out)) {
    for (size_t i = 0; i < pager->discarded.count; i++) {
        const struct lm_discarded_run *run = &pager->discarded.runs[i];
        for (size_t j = 0; j < pager->space_count; j++)
            for (uint64_t at = run->start; at < run->end;) {
                struct lm_range *range =
                    lm_space_by_source(pager->spaces[j], run->source_space, at, run->end);
                if (!range)
                    break;
                uint64_t low = at > range->source ? at - range->source : 0,
                         length = range->end - range->start;
                uint64_t high = run->end - range->source < length ? run->end - range->source : length;
                int error = range->table ? visit(pager->spaces[j], range, range->first + low / LM_PAGE_SIZE,
                                                 (high - low) / LM_PAGE_SIZE, run, out)
                                         : 0;
                if (error)
                    return error;
                at = range->source + high;
            }
    }
    return 0;
}

struct drops {
    struct lm_drop *drops;
    size_t capacity, count;
};

static int list_placed(struct lm_space *space, struct lm_range *range, uint64_t first, uint64_t pages,
                       const struct lm_discarded_run *run, void *out) {
    struct drops *drops = out;
    for (uint64_t page = first, end = first + pages, count; page < end; page += count) {
        page = lm_page_table_find(range->table, page, end, LM_STATES(LM_PAGE_PLACED), pages, &count);
        if (!count)
            break;
        if (drops->count < drops->capacity)
            drops->drops[drops->count] =
                (struct lm_drop){.start = range->start + (page - range->first) * LM_PAGE_SIZE,
                                 .length = count * LM_PAGE_SIZE,
                                 .shared = range->kind == LM_RANGE_SHARED};
        drops->count++;
    }
    return 0;
}

bool lm_pager_is_to_discard(struct lm_pager *pager) {
    lm_pager_lock_patient(pager);
    bool any = pager->discarded.count > 0;
    lm_pager_unlock(pager);
    return any;
}

size_t lm_pager_drops(struct lm_pager *pager, struct lm_drop *drops, size_t capacity) {
    struct drops found = {.drops = drops, .capacity = capacity};
    lm_pager_lock_patient(pager);
    each_part(pager, &found, list_placed);
    lm_pager_unlock(pager);
    return found.count;
}

struct watching {
    bool watch;
    const struct lm_range *last;
};

static int watch_range(struct lm_space *space, struct lm_range *range, uint64_t first, uint64_t pages,
                       const struct lm_discarded_run *run, void *out) {
    struct watching *watching = out;
    if (range == watching->last)
        return 0;
    watching->last = range;
    return watching->watch ? lm_userfault_register(space->userfault, range->start, range->end)
                           : lm_userfault_unregister(space->userfault, range->start, range->end);
}

int lm_pager_watch_drops(struct lm_pager *pager, bool watch) {
    struct watching watching = {.watch = watch};
    lm_pager_lock_patient(pager);
    int error = each_part(pager, &watching, watch_range);
    lm_pager_unlock(pager);
    return error;
}

static int settle(struct lm_space *space, struct lm_range *range, uint64_t first, uint64_t pages,
                  const struct lm_discarded_run *run, void *out) {
    struct lm_pager *pager = out;
    for (uint64_t page = first, end = first + pages, count; page < end; page += count) {
        page = lm_page_table_find(range->table, page, end, LM_STATES(LM_PAGE_PLACED), pages, &count);
        pager->statistics->dropped_pages += count;
        pager->statistics->total_pages -= count;
        if (!count)
            break;
    }
    return lm_page_table_set(range->table, first, pages, ~0u, run->gone ? LM_PAGE_ZERO : LM_PAGE_MISSING);
}

int lm_pager_dropped(struct lm_pager *pager, bool in_order) {
    struct lm_discarded *list = &pager->discarded;
    struct lm_hot_run *hot = calloc(list->count ? list->count : 1, sizeof *hot);
    size_t count = 0;
    if (!hot)
        return -ENOMEM;
    lm_pager_lock_patient(pager);
    int error = each_part(pager, pager, settle);
    /* What was written to last is what will be touched first. */
    for (size_t i = 0; i < list->count; i++)
        if (!list->runs[i].gone)
            hot[count++] = (struct lm_hot_run){.start = list->runs[i].start,
                                               .end = list->runs[i].end,
                                               .source_space = list->runs[i].source_space};
    if (in_order)
        count = 0;
    lm_prefetch_hot(pager, hot, count);
    list->count = 0;
    lm_pager_unlock(pager);
    return error;
}
