/*
 * Which pages of a running process have been written to: by a userfaultfd that protects pages against writing
 * and lets writers through (UFFD_FEATURE_WP_ASYNC, read and armed by PAGEMAP_SCAN in one step), else by the
 * soft-dirty bits of /proc/PID/pagemap, which /proc/PID/clear_refs clears.
 * Documentation/admin-guide/mm/{userfaultfd,pagemap,soft-dirty}.rst.
 *
 * Soft-dirty bits are read and cleared in two steps, between which the process must stand still. They say
 * nothing reliable of shared memory, whose entries the kernel may drop at any time.
 */
#ifndef LM_KERNEL_DIRTY_H
#define LM_KERNEL_DIRTY_H

#include "kernel/memory/pagemap.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define LM_DIRTY_USERFAULTFD 1
#define LM_DIRTY_SOFT 2

/* `control` is the userfaultfd, made in the process, or an open /proc/PID/clear_refs. */
struct lm_dirty_tracker {
    int kind;
    int pagemap;
    int control;
};

/* The handshake of a userfaultfd for tracking writes. 0 or -errno: -EINVAL when the kernel cannot. */
int lm_dirty_handshake(int userfaultfd);

/* Begin to follow [start, end); harmless if it is followed already. What is new there counts as written. 0
 * or -errno: not all of it is mapped, or something else pages it. */
int lm_dirty_watch(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end);

/* Runs of pages of [start, end) that are there, or in swap, and were written to since they were armed last;
 * in `shared` memory those that are not there too. `arm` them again in the same step (not SOFT). At most
 * `capacity` runs, `*count` of them; everything below `*looked` has been scanned. 0 or -errno: -EPERM when
 * a part is not followed: then what was armed on the way is not told, and all of [start, end) counts as
 * written. */
int lm_dirty_written(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end, bool shared,
                     bool arm, struct lm_page_run *runs, size_t capacity, size_t *count, uint64_t *looked);

/* Runs of pages that are neither there nor in swap. */
int lm_dirty_absent(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end,
                    struct lm_page_run *runs, size_t capacity, size_t *count, uint64_t *looked);

/* Both of them in one scan (not SOFT): no page comes twice. In shared memory, the pages that the process does not
 * have mapped at present count as absent. */
struct lm_page_change {
    uint64_t start;
    uint64_t end;
    uint64_t absent; /* 1; 0: written to */
};
int lm_dirty_changed(const struct lm_dirty_tracker *tracker, uint64_t start, uint64_t end,
                     struct lm_page_change *changes, size_t capacity, size_t *count, uint64_t *looked);

/* SOFT: arm all pages of the process. 0 or -errno. */
int lm_dirty_clear(const struct lm_dirty_tracker *tracker);
/* cffi: end */

#endif
