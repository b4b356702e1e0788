#include "source_server/pages/page_history.h"

#include "wire/page_stream.h"

#include <stdlib.h>
#include <string.h>

enum { SIZE_LEAST = 256 };

void lm_page_history_deinit(struct lm_page_history *history) {
    for (size_t i = 0; i < history->size; i++)
        free(history->chunks[i]);
    free(history->chunks);
    memset(history, 0, sizeof *history);
}

/* The place of a chunk, or the empty one where it would stand. */
static struct lm_history_chunk **find(const struct lm_page_history *history, uint64_t number) {
    size_t at = (size_t)((number * 0x9e3779b97f4a7c15u) >> 20);
    for (;; at++) {
        struct lm_history_chunk **place = &history->chunks[at & (history->size - 1)];
        if (!*place || (*place)->number == number)
            return place;
    }
}

static bool make_room(struct lm_page_history *history) {
    if (history->size && history->used * 2 < history->size)
        return true;
    struct lm_page_history larger = {.size = history->size ? 2 * history->size : SIZE_LEAST,
                                     .used = history->used};
    larger.chunks = calloc(larger.size, sizeof(struct lm_history_chunk *));
    if (!larger.chunks)
        return false;
    for (size_t i = 0; i < history->size; i++)
        if (history->chunks[i])
            *find(&larger, history->chunks[i]->number) = history->chunks[i];
    free(history->chunks);
    *history = larger;
    return true;
}

struct lm_history_chunk *lm_page_history_chunk(struct lm_page_history *history, uint64_t address, bool make) {
    uint64_t number = address / LM_PAGE_SIZE / LM_HISTORY_PAGES;
    struct lm_history_chunk **place = history->size ? find(history, number) : NULL;
    if (place && *place)
        return *place;
    if (!make || !make_room(history))
        return NULL;
    place = find(history, number);
    *place = calloc(1, sizeof **place);
    if (*place) {
        (*place)->number = number;
        history->used++;
    }
    return *place;
}

unsigned lm_page_history_written(uint8_t *page, unsigned round) {
    unsigned streak = (*page & LM_PAGE_STREAK) / LM_PAGE_STREAK_ONE;
    bool behind = streak && (*page & LM_PAGE_ROUND) == ((round - 1) & LM_PAGE_ROUND);
    streak = !behind ? 1 : streak < 3 ? streak + 1 : 3;
    *page = (uint8_t)((*page & (LM_PAGE_SENT | LM_PAGE_PENDING)) | streak * LM_PAGE_STREAK_ONE |
                      (round & LM_PAGE_ROUND));
    return streak;
}

void lm_page_history_set_pending(struct lm_history_chunk *chunk, uint8_t *page, bool pending) {
    if (pending && !(*page & LM_PAGE_PENDING)) {
        *page |= LM_PAGE_PENDING;
        chunk->pending++;
    } else if (!pending && *page & LM_PAGE_PENDING) {
        *page &= (uint8_t)~LM_PAGE_PENDING;
        chunk->pending--;
    }
}
