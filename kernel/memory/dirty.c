#define _GNU_SOURCE
#include "kernel/memory/dirty.h"

#include "kernel/kernel.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BATCH = 512, ARM_PAGES = 2048 };

int lm_dirty_handshake(int userfaultfd) {
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};

    return ioctl(userfaultfd, UFFDIO_API, &api) == 0 ? 0 : -errno;
}

int lm_dirty_watch(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end) {
    struct uffdio_register range = {.range = {.start = start, .len = end - start},
                                    .mode = UFFDIO_REGISTER_MODE_WP};

    if (tracker->kind != LM_DIRTY_USERFAULTFD)
        return 0;
    return ioctl(tracker->control, UFFDIO_REGISTER, &range) == 0 ? 0 : -errno;
}

static int scan(const struct lm_dirty_tracker *tracker, struct lm_pagemap_scan *request,
                struct lm_page_run *runs, size_t capacity, size_t *count, uint64_t *looked) {
    struct lm_page_region regions[BATCH];
    int found = 0;

    request->size = sizeof *request;
    request->vec = (uint64_t)(uintptr_t)regions;
    request->vec_len = capacity < BATCH ? capacity : BATCH;
    request->return_mask = LM_PAGE_IS_WRITTEN;
    *count = 0;
    *looked = request->start;
    found = ioctl(tracker->pagemap, LM_PAGEMAP_SCAN, request);
    if (found < 0)
        return -errno;
    if (!lm_pagemap_has_memory(tracker->pagemap))
        return -ESRCH;
    for (int i = 0; i < found; i++)
        runs[i] = (struct lm_page_run){regions[i].start, regions[i].end};
    *count = (size_t)found;
    *looked = request->walk_end;
    return 0;
}

/* Without PAGEMAP_SCAN: entry by entry. */
static int entries(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end, int which,
                   struct lm_page_run *runs, size_t capacity, size_t *count, uint64_t *looked) {
    int error = lm_pagemap_entries(tracker->pagemap, start, end, which, runs, capacity, count, looked);

    return error == -ENODATA ? -ESRCH : error;
}

int lm_dirty_written(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end, bool shared,
                     bool arm, struct lm_page_run *runs, size_t capacity, size_t *count, uint64_t *looked) {
    struct lm_pagemap_scan request = {
        .flags = LM_PM_SCAN_CHECK_WPASYNC | (arm ? LM_PM_SCAN_WP_MATCHING : 0),
        .start = start,
        .end = end,
        /* Armed pages are read soon after, so that they are seldom written to in between. */
        .max_pages = arm ? ARM_PAGES : 0,
        .category_mask = LM_PAGE_IS_WRITTEN,
        .category_anyof_mask = shared ? 0 : LM_PAGE_IS_PRESENT | LM_PAGE_IS_SWAPPED,
    };

    if (tracker->kind == LM_DIRTY_SOFT)
        return entries(tracker, start, end, LM_PAGES_SOFT_DIRTY, runs, capacity, count, looked);
    return scan(tracker, &request, runs, capacity, count, looked);
}

int lm_dirty_absent(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end,
                    struct lm_page_run *runs, size_t capacity, size_t *count, uint64_t *looked) {
    struct lm_pagemap_scan request = {
        .start = start,
        .end = end,
        .category_inverted = LM_PAGE_IS_PRESENT | LM_PAGE_IS_SWAPPED,
        .category_mask = LM_PAGE_IS_PRESENT | LM_PAGE_IS_SWAPPED,
    };

    if (tracker->kind == LM_DIRTY_SOFT)
        return entries(tracker, start, end, LM_PAGES_ABSENT, runs, capacity, count, looked);
    return scan(tracker, &request, runs, capacity, count, looked);
}

int lm_dirty_changed(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end,
                     struct lm_page_change *changes, size_t capacity, size_t *count, uint64_t *looked) {
    struct lm_page_region regions[BATCH];
    const uint64_t there = LM_PAGE_IS_PRESENT | LM_PAGE_IS_SWAPPED;
    struct lm_pagemap_scan request = {
        .size = sizeof request,
        .flags = LM_PM_SCAN_CHECK_WPASYNC,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)regions,
        .vec_len = capacity < BATCH ? capacity : BATCH,
        /* Written to, or not present. What is in swap comes along, and is sorted out below. WRITTEN alone,
         * for which the kernel has a shorter way, does not tell of a dropped huge page, or of a page table
         * that is gone, on most kernels (pagemap_scan_pte_hole). */
        .category_inverted = LM_PAGE_IS_PRESENT,
        .category_anyof_mask = LM_PAGE_IS_WRITTEN | LM_PAGE_IS_PRESENT,
        .return_mask = LM_PAGE_IS_WRITTEN | there,
    };

    *count = 0;
    *looked = start;
    int found = ioctl(tracker->pagemap, LM_PAGEMAP_SCAN, &request);
    if (found < 0)
        return -errno;
    for (int i = 0; i < found; i++) {
        bool absent = !(regions[i].categories & there);
        if (absent || regions[i].categories & LM_PAGE_IS_WRITTEN)
            changes[(*count)++] = (struct lm_page_change){regions[i].start, regions[i].end, absent};
    }
    *looked = request.walk_end;
    return 0;
}

int lm_dirty_clear(const struct lm_dirty_tracker *tracker) {
    if (tracker->kind != LM_DIRTY_SOFT)
        return -EINVAL;
    return pwrite(tracker->control, "4", 1, 0) == 1 ? 0 : -errno;
}
