#define _GNU_SOURCE
#include "pager/space.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void lm_space_init(struct lm_space *space, uint32_t number, int userfault, int pid, int memory) {
    *space = (struct lm_space){
        .number = number, .userfault = userfault, .pid = pid, .memory = memory, .pagemap = -1};
}

void lm_space_changed(struct lm_space *space) {
    space->sorted = space->recorded = false;
}

void lm_space_deinit(struct lm_space *space) {
    for (size_t i = 0; i < space->count; i++)
        lm_page_table_release(space->ranges[i].table);
    free(space->ranges);
    free(space->by_source);
    if (space->userfault >= 0)
        close(space->userfault);
    if (space->memory >= 0)
        close(space->memory);
    if (space->pagemap >= 0)
        close(space->pagemap);
    *space = (struct lm_space){.userfault = -1, .memory = -1, .pagemap = -1, .gone = true};
}

size_t lm_space_find(const struct lm_space *space, uint64_t address) {
    size_t low = 0, high = space->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (space->ranges[middle].end > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

struct lm_range *lm_space_at(const struct lm_space *space, uint64_t address) {
    size_t at = lm_space_find(space, address);
    return at < space->count && space->ranges[at].start <= address ? &space->ranges[at] : NULL;
}

static int compare_by_source(const void *one, const void *other, void *ranges) {
    const struct lm_range *a = (const struct lm_range *)ranges + *(const size_t *)one;
    const struct lm_range *b = (const struct lm_range *)ranges + *(const size_t *)other;
    if (a->source_space != b->source_space)
        return a->source_space < b->source_space ? -1 : 1;
    return a->source < b->source ? -1 : a->source > b->source;
}

struct lm_range *lm_space_by_source(struct lm_space *space, uint32_t source_space, uint64_t address,
                                    uint64_t end) {
    if (!space->count)
        return NULL;
    if (!space->sorted) {
        for (size_t i = 0; i < space->count; i++)
            space->by_source[i] = i;
        qsort_r(space->by_source, space->count, sizeof *space->by_source, compare_by_source, space->ranges);
        space->sorted = true;
    }
    /* The first that begins after the address; the one before it may hold the address. */
    size_t low = 0, high = space->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct lm_range *range = &space->ranges[space->by_source[middle]];
        if (range->source_space > source_space ||
            (range->source_space == source_space && range->source > address))
            high = middle;
        else
            low = middle + 1;
    }
    if (low > 0) {
        struct lm_range *range = &space->ranges[space->by_source[low - 1]];
        if (range->source_space == source_space && address - range->source < range->end - range->start)
            return range;
    }
    if (low < space->count) {
        struct lm_range *range = &space->ranges[space->by_source[low]];
        if (range->source_space == source_space && range->source < end)
            return range;
    }
    return NULL;
}

static int make_room(struct lm_space *space, size_t more) {
    if (space->count + more <= space->capacity)
        return 0;
    size_t capacity = space->capacity ? space->capacity * 2 : 64;
    while (capacity < space->count + more)
        capacity *= 2;
    struct lm_range *ranges = realloc(space->ranges, capacity * sizeof *ranges);
    if (!ranges)
        return -ENOMEM;
    space->ranges = ranges;
    size_t *by_source = realloc(space->by_source, capacity * sizeof *by_source);
    if (!by_source)
        return -ENOMEM;
    space->by_source = by_source;
    space->capacity = capacity;
    return 0;
}

static void insert_at(struct lm_space *space, size_t at, const struct lm_range *range) {
    memmove(space->ranges + at + 1, space->ranges + at, (space->count - at) * sizeof *space->ranges);
    space->ranges[at] = *range;
    space->count++;
    lm_space_changed(space);
}

int lm_space_insert(struct lm_space *space, const struct lm_range *range) {
    size_t at = lm_space_find(space, range->start);
    if (at < space->count && space->ranges[at].start < range->end)
        return -EEXIST;
    int error = make_room(space, 1);
    if (!error)
        insert_at(space, at, range);
    return error;
}

/* The part of a range from `start` to `end`, without a reference of its own. */
static struct lm_range part(const struct lm_range *range, uint64_t start, uint64_t end) {
    struct lm_range piece = *range;
    piece.start = start;
    piece.end = end;
    piece.source += start - range->start;
    piece.first += (start - range->start) / 4096;
    return piece;
}

int lm_space_cut(struct lm_space *space, uint64_t start, uint64_t end, struct lm_space *taken) {
    size_t from = lm_space_find(space, start), to = from;
    while (to < space->count && space->ranges[to].start < end)
        to++;
    if (from == to)
        return 0;
    int error = make_room(space, 2);
    if (!error && taken)
        error = make_room(taken, to - from);
    if (error)
        return error;
    struct lm_range first = space->ranges[from], last = space->ranges[to - 1];
    for (size_t i = from; i < to; i++) {
        struct lm_range *range = &space->ranges[i];
        uint64_t low = range->start > start ? range->start : start,
                 high = range->end < end ? range->end : end;
        struct lm_range piece = part(range, low, high);
        if (taken)
            taken->ranges[taken->count++] = piece;
        /* The range's own reference goes with the piece; what stays before or after takes new ones. */
        if (range->table) {
            if (i == from && first.start < start)
                lm_page_table_hold(range->table);
            if (i == to - 1 && last.end > end)
                lm_page_table_hold(range->table);
            if (!taken)
                lm_page_table_release(range->table);
        }
    }
    memmove(space->ranges + from, space->ranges + to, (space->count - to) * sizeof *space->ranges);
    space->count -= to - from;
    lm_space_changed(space);
    if (last.end > end) {
        struct lm_range after = part(&last, end, last.end);
        insert_at(space, from, &after);
    }
    if (first.start < start) {
        struct lm_range before = part(&first, first.start, start);
        insert_at(space, from, &before);
    }
    return 0;
}

int lm_space_copy(const struct lm_space *parent, struct lm_space *child) {
    int error = make_room(child, parent->count);
    for (size_t i = 0; !error && i < parent->count; i++) {
        struct lm_range range = parent->ranges[i];
        if (!range.table)
            continue;
        uint64_t pages = (range.end - range.start) / 4096;
        const struct lm_page_table *old = range.table;
        range.table = lm_page_table_create(old->ledger, pages, old->total_wanted);
        if (!range.table)
            return -ENOMEM;
        error = lm_page_table_take(range.table, 0, old, range.first, pages, ~LM_STATES_WANTED);
        range.first = 0;
        child->ranges[child->count++] = range;
    }
    lm_space_changed(child);
    return error;
}
