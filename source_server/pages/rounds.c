#include "source_server/pages/rounds.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RUNS = 512 };

struct run_list {
    struct lm_page_run *runs;
    size_t count, capacity;
};

struct lm_rounds {
    struct lm_page_client *client;
    const struct lm_page_reader *reader;
    struct lm_dirty_tracker tracker;
    struct lm_page_history history;
    struct lm_round_range *ranges;
    size_t range_count;
    struct run_list collected; /* LM_DIRTY_SOFT: what is to be sent in this round */
    uint32_t cut_number;       /* the round whose time was over, to be gone on with; 0: none */
    size_t cut_range;
    uint64_t cut_at;
};

/* A round, or the last call. */
struct pass {
    struct lm_rounds *rounds;
    struct lm_round_work work;
    uint64_t deadline_ns;
};

struct lm_rounds *lm_rounds_create(struct lm_page_client *client, uint32_t space,
                                   const struct lm_dirty_tracker *tracker) {
    struct lm_rounds *rounds = calloc(1, sizeof *rounds);
    if (!rounds)
        return NULL;
    rounds->client = client;
    rounds->reader = lm_page_store_find(client->store, space);
    rounds->tracker = *tracker;
    if (!rounds->reader) {
        free(rounds);
        return NULL;
    }
    return rounds;
}

void lm_rounds_destroy(struct lm_rounds *rounds) {
    if (!rounds)
        return;
    close(rounds->tracker.pagemap);
    close(rounds->tracker.control);
    lm_page_history_deinit(&rounds->history);
    free(rounds->ranges);
    free(rounds->collected.runs);
    free(rounds);
}

int lm_rounds_watch(struct lm_rounds *rounds, const struct lm_round_range *ranges, size_t count) {
    struct lm_round_range *copy = malloc(count ? count * sizeof *copy : 1);
    if (!copy)
        return -ENOMEM;
    if (count)
        memcpy(copy, ranges, count * sizeof *copy);
    free(rounds->ranges);
    rounds->cut_number = 0;
    rounds->ranges = copy;
    rounds->range_count = count;
    int error = -ENOENT;
    for (size_t i = 0; i < count; i++) {
        if (!i || copy[i].follow_start != copy[i - 1].follow_start)
            error = lm_dirty_watch(&rounds->tracker, copy[i].follow_start, copy[i].follow_end);
        if (error == -ESRCH)
            return error;
        /* Something that cannot be followed may have come there since the snapshot. Not by the range's own borders
         * then, which may be wrong by now: its mapping would be cut in two. The next snapshot knows better. */
        copy[i].followed = !error;
    }
    /* Soft-dirty bits of shared memory are not to be relied on. */
    for (size_t i = 0; i < count && rounds->tracker.kind == LM_DIRTY_SOFT; i++)
        copy[i].followed = !copy[i].shared;
    return 0;
}

static int take_runs(struct lm_round_work *work, const struct lm_page_run *runs, size_t count) {
    int error = 0;
    for (size_t i = 0; !error && i < count; i++)
        error = lm_round_take(work, runs[i].start, runs[i].end);
    return error;
}

static bool is_late(const struct pass *pass) {
    return pass->deadline_ns && lm_now_ns() > pass->deadline_ns;
}

/* Everything that exists in [at, end), whatever the tracker says. */
static int take_all(struct pass *pass, const struct lm_round_range *range, uint64_t at) {
    struct lm_page_run runs[RUNS];
    if (range->shared)
        return lm_round_take(&pass->work, at, range->end);
    while (at < range->end) {
        size_t count;
        int error = lm_pagemap_runs(pass->rounds->tracker.pagemap, at, range->end, LM_PAGES_PRESENT, runs,
                                    RUNS, &count, &at);
        if (!error)
            error = take_runs(&pass->work, runs, count);
        if (error)
            return error == -ENODATA ? -ESRCH : error;
    }
    return 0;
}

static void cut(struct pass *pass, const struct lm_round_range *range, uint64_t at) {
    pass->work.result->cut = 1;
    pass->rounds->cut_number = pass->work.number;
    pass->rounds->cut_range = (size_t)(range - pass->rounds->ranges);
    pass->rounds->cut_at = at;
}

