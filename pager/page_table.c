#include "pager/page_table.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static uint64_t chunk_count(uint64_t pages) {
    return (pages + LM_CHUNK_PAGES - 1) / LM_CHUNK_PAGES;
}

static bool is_uniform(uint64_t chunk) {
    return chunk < LM_PAGE_STATES;
}

static uint8_t *states_of(const struct lm_page_table *table, uint64_t chunk) {
    return lm_ledger_at(table->ledger, chunk);
}

static uint64_t size_of(uint64_t pages) {
    return (1 + chunk_count(pages)) * sizeof(uint64_t);
}

struct lm_page_table *lm_page_table_create(struct lm_ledger *ledger, uint64_t pages, uint64_t *total_wanted) {
    struct lm_page_table *table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    /* Large tables are fresh zero pages, MISSING everywhere; only those that are touched take memory.
     */
    table->place = lm_ledger_take(ledger, size_of(pages));
    if (!table->place) {
        free(table);
        return NULL;
    }
    uint64_t *words = lm_ledger_at(ledger, table->place);
    words[0] = pages;
    table->chunks = words + 1;
    table->ledger = ledger;
    table->references = 1;
    table->pages = table->wanted = pages;
    table->total_wanted = total_wanted;
    *total_wanted += pages;
    return table;
}

struct lm_page_table lm_page_table_view(struct lm_ledger *ledger, uint64_t place, uint64_t *total) {
    uint64_t *words = lm_ledger_at(ledger, place);
    return (struct lm_page_table){.references = 1,
                                  .pages = words[0],
                                  .total_wanted = total,
                                  .ledger = ledger,
                                  .place = place,
                                  .chunks = words + 1};
}

void lm_page_table_hold(struct lm_page_table *table) {
    table->references++;
}

void lm_page_table_release(struct lm_page_table *table) {
    if (!table || --table->references)
        return;
    *table->total_wanted -= table->wanted;
    for (uint64_t i = 0; i < chunk_count(table->pages); i++)
        if (!is_uniform(table->chunks[i]))
            lm_ledger_give(table->ledger, table->chunks[i], LM_CHUNK_PAGES);
    lm_ledger_give(table->ledger, table->place, size_of(table->pages));
    free(table);
}

enum lm_page_state lm_page_table_get(const struct lm_page_table *table, uint64_t page) {
    uint64_t chunk = table->chunks[page / LM_CHUNK_PAGES];
    return is_uniform(chunk) ? (enum lm_page_state)chunk
                             : (enum lm_page_state)states_of(table, chunk)[page % LM_CHUNK_PAGES];
}

static bool is_wanted(unsigned state) {
    return LM_STATES(state) & LM_STATES_WANTED;
}

static void account(struct lm_page_table *table, unsigned from, unsigned to, uint64_t pages) {
    if (is_wanted(from) && !is_wanted(to)) {
        table->wanted -= pages;
        *table->total_wanted -= pages;
    } else if (!is_wanted(from) && is_wanted(to)) {
        table->wanted += pages;
        *table->total_wanted += pages;
    }
}

/* A part of one chunk. */
static int set_in_chunk(struct lm_page_table *table, uint64_t first, uint64_t count, uint32_t from,
                        enum lm_page_state to) {
    uint64_t *chunk = &table->chunks[first / LM_CHUNK_PAGES];
    uint64_t begin = first % LM_CHUNK_PAGES;
    if (is_uniform(*chunk)) {
        uint64_t state = *chunk;
        if (!(from & LM_STATES(state)) || state == (uint64_t)to)
            return 0;
        uint64_t left = table->pages - (first - begin);
        if (count == LM_CHUNK_PAGES || (begin == 0 && count == left)) {
            account(table, (unsigned)state, to, count);
            *chunk = to;
            return 0;
        }
        uint64_t place = lm_ledger_take(table->ledger, LM_CHUNK_PAGES);
        if (!place)
            return -ENOMEM;
        memset(states_of(table, place), (int)state, LM_CHUNK_PAGES);
        /* We may be killed at any point. */
        __atomic_store_n(chunk, place, __ATOMIC_RELEASE);
    }
    uint8_t *states = states_of(table, *chunk);
    for (uint64_t i = begin; i < begin + count; i++) {
        if (!(from & LM_STATES(states[i])))
            continue;
        account(table, states[i], to, 1);
        states[i] = (uint8_t)to;
    }
    return 0;
}

int lm_page_table_set(struct lm_page_table *table, uint64_t first, uint64_t count, uint32_t from,
                      enum lm_page_state to) {
    uint64_t end = first + count;
    while (first < end) {
        uint64_t step = LM_CHUNK_PAGES - first % LM_CHUNK_PAGES;
        if (step > end - first)
            step = end - first;
        int error = set_in_chunk(table, first, step, from, to);
        if (error)
            return error;
        first += step;
    }
    return 0;
}

/* How many pages from `first` on are all in `set`, or all not in it, at most up to `end`. */
static uint64_t stretch(const struct lm_page_table *table, uint64_t first, uint64_t end, uint32_t set,
                        bool inside) {
    uint64_t at = first;
    while (at < end) {
        uint64_t chunk = table->chunks[at / LM_CHUNK_PAGES];
        uint64_t next = (at / LM_CHUNK_PAGES + 1) * LM_CHUNK_PAGES;
        if (next > end)
            next = end;
        if (is_uniform(chunk)) {
            if (!!(set & LM_STATES(chunk)) != inside)
                break;
            at = next;
            continue;
        }
        const uint8_t *states = states_of(table, chunk);
        while (at < next && !!(set & LM_STATES(states[at % LM_CHUNK_PAGES])) == inside)
            at++;
        if (at < next)
            break;
    }
    return at - first;
}

uint64_t lm_page_table_find(const struct lm_page_table *table, uint64_t first, uint64_t end, uint32_t set,
                            uint64_t most, uint64_t *count) {
    uint64_t found = first + stretch(table, first, end, set, false);
    uint64_t last = end - found < most ? end : found + most;
    *count = stretch(table, found, last, set, true);
    return found;
}

int lm_page_table_take(struct lm_page_table *table, uint64_t first, const struct lm_page_table *from,
                       uint64_t from_first, uint64_t count, uint32_t set) {
    uint64_t end = from_first + count;
    for (unsigned state = 0; state < LM_PAGE_STATES; state++) {
        if (!(set & LM_STATES(state)))
            continue;
        for (uint64_t at = from_first; at < end;) {
            uint64_t found;
            at = lm_page_table_find(from, at, end, LM_STATES(state), count, &found);
            int error =
                lm_page_table_set(table, first + (at - from_first), found, ~0u, (enum lm_page_state)state);
            if (error)
                return error;
            at += found;
        }
    }
    return 0;
}
