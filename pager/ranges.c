#include "pager/ranges.h"

#include "pager/record.h"
#include "pager/userfault.h"

#include <errno.h>

/* The range that is exactly what is described, so that it is registered already and its table can stay; or
 * NULL. */
static struct lm_range *unchanged(const struct lm_space *old, const struct lm_range_description *what) {
    struct lm_range *before = lm_space_at(old, what->start);
    bool same = before && before->table && before->start == what->start && before->end == what->end &&
                before->kind == what->kind && before->source_space == what->source_space &&
                before->source == what->source && before->table->references == 1;
    return same ? before : NULL;
}

/* What stays known of a page when the ranges are set anew: a page that was empty then may not be empty any more,
 * unless the source follows what changes. */
static uint32_t kept_states(const struct lm_pager *pager) {
    return LM_STATES(LM_PAGE_PLACED) | (pager->followed ? LM_STATES(LM_PAGE_ZERO) : 0);
}

/* Go on with the table of a range that has not changed. */
static int keep_range(const struct lm_pager *pager, const struct lm_range *before, struct lm_range *range) {
    *range = *before;
    lm_page_table_hold(range->table);
    return lm_page_table_set(range->table, range->first, (range->end - range->start) / LM_PAGE_SIZE,
                             ~kept_states(pager), LM_PAGE_MISSING);
}

/* Make a range as described, with what is known of its pages from the ranges before. */
static int make_range(struct lm_pager *pager, const struct lm_space *old,
                      const struct lm_range_description *what, struct lm_range *range) {
    uint64_t pages = (what->end - what->start) / LM_PAGE_SIZE;
    *range = (struct lm_range){.start = what->start,
                               .end = what->end,
                               .source = what->source,
                               .source_space = what->source_space,
                               .kind = what->kind};
    if (what->kind == LM_RANGE_WRITTEN)
        return 0;
    range->table = lm_page_table_create(pager->ledger, pages, &pager->wanted);
    if (!range->table)
        return -ENOMEM;
    int error = 0;
    for (size_t i = lm_space_find(old, what->start); !error && i < old->count; i++) {
        const struct lm_range *before = &old->ranges[i];
        if (before->start >= what->end)
            break;
        if (!before->table || before->source_space != what->source_space || before->kind != what->kind ||
            before->source - before->start != what->source - what->start)
            continue;
        uint64_t low = before->start > what->start ? before->start : what->start;
        uint64_t high = before->end < what->end ? before->end : what->end;
        error =
            lm_page_table_take(range->table, (low - what->start) / LM_PAGE_SIZE, before->table,
                               lm_range_page(before, low), (high - low) / LM_PAGE_SIZE, kept_states(pager));
    }
    return error;
}

static int check_range(const struct lm_range_description *range) {
    bool sane = range->start % LM_PAGE_SIZE == 0 && range->end % LM_PAGE_SIZE == 0 &&
                range->start < range->end && range->source % LM_PAGE_SIZE == 0 &&
                range->source < LM_ADDRESS_END && range->end < LM_ADDRESS_END &&
                range->kind >= LM_RANGE_ANONYMOUS && range->kind <= LM_RANGE_WRITTEN;
    return sane ? 0 : -EINVAL;
}

static int replace_ranges(struct lm_pager *pager, struct lm_space *space,
                          const struct lm_range_description *ranges, size_t count, size_t *failed) {
    struct lm_space fresh;
    lm_space_init(&fresh, 0, -1, 0, -1);
    int error = 0;
    for (size_t i = 0; !error && i < count; i++) {
        struct lm_range range = {.table = NULL};
        *failed = i;
        error = check_range(&ranges[i]);
        const struct lm_range *before = error ? NULL : unchanged(space, &ranges[i]);
        if (!error && !before && ranges[i].kind != LM_RANGE_WRITTEN)
            error = lm_userfault_register(space->userfault, ranges[i].start, ranges[i].end);
        if (!error)
            error = before ? keep_range(pager, before, &range) : make_range(pager, space, &ranges[i], &range);
        if (!error)
            error = lm_space_insert(&fresh, &range);
        if (error)
            lm_page_table_release(range.table);
    }
    if (!error) {
        struct lm_space before = *space;
        space->ranges = fresh.ranges;
        space->by_source = fresh.by_source;
        space->count = fresh.count;
        space->capacity = fresh.capacity;
        lm_space_changed(space);
        fresh = before;
        fresh.userfault = fresh.memory = fresh.pagemap = -1;
    }
    lm_space_deinit(&fresh);
    return error;
}

int lm_pager_set_ranges(struct lm_pager *pager, uint32_t number, const struct lm_range_description *ranges,
                        size_t count, size_t *failed) {
    *failed = 0;
    lm_pager_lock_patient(pager);
    struct lm_space *space = lm_pager_find_space(pager, number);
    int error = !space || space->gone ? -ESRCH : replace_ranges(pager, space, ranges, count, failed);
    if (!error)
        error = lm_record(pager, 0);
    lm_pager_unlock(pager);
    return error;
}

void lm_pager_follow(struct lm_pager *pager) {
    lm_pager_lock_patient(pager);
    pager->followed = true;
    lm_pager_unlock(pager);
}

/* For the part of each range that holds pages of [start, end) of the source. */
static int for_source(struct lm_pager *pager, uint32_t source_space, uint64_t start, uint64_t end,
                      uint32_t from) {
    int error = 0;
    for (size_t i = 0; i < pager->space_count; i++) {
        struct lm_space *space = pager->spaces[i];
        for (uint64_t at = start; at < end && !error;) {
            struct lm_range *range = lm_space_by_source(space, source_space, at, end);
            if (!range)
                break;
            uint64_t low = at > range->source ? at - range->source : 0, length = range->end - range->start;
            uint64_t high = end - range->source < length ? end - range->source : length;
            if (range->table)
                error = lm_page_table_set(range->table, range->first + low / LM_PAGE_SIZE,
                                          (high - low) / LM_PAGE_SIZE, from, LM_PAGE_MISSING);
            at = range->source + high;
        }
    }
    return error;
}

int lm_pager_discard(struct lm_pager *pager, uint32_t source_space, uint64_t start, uint64_t end) {
    if (start % LM_PAGE_SIZE || end % LM_PAGE_SIZE || start > end || end > LM_ADDRESS_END)
        return -EINVAL;
    lm_pager_lock_patient(pager);
    int error = for_source(pager, source_space, start, end, ~LM_STATES(LM_PAGE_REQUESTED));
    lm_pager_unlock(pager);
    return error;
}

int lm_pager_discard_requests(struct lm_pager *pager) {
    int error = 0;
    for (size_t i = 0; i < pager->space_count; i++)
        for (size_t j = 0; j < pager->spaces[i]->count && !error; j++) {
            struct lm_range *range = &pager->spaces[i]->ranges[j];
            if (range->table)
                error =
                    lm_page_table_set(range->table, range->first, (range->end - range->start) / LM_PAGE_SIZE,
                                      LM_STATES(LM_PAGE_REQUESTED), LM_PAGE_MISSING);
        }
    return error;
}