/* Where to begin in a range: at its start, unless this is the rest of a round. */
static uint64_t from_cut(const struct pass *pass, const struct lm_round_range *range) {
    const struct lm_rounds *rounds = pass->rounds;
    bool rest = pass->work.number && rounds->cut_number == pass->work.number &&
                rounds->cut_range == (size_t)(range - rounds->ranges);
    return rest ? rounds->cut_at : range->start;
}

/* What was written to in a range, armed again unless it is the last time. */
static int take_written(struct pass *pass, const struct lm_round_range *range) {
    const struct lm_dirty_tracker *tracker = &pass->rounds->tracker;
    struct lm_page_run runs[RUNS];
    if (!range->followed || pass->work.flags & LM_LAST_VOID)
        return pass->work.number ? 0 : take_all(pass, range, range->start);
    for (uint64_t at = from_cut(pass, range); at < range->end;) {
        size_t count;
        uint64_t from = at;
        if (is_late(pass)) {
            cut(pass, range, at);
            return 0;
        }
        int error = lm_dirty_written(tracker, at, range->end, range->shared, pass->work.number != 0, runs,
                                     RUNS, &count, &at);
        if (error == -EPERM) {
            /* Another mapping is there now: all of it counts as written to, and is followed from now on. */
            if (pass->work.number)
                lm_dirty_watch(tracker, range->follow_start, range->follow_end);
            return take_all(pass, range, from);
        }
        if (!error)
            error = take_runs(&pass->work, runs, count);
        if (error)
            return error;
    }
    return 0;
}

static int add_run(struct run_list *list, struct lm_page_run run) {
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 1024;
        struct lm_page_run *runs = realloc(list->runs, capacity * sizeof *runs);
        if (!runs)
            return -ENOMEM;
        list->runs = runs;
        list->capacity = capacity;
    }
    list->runs[list->count++] = run;
    return 0;
}

int lm_rounds_collect(struct lm_rounds *rounds) {
    struct lm_page_run runs[RUNS];
    int error = 0;
    /* What a cut round has left still has to be done. */
    for (size_t i = 0; !error && i < rounds->range_count; i++) {
        const struct lm_round_range *range = &rounds->ranges[i];
        for (uint64_t at = range->start; !error && range->followed && at < range->end;) {
            size_t count;
            error = lm_dirty_written(&rounds->tracker, at, range->end, false, false, runs, RUNS, &count, &at);
            for (size_t j = 0; !error && j < count; j++)
                error = add_run(&rounds->collected, runs[j]);
        }
    }
    return error ? error : lm_dirty_clear(&rounds->tracker);
}

/* LM_DIRTY_SOFT: the bits are cleared, so what is not sent in time waits. */
static int take_collected(struct pass *pass) {
    struct run_list *list = &pass->rounds->collected;
    int error = 0;
    while (!error && list->count) {
        struct lm_page_run run = list->runs[list->count - 1];
        if (pass->work.number && is_late(pass)) {
            pass->work.result->cut = 1;
            return 0;
        }
        list->count--;
        error = lm_round_take(&pass->work, run.start, run.end);
    }
    return error;
}

/* Call `take` for the runs of pages in the history whose `bits` are `wanted`, as far as [start, end) goes. */
static int each_run(struct lm_round_work *work, uint64_t start, uint64_t end, uint8_t bits, uint8_t wanted,
                    uint8_t round, int (*take)(struct lm_round_work *work, uint64_t start, uint64_t end)) {
    struct lm_page_history *history = work->history;
    const uint64_t chunk_bytes = (uint64_t)LM_HISTORY_PAGES * LM_PAGE_SIZE;
    uint64_t chunks = (end - 1) / chunk_bytes - start / chunk_bytes + 1;
    bool by_table = chunks > history->size;
    uint64_t steps = by_table ? history->size : chunks;
    for (uint64_t i = 0; i < steps; i++) {
        struct lm_history_chunk *chunk =
            by_table ? history->chunks[i]
                     : lm_page_history_chunk(history, (start / chunk_bytes + i) * chunk_bytes, false);
        if (!chunk || (bits == LM_PAGE_PENDING && !chunk->pending))
            continue;
        for (unsigned page = 0; page < LM_HISTORY_PAGES;) {
            unsigned first = page;
            while (page < LM_HISTORY_PAGES && (chunk->pages[page] & bits) == wanted &&
                   (round == 0xff || (chunk->pages[page] & LM_PAGE_ROUND) != round))
                page++;
            uint64_t low = chunk->number * chunk_bytes + (uint64_t)first * LM_PAGE_SIZE;
            uint64_t high = chunk->number * chunk_bytes + (uint64_t)page * LM_PAGE_SIZE;
            low = low < start ? start : low;
            high = high > end ? end : high;
            int error = low < high ? take(work, low, high) : 0;
            if (error)
                return error;
            page += page == first;
        }
    }
    return 0;
}

