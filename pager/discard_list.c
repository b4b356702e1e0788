#include "pager/discard_list.h"

#include <errno.h>
#include <stdlib.h>

enum { UNORDERED = 1 << 12 };

/* Does `next` stand behind `run`, so that both are in order and have nothing in common? */
static bool follows(const struct lm_discarded_run *run, const struct lm_discarded_run *next) {
    return run->source_space < next->source_space ||
           (run->source_space == next->source_space && run->end <= next->start);
}

/* Put a run behind the last one of `out`, into it if they are one. */
static void append(struct lm_discarded_run *out, size_t *count, struct lm_discarded_run run) {
    struct lm_discarded_run *last = *count ? &out[*count - 1] : NULL;
    if (last && last->source_space == run.source_space && last->end == run.start && last->gone == run.gone)
        last->end = run.end;
    else
        out[(*count)++] = run;
}

/* Two lists in order become one; where they overlap, the later one counts. `out` has room for twice as many. */
static size_t overlay(const struct lm_discarded_run *early, size_t earlies,
                      const struct lm_discarded_run *late, size_t lates, struct lm_discarded_run *out) {
    size_t count = 0, i = 0;
    struct lm_discarded_run left = early[0];
    for (size_t j = 0; j < lates;) {
        if (i == earlies || follows(&late[j], &left)) {
            append(out, &count, late[j++]);
        } else if (follows(&left, &late[j])) {
            append(out, &count, left);
            left = ++i < earlies ? early[i] : left;
        } else {
            struct lm_discarded_run before = left;
            before.end = late[j].start;
            if (before.start < before.end)
                append(out, &count, before);
            left.start = late[j].end;
            if (left.start >= left.end)
                left = ++i < earlies ? early[i] : left;
        }
    }
    for (; i < earlies; left = ++i < earlies ? early[i] : left)
        append(out, &count, left);
    return count;
}

/* The end of the stretch from `begin` on that is in order. */
static size_t stretch_end(const struct lm_discarded *list, size_t begin) {
    size_t end = begin + 1;
    while (end < list->count && follows(&list->runs[end - 1], &list->runs[end]))
        end++;
    return end;
}

int lm_discard_list_order(struct lm_discarded *list) {
    while (list->count && stretch_end(list, 0) < list->count) {
        size_t capacity = 2 * list->count, count = 0;
        struct lm_discarded_run *runs = malloc(capacity * sizeof *runs);
        if (!runs)
            return -ENOMEM;
        for (size_t begin = 0; begin < list->count;) {
            size_t middle = stretch_end(list, begin), end = middle;
            if (middle < list->count) {
                end = stretch_end(list, middle);
                count += overlay(list->runs + begin, middle - begin, list->runs + middle, end - middle,
                                 runs + count);
            } else {
                for (size_t i = begin; i < end; i++)
                    runs[count++] = list->runs[i];
            }
            begin = end;
        }
        free(list->runs);
        *list = (struct lm_discarded){
            .runs = runs, .count = count, .capacity = capacity, .ordered = list->ordered};
    }
    list->ordered = list->count;
    return 0;
}

int lm_discard_list_add(struct lm_discarded *list, const struct lm_discarded_run *run) {
    /* What has come since is put in order before it is more than what was in order. */
    if (list->count >= 2 * list->ordered + UNORDERED) {
        int error = lm_discard_list_order(list);
        if (error)
            return error;
    }
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        struct lm_discarded_run *runs = realloc(list->runs, capacity * sizeof *runs);
        if (!runs)
            return -ENOMEM;
        list->runs = runs;
        list->capacity = capacity;
    }
    list->runs[list->count++] = *run;
    return 0;
}
