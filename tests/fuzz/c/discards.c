#include "pager/discard_list.h"
#include "tests/fuzz/c/fuzz.h"

#include "wire/page_stream.h"

#include <string.h>

enum { PAGES = 256, SPACES = 2, NAMED = 1, GONE = 2 };

/* One frame: which kind, of which space, from which page on, how many. */
struct word {
    uint8_t what, first, count;
};

static void compare(const struct lm_discarded *list, uint8_t (*expected)[PAGES]) {
    uint8_t found[SPACES][PAGES] = {0};
    for (size_t i = 0; i < list->count; i++) {
        const struct lm_discarded_run *run = &list->runs[i];
        PROMISE(run->start < run->end && run->end <= (uint64_t)PAGES * LM_PAGE_SIZE);
        for (uint64_t page = run->start / LM_PAGE_SIZE; page < run->end / LM_PAGE_SIZE; page++) {
            PROMISE(!found[run->source_space][page]);
            found[run->source_space][page] = run->gone ? GONE : NAMED;
        }
    }
    PROMISE(memcmp(found, expected, sizeof found) == 0);
    PROMISE(list->count <= SPACES * PAGES);
}

int fuzz_discards(const uint8_t *data, size_t size) {
    struct lm_discarded list = {0};
    uint8_t expected[SPACES][PAGES] = {0};
    for (; size >= sizeof(struct word); data += sizeof(struct word), size -= sizeof(struct word)) {
        struct word word;
        memcpy(&word, data, sizeof word);
        uint32_t left = PAGES - word.first, pages = 1 + word.count % left;
        uint64_t start = (uint64_t)word.first * LM_PAGE_SIZE;
        struct lm_discarded_run run = {.start = start,
                                       .end = start + (uint64_t)pages * LM_PAGE_SIZE,
                                       .source_space = word.what >> 1 & 1,
                                       .gone = word.what & 1};
        PROMISE(lm_discard_list_add(&list, &run) == 0);
        memset(&expected[run.source_space][word.first], word.what & 1 ? GONE : NAMED, pages);
        /* The end of a push, now and then. */
        if (word.what > 0xf0) {
            PROMISE(lm_discard_list_order(&list) == 0);
            compare(&list, expected);
        }
    }
    PROMISE(lm_discard_list_order(&list) == 0);
    compare(&list, expected);
    free(list.runs);
    return 0;
}