static int take_gone(struct lm_round_work *work, uint64_t start, uint64_t end) {
    return each_run(work, start, end, LM_PAGE_SENT, LM_PAGE_SENT, 0xff, lm_round_send_gone);
}

/* Shared memory was sent and is not mapped at present: no page table tells what it holds now. */
static int take_unmapped(struct lm_round_work *work, uint64_t start, uint64_t end) {
    return each_run(work, start, end, LM_PAGE_SENT, LM_PAGE_SENT, 0xff, lm_round_take);
}

/* The pages of a range that do not exist: once all of them, so that nobody requests them; in the end those of
 * which there was a copy. */
static int take_absent(struct pass *pass, const struct lm_round_range *range) {
    struct lm_page_run runs[RUNS];
    for (uint64_t at = range->start; !range->shared && at < range->end;) {
        size_t count;
        int error = lm_dirty_absent(&pass->rounds->tracker, at, range->end, runs, RUNS, &count, &at);
        for (size_t i = 0; !error && i < count; i++)
            error = pass->work.number ? lm_round_send_absent(&pass->work, runs[i].start, runs[i].end)
                                      : take_gone(&pass->work, runs[i].start, runs[i].end);
        if (error)
            return error;
    }
    return 0;
}

/* Send first what was gathered of another range, so that a page's digest is that of what was sent last. */
static int begin_range(struct lm_round_work *work, const struct lm_round_range *range) {
    int error = work->digests != (bool)range->shared ? lm_round_flush(work) : 0;
    work->digests = range->shared;
    return error;
}

/* The last time: what was written to and what does not exist. */
static int take_changed(struct pass *pass, const struct lm_round_range *range) {
    struct lm_page_change changes[RUNS];
    uint64_t at = range->start;
    int error = 0;
    int (*absent)(struct lm_round_work *, uint64_t, uint64_t) = range->shared ? take_unmapped : take_gone;
    if (pass->rounds->tracker.kind == LM_DIRTY_USERFAULTFD && range->followed &&
        !(pass->work.flags & LM_LAST_VOID)) {
        while (!error && at < range->end) {
            size_t count;
            error = lm_dirty_changed(&pass->rounds->tracker, at, range->end, changes, RUNS, &count, &at);
            for (size_t i = 0; !error && i < count; i++)
                error = (changes[i].absent ? absent : lm_round_take)(&pass->work, changes[i].start,
                                                                     changes[i].end);
        }
        if (error != -EPERM)
            return error;
    }
    error = take_written(pass, range);
    return error ? error : take_absent(pass, range);
}

/* Others may write to shared memory too, such as a child that has ended by now, and no page table of this process shows
 * their writes. What was sent of it is good only if it still reads the same. */
static int compare_shared(struct lm_round_work *work, const struct lm_round_range *range) {
    int error = lm_round_flush(work);
    if (!error)
        error = each_run(work, range->start, range->end, LM_PAGE_SENT, LM_PAGE_SENT, 0xff, lm_round_compare);
    return error;
}

static struct pass begin_pass(struct lm_rounds *rounds, uint32_t id, struct lm_round_result *result) {
    memset(result, 0, sizeof *result);
    return (struct pass){.rounds = rounds,
                         .work = {.client = rounds->client,
                                  .reader = rounds->reader,
                                  .history = &rounds->history,
                                  .id = id,
                                  .result = result}};
}

