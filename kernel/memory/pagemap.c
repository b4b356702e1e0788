#define _GNU_SOURCE
#include "kernel/memory/pagemap.h"

#include "kernel/kernel.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BATCH = 512, PAGE = 4096 };

/* Bits of an entry. */
static const uint64_t ENTRY_PRESENT = UINT64_C(1) << 63;
static const uint64_t ENTRY_SWAPPED = UINT64_C(1) << 62;
static const uint64_t ENTRY_FILE = UINT64_C(1) << 61;
static const uint64_t ENTRY_SOFT_DIRTY = UINT64_C(1) << 55;

bool lm_pagemap_has_memory(int pagemap) {
    uint64_t entry;
    return pread(pagemap, &entry, sizeof entry, 0) != 0;
}

static int scan(int pagemap, uint64_t start, uint64_t end, int which, struct lm_page_run *runs,
                size_t capacity, size_t *count, uint64_t *looked) {
    struct lm_page_region regions[BATCH];
    struct lm_pagemap_scan request = {
        .size = sizeof request,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)regions,
        .vec_len = capacity < BATCH ? capacity : BATCH,
        .category_anyof_mask = LM_PAGE_IS_PRESENT | LM_PAGE_IS_SWAPPED,
        .return_mask = LM_PAGE_IS_PRESENT,
    };
    int found = 0;

    if (which == LM_PAGES_CHANGED) {
        request.category_inverted = LM_PAGE_IS_FILE;
        request.category_mask = LM_PAGE_IS_FILE;
    }
    found = ioctl(pagemap, LM_PAGEMAP_SCAN, &request);
    if (found < 0)
        return -errno;
    if (!lm_pagemap_has_memory(pagemap))
        return -ENODATA;
    for (int i = 0; i < found; i++)
        runs[i] = (struct lm_page_run){regions[i].start, regions[i].end};
    *count = (size_t)found;
    *looked = request.walk_end;
    return 0;
}

int lm_pagemap_guards(int pagemap, uint64_t start, uint64_t end, struct lm_page_run *run) {
    struct lm_page_region region;
    struct lm_pagemap_scan request = {
        .size = sizeof request,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)&region,
        .vec_len = 1,
        .category_mask = LM_PAGE_IS_GUARD,
        .return_mask = LM_PAGE_IS_GUARD,
    };
    int found = ioctl(pagemap, LM_PAGEMAP_SCAN, &request);

    if (found < 0)
        return -errno;
    *run = found ? (struct lm_page_run){region.start, region.end} : (struct lm_page_run){end, end};
    return 0;
}

static bool is_wanted(uint64_t entry, int which) {
    bool there = (entry & (ENTRY_PRESENT | ENTRY_SWAPPED)) != 0;

    switch (which) {
    case LM_PAGES_ABSENT:
        return !there;
    case LM_PAGES_SOFT_DIRTY:
        return there && (entry & ENTRY_SOFT_DIRTY) != 0;
    case LM_PAGES_CHANGED:
        return there && (entry & ENTRY_FILE) == 0;
    default:
        return there;
    }
}

int lm_pagemap_entries(int pagemap, uint64_t start, uint64_t end, int which, struct lm_page_run *runs,
                       size_t capacity, size_t *count, uint64_t *looked) {
    uint64_t entries[BATCH];
    uint64_t pages = (end - start) / PAGE;
    size_t wanted = pages < BATCH ? (size_t)pages : BATCH;
    ssize_t length =
        pread(pagemap, entries, wanted * sizeof *entries, (off_t)(start / PAGE * sizeof *entries));

    if (length < 0)
        return -errno;
    if (length < (ssize_t)sizeof *entries)
        return -ENODATA;
    *count = 0;
    *looked = start;
    for (size_t i = 0; i < (size_t)length / sizeof *entries; i++) {
        uint64_t address = start + i * PAGE;

        if (is_wanted(entries[i], which)) {
            if (*count > 0 && runs[*count - 1].end == address)
                runs[*count - 1].end += PAGE;
            else if (*count == capacity)
                return 0;
            else
                runs[(*count)++] = (struct lm_page_run){address, address + PAGE};
        }
        *looked = address + PAGE;
    }
    return 0;
}

int lm_pagemap_runs(int pagemap, uint64_t start, uint64_t end, int which, struct lm_page_run *runs,
                    size_t capacity, size_t *count, uint64_t *looked) {
    int error = 0;

    *count = 0;
    if (start % PAGE != 0 || end % PAGE != 0 || start >= end || capacity == 0)
        return -EINVAL;
    error = scan(pagemap, start, end, which, runs, capacity, count, looked);
    if (error == -ENOTTY || error == -EINVAL)
        error = lm_pagemap_entries(pagemap, start, end, which, runs, capacity, count, looked);
    return error;
}
