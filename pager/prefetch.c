#include "pager/prefetch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    AROUND_FIRST = 128,
    AROUND_MOST = 512,
    HOT_AHEAD = 512,
    COMPANY_US = 100,
    STREAM_GAP = 8 * LM_PAGE_SIZE,
    MAP_LEAST = 256,
    MAP_MOST = 65536
};

void lm_prefetch_note(struct lm_pager *pager, struct lm_space *space, uint64_t low, uint64_t high) {
    struct lm_prefetch *prefetch = &pager->prefetch;
    /* A fault next to what has been requested already means that the process is walking: the old entry grows.
     */
    for (unsigned i = 0; i < LM_RECENT_FAULTS; i++) {
        struct lm_recent *recent = &prefetch->recent[i];
        if (recent->space == space && low >= recent->low && low <= recent->high)
            return;
    }
    size_t place = lm_space_find(space, low);
    if (place == space->count)
        return;
    prefetch->newest = (prefetch->newest + 1) % LM_RECENT_FAULTS;
    prefetch->recent[prefetch->newest] = (struct lm_recent){.space = space,
                                                            .low = low,
                                                            .high = high,
                                                            .start = space->ranges[place].start,
                                                            .end = space->ranges[place].end,
                                                            .pages = AROUND_FIRST};
}

/* As many pages as the link takes in a time so short that no other fault suffers, by the rate of bulk at
 * present. Where that is high, and so as high as the processors allow, the pages are worth more in a fault's
 * answer than in bulk's: the fault costs as much without them. */
static uint32_t company(const struct lm_pager *pager, uint32_t most) {
    uint64_t rate = __atomic_load_n(&pager->statistics->bulk_rate, __ATOMIC_RELAXED);
    uint64_t pages = rate * COMPANY_US / 1000000 / LM_PAGE_SIZE;
    return pages < 1 ? 1 : pages < most ? (uint32_t)pages : most;
}

struct lm_stream *lm_prefetch_stream(struct lm_pager *pager, const struct lm_space *space, uint64_t address,
                                     uint32_t most) {
    struct lm_prefetch *prefetch = &pager->prefetch;
    for (unsigned i = 0; i < LM_STREAMS; i++) {
        struct lm_stream *stream = &prefetch->streams[i];
        if (stream->space == space && address >= stream->next && address - stream->next <= STREAM_GAP) {
            stream->window = 2 * stream->window < most ? 2 * stream->window : most;
            return stream;
        }
    }
    prefetch->newest_stream = (prefetch->newest_stream + 1) % LM_STREAMS;
    struct lm_stream *stream = &prefetch->streams[prefetch->newest_stream];
    *stream = (struct lm_stream){.space = space, .window = company(pager, most)};
    return stream;
}

/* The first MISSING stretch of [start, end) in the space. */
static bool take(struct lm_pager *pager, struct lm_space *space, uint64_t start, uint64_t end, uint64_t most,
                 struct lm_run *run, uint64_t *after) {
    for (size_t i = lm_space_find(space, start); i < space->count && space->ranges[i].start < end; i++) {
        struct lm_range *range = &space->ranges[i];
        if (!range->table)
            continue;
        uint64_t low = range->start > start ? range->start : start,
                 high = range->end < end ? range->end : end;
        uint64_t last = lm_range_page(range, high - LM_PAGE_SIZE) + 1, count;
        uint64_t page = lm_page_table_find(range->table, lm_range_page(range, low), last,
                                           LM_STATES(LM_PAGE_MISSING), most, &count);
        if (!count || lm_page_table_set(range->table, page, count, ~0u, LM_PAGE_REQUESTED))
            continue;
        uint64_t offset = (page - range->first) * LM_PAGE_SIZE;
        uint64_t reach = (range->end - range->start - offset) / LM_PAGE_SIZE - count;
        *run = (struct lm_run){.source_space = range->source_space,
                               .flags = range->kind == LM_RANGE_SHARED ? LM_REQUEST_SHARED : 0,
                               .address = range->source + offset,
                               .pages = (uint32_t)count,
                               .reach = reach < 0x7fffffff ? (uint32_t)reach : 0x7fffffff};
        *after = range->start + offset + count * LM_PAGE_SIZE;
        return true;
    }
    return false;
}

static bool around_faults(struct lm_pager *pager, struct lm_run *run) {
    struct lm_prefetch *prefetch = &pager->prefetch;
    for (unsigned i = 0; i < LM_RECENT_FAULTS; i++) {
        struct lm_recent *recent =
            &prefetch->recent[(prefetch->newest + LM_RECENT_FAULTS - i) % LM_RECENT_FAULTS];
        while (recent->space && recent->pages <= AROUND_MOST) {
            uint64_t step = (uint64_t)recent->pages * LM_PAGE_SIZE, after;
            uint64_t high = recent->high, low = recent->low;
            uint64_t up = high + step < recent->end ? high + step : recent->end;
            if (high < up && take(pager, recent->space, high, up, prefetch->run_pages, run, &after)) {
                recent->high = after;
                return true;
            }
            recent->high = up;
            uint64_t down = low > recent->start + step ? low - step : recent->start;
            if (down < low && take(pager, recent->space, down, low, prefetch->run_pages, run, &after))
                return true; /* the rest of it next time */
            recent->low = down;
            recent->pages *= 2;
        }
        recent->space = NULL;
    }
    return false;
}

