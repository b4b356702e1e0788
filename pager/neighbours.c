#include "pager/neighbours.h"

uint32_t lm_neighbours_take(struct lm_pager *pager, uint32_t id, const struct lm_range *range, uint64_t page,
                            uint64_t end) {
    struct lm_neighbours *neighbours = &pager->neighbours[id % LM_ANSWERS];
    uint64_t count;
    if (neighbours->id || page >= end)
        return 0;
    if (lm_page_table_find(range->table, page, end, LM_STATES(LM_PAGE_MISSING), end - page, &count) != page ||
        !count || lm_page_table_set(range->table, page, count, ~0u, LM_PAGE_REQUESTED))
        return 0;
    *neighbours = (struct lm_neighbours){.id = id,
                                         .source_space = range->source_space,
                                         .address = range->source + (page - range->first) * LM_PAGE_SIZE,
                                         .pages = (uint32_t)count};
    return (uint32_t)count;
}

uint32_t lm_neighbours_answer(const struct lm_pager *pager, uint32_t source_space, uint64_t source) {
    for (int i = 0; i < LM_ANSWERS; i++) {
        const struct lm_neighbours *one = &pager->neighbours[i];
        if (one->id && one->source_space == source_space && source >= one->address &&
            source - one->address < (uint64_t)one->pages * LM_PAGE_SIZE)
            return one->id;
    }
    return 0;
}

/* They are MISSING again, unless they have come another way. Lock held. */
static int give_back(struct lm_pager *pager, const struct lm_neighbours *neighbours) {
    uint64_t end = neighbours->address + (uint64_t)neighbours->pages * LM_PAGE_SIZE;
    for (size_t i = 0; i < pager->space_count; i++) {
        struct lm_range *range =
            lm_space_by_source(pager->spaces[i], neighbours->source_space, neighbours->address, end);
        if (!range || !range->table || range->source > neighbours->address)
            continue;
        uint64_t offset = neighbours->address - range->source, length = range->end - range->start - offset;
        uint64_t pages =
            length / LM_PAGE_SIZE < neighbours->pages ? length / LM_PAGE_SIZE : neighbours->pages;
        int error = lm_page_table_set(range->table, range->first + offset / LM_PAGE_SIZE, pages,
                                      LM_STATES(LM_PAGE_REQUESTED), LM_PAGE_MISSING);
        if (error)
            return error;
    }
    return 0;
}

int lm_neighbours_end(struct lm_pager *pager, uint32_t id, uint64_t end, bool *waited_for) {
    struct lm_neighbours *neighbours = &pager->neighbours[id % LM_ANSWERS];
    if (!id || neighbours->id != id)
        return 0;
    neighbours->id = 0;
    if (end == neighbours->address + (uint64_t)neighbours->pages * LM_PAGE_SIZE)
        return 0;
    lm_pager_lock_urgent(pager);
    int error = give_back(pager, neighbours);
    for (size_t i = 0; i < pager->pending_count; i++)
        if (pager->pending[i].id == id) {
            pager->pending[i].id = 0;
            *waited_for = true;
        }
    lm_pager_unlock(pager);
    return error;
}