int lm_rounds_round(struct lm_rounds *rounds, uint32_t id, uint32_t number, uint64_t deadline_ns,
                    struct lm_round_result *result) {
    struct pass pass = begin_pass(rounds, id, result);
    struct lm_round_work *work = &pass.work;
    int error = 0;
    work->number = number;
    pass.deadline_ns = deadline_ns;
    if (rounds->tracker.kind == LM_DIRTY_SOFT)
        error = take_collected(&pass);
    size_t first = rounds->cut_number == number ? rounds->cut_range : 0;
    for (size_t i = first; !error && !result->cut && i < rounds->range_count; i++) {
        const struct lm_round_range *range = &rounds->ranges[i];
        error = begin_range(work, range);
        if (!error && rounds->tracker.kind == LM_DIRTY_USERFAULTFD)
            error = take_written(&pass, range);
        if (!error && !result->cut && number == 1 && range->followed)
            error = take_absent(&pass, range);
        if (!error && !result->cut)
            error = each_run(work, range->start, range->end, LM_PAGE_PENDING, LM_PAGE_PENDING,
                             number & LM_PAGE_ROUND, lm_round_send_rested);
    }
    if (!result->cut)
        rounds->cut_number = 0;
    int flushed = lm_round_flush(work);
    return error ? error : flushed;
}

int lm_rounds_arm(struct lm_rounds *rounds) {
    struct lm_page_run runs[RUNS];
    for (size_t i = 0; i < rounds->range_count; i++) {
        const struct lm_round_range *range = &rounds->ranges[i];
        for (uint64_t at = range->start; range->followed && at < range->end;) {
            size_t count;
            int error = lm_dirty_written(&rounds->tracker, at, range->end, range->shared, true, runs, RUNS,
                                         &count, &at);
            if (error == -EPERM)
                break;
            if (error)
                return error;
        }
    }
    return 0;
}

static int count_written(struct lm_rounds *rounds, const struct lm_round_range *range, uint64_t *pages,
                         struct lm_page_run *kept, size_t capacity, size_t *held) {
    struct lm_page_run runs[RUNS];
    for (uint64_t at = range->start; range->followed && at < range->end;) {
        size_t count;
        int error =
            lm_dirty_written(&rounds->tracker, at, range->end, range->shared, false, runs, RUNS, &count, &at);
        if (error == -EPERM)
            return 0; /* another mapping by now: the next round sees it */
        if (error)
            return error;
        for (size_t i = 0; i < count; i++) {
            *pages += (runs[i].end - runs[i].start) / LM_PAGE_SIZE;
            if (*held < capacity)
                kept[(*held)++] = runs[i];
        }
    }
    return 0;
}

int lm_rounds_dirty(struct lm_rounds *rounds, uint64_t *pages) {
    size_t held = 0;
    *pages = 0;
    for (size_t i = 0; i < rounds->range_count; i++) {
        int error = count_written(rounds, &rounds->ranges[i], pages, NULL, 0, &held);
        if (error)
            return error;
    }
    for (size_t i = 0; i < rounds->history.size; i++)
        *pages += rounds->history.chunks[i] ? rounds->history.chunks[i]->pending : 0;
    for (size_t i = 0; i < rounds->collected.count; i++)
        *pages += (rounds->collected.runs[i].end - rounds->collected.runs[i].start) / LM_PAGE_SIZE;
    return 0;
}

int lm_rounds_hot(struct lm_rounds *rounds, struct lm_page_run *runs, size_t capacity, size_t *count) {
    uint64_t pages = 0;
    int error = 0;
    *count = 0;
    for (size_t i = 0; !error && i < rounds->range_count && *count < capacity; i++)
        error = count_written(rounds, &rounds->ranges[i], &pages, runs, capacity, count);
    return error;
}

int lm_rounds_last(struct lm_rounds *rounds, uint32_t id, uint32_t flags, struct lm_round_result *result) {
    struct pass pass = begin_pass(rounds, id, result);
    struct lm_round_work *work = &pass.work;
    work->flags = flags;
    int error = take_collected(&pass);
    for (size_t i = 0; !error && i < rounds->range_count; i++) {
        const struct lm_round_range *range = &rounds->ranges[i];
        error = begin_range(work, range);
        if (!error)
            error = take_changed(&pass, range);
        if (!error && range->shared)
            error = compare_shared(work, range);
        if (!error)
            error = each_run(work, range->start, range->end, LM_PAGE_PENDING, LM_PAGE_PENDING, 0xff,
                             lm_round_take);
    }
    int flushed = lm_round_flush(work);
    return error ? error : flushed;
}
