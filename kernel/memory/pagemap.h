/*
 * /proc/PID/pagemap: which pages of a range exist, found by PAGEMAP_SCAN where the kernel has it (Linux 6.7),
 * else by reading an entry for each page. Documentation/admin-guide/mm/pagemap.rst.
 */
#ifndef LM_KERNEL_PAGEMAP_H
#define LM_KERNEL_PAGEMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* Pages that are in memory or in swap. */
#define LM_PAGES_PRESENT 1
/* Of these only the anonymous ones: in a private file mapping, pages that differ from the file. */
#define LM_PAGES_CHANGED 2
/* Only lm_pagemap_entries knows these: pages that were written to since their soft-dirty bits were cleared
 * (Documentation/admin-guide/mm/soft-dirty.rst), and those that are neither in memory nor in swap. */
#define LM_PAGES_SOFT_DIRTY 3
#define LM_PAGES_ABSENT 4

/* Addresses in bytes, [start, end). */
struct lm_page_run {
    uint64_t start;
    uint64_t end;
};

/* The runs of such pages in [start, end), at most `capacity` of them. `*looked` is the address up to which the range
 * was scanned: go on from there until it is `end`. `pagemap` is an open /proc/PID/pagemap. 0 or -errno:
 * -ENODATA when the process has no memory any more. */
int lm_pagemap_runs(int pagemap, uint64_t start, uint64_t end, int which, struct lm_page_run *runs,
                    size_t capacity, size_t *count, uint64_t *looked);

/* The same without PAGEMAP_SCAN. */
int lm_pagemap_entries(int pagemap, uint64_t start, uint64_t end, int which, struct lm_page_run *runs,
                       size_t capacity, size_t *count, uint64_t *looked);

/* The first run of guards (MADV_GUARD_INSTALL) in [start, end), empty at `end` if there are none. 0 or -errno:
 * -EINVAL or -ENOTTY from a kernel that does not tell (before Linux 6.15). */
int lm_pagemap_guards(int pagemap, uint64_t start, uint64_t end, struct lm_page_run *run);
/* cffi: end */

/* Whether the process still has its memory. PAGEMAP_SCAN does not look (fs/proc/task_mmu.c, do_pagemap_scan) and says of a
 * dead one that no page is there, and none was written to; a read tells. Memory never comes back: what was scanned before
 * this was there. */
bool lm_pagemap_has_memory(int pagemap);

#endif