static bool hot_first(struct lm_pager *pager, struct lm_run *run) {
    struct lm_prefetch *prefetch = &pager->prefetch;
    while (prefetch->hot_at < prefetch->hot_count) {
        const struct lm_hot_run *hot = &prefetch->hot[prefetch->hot_at];
        for (size_t i = 0; i < pager->space_count; i++) {
            struct lm_space *space = pager->spaces[i];
            for (uint64_t at = hot->start; at < hot->end;) {
                struct lm_range *range = lm_space_by_source(space, hot->source_space, at, hot->end);
                if (!range)
                    break;
                uint64_t low = at > range->source ? at - range->source : 0;
                uint64_t length = range->end - range->start, after;
                uint64_t high = hot->end - range->source < length ? hot->end - range->source : length;
                if (take(pager, space, range->start + low, range->start + high, prefetch->run_pages, run,
                         &after))
                    return true;
                at = range->source + high;
            }
        }
        prefetch->hot_at++;
    }
    return false;
}

static bool in_order(struct lm_pager *pager, struct lm_run *run) {
    struct lm_prefetch *prefetch = &pager->prefetch;
    for (;;) {
        for (; prefetch->space_at < pager->space_count; prefetch->space_at++, prefetch->address = 0)
            if (take(pager, pager->spaces[prefetch->space_at], prefetch->address, UINT64_MAX,
                     prefetch->run_pages, run, &prefetch->address)) {
                prefetch->restarted = false;
                return true;
            }
        /* Another pass finds ranges that moved or appeared behind the cursor, if there can be any. */
        if (prefetch->restarted || !pager->wanted)
            return false;
        prefetch->restarted = true;
        prefetch->space_at = 0;
        prefetch->address = 0;
    }
}

bool lm_prefetch_next(struct lm_pager *pager, struct lm_run *run) {
    if (!pager->wanted)
        return false;
    struct lm_prefetch *prefetch = &pager->prefetch;
    if (prefetch->hot_ahead < HOT_AHEAD && hot_first(pager, run)) {
        prefetch->hot_ahead += run->pages;
        return true;
    }
    if (around_faults(pager, run)) {
        prefetch->hot_ahead -= prefetch->hot_ahead < run->pages ? prefetch->hot_ahead : run->pages;
        return true;
    }
    if (hot_first(pager, run))
        return true;
    bool found = in_order(pager, run);
    if (!found)
        pager->prefetch.restarted = false;
    return found;
}

/* Only large private ranges: page tables do not tell what exists of shared ones, and small ones are fetched as quickly
 * as that is requested. */
bool lm_prefetch_map(struct lm_pager *pager, struct lm_run *run) {
    struct lm_prefetch *prefetch = &pager->prefetch;
    for (; prefetch->map_space < pager->space_count; prefetch->map_space++, prefetch->map_address = 0) {
        struct lm_space *space = pager->spaces[prefetch->map_space];
        for (size_t i = lm_space_find(space, prefetch->map_address); i < space->count; i++) {
            struct lm_range *range = &space->ranges[i];
            uint64_t pages = (range->end - range->start) / LM_PAGE_SIZE, done = 0, count;
            if (prefetch->map_address > range->start)
                done = (prefetch->map_address - range->start) / LM_PAGE_SIZE;
            prefetch->map_address = range->end;
            if (!range->table || range->kind != LM_RANGE_ANONYMOUS || pages < MAP_LEAST ||
                space->number >= LM_CHILD_SPACE)
                continue;
            uint64_t end = range->first + pages, page = lm_page_table_find(range->table, range->first + done,
                                                                           end, LM_STATES_WANTED, 1, &count);
            if (!count)
                continue;
            uint64_t offset = (page - range->first) * LM_PAGE_SIZE, left = end - page, reach;
            count = left < MAP_MOST ? left : MAP_MOST;
            reach = left - count < 0x7fffffff ? left - count : 0x7fffffff;
            prefetch->map_address = range->start + offset + count * LM_PAGE_SIZE;
            *run = (struct lm_run){.source_space = range->source_space,
                                   .address = range->source + offset,
                                   .pages = (uint32_t)count,
                                   .reach = (uint32_t)reach};
            return true;
        }
    }
    return false;
}

void lm_prefetch_hot(struct lm_pager *pager, struct lm_hot_run *hot, size_t count) {
    free(pager->prefetch.hot);
    pager->prefetch.hot = hot;
    pager->prefetch.hot_count = count;
    pager->prefetch.hot_at = 0;
}

int lm_pager_prefetch_first(struct lm_pager *pager, const struct lm_hot_run *runs, size_t count) {
    struct lm_hot_run *copy = malloc(count ? count * sizeof *copy : 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, runs, count * sizeof *copy);
    for (size_t i = 0; i < count; i++)
        if (copy[i].start % LM_PAGE_SIZE || copy[i].end % LM_PAGE_SIZE || copy[i].end > LM_ADDRESS_END) {
            free(copy);
            return -EINVAL;
        }
    lm_pager_lock_patient(pager);
    lm_prefetch_hot(pager, copy, count);
    lm_pager_unlock(pager);
    return 0;
}
