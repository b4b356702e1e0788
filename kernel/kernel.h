/*
 * Constants and structures of the kernel that Debian 12's headers (Linux 6.1) lack, defined once. Whether the
 * running kernel has them is found by trying (kernel/probe.py), never by its version.
 *
 * Sources: include/uapi/linux/{fs,userfaultfd,prctl,sched,ptrace}.h and
 * arch/x86/entry/syscalls/syscall_64.tbl of Linux 6.12.
 */
#ifndef LM_KERNEL_KERNEL_H
#define LM_KERNEL_KERNEL_H

#include <linux/fs.h>
#include <linux/ioctl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

/* userfaultfd(2), ioctl_userfaultfd(2) */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFDIO_POISON
struct uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC 0xAA
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* PAGEMAP_SCAN: Documentation/admin-guide/mm/pagemap.rst. The names are ours, so that newer headers do not
 * clash. */
struct lm_page_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};
struct lm_pagemap_scan {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};
_Static_assert(sizeof(struct lm_page_region) == 24, "struct page_region");
_Static_assert(sizeof(struct lm_pagemap_scan) == 96, "struct pm_scan_arg");
#define LM_PAGEMAP_SCAN _IOWR('f', 16, struct lm_pagemap_scan)
#ifdef PAGEMAP_SCAN
_Static_assert(LM_PAGEMAP_SCAN == PAGEMAP_SCAN, "PAGEMAP_SCAN");
#endif
enum {
    LM_PAGE_IS_WPALLOWED = 1 << 0,
    LM_PAGE_IS_WRITTEN = 1 << 1,
    LM_PAGE_IS_FILE = 1 << 2,
    LM_PAGE_IS_PRESENT = 1 << 3,
    LM_PAGE_IS_SWAPPED = 1 << 4,
    LM_PAGE_IS_PFNZERO = 1 << 5,
    LM_PAGE_IS_HUGE = 1 << 6,
    LM_PAGE_IS_SOFT_DIRTY = 1 << 7,
    LM_PAGE_IS_GUARD = 1 << 8,
    LM_PM_SCAN_WP_MATCHING = 1 << 0,
    LM_PM_SCAN_CHECK_WPASYNC = 1 << 1,
};

/* prctl(2) */
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef PR_TIMER_CREATE_RESTORE_IDS
#define PR_TIMER_CREATE_RESTORE_IDS 77
#endif

/* Structures whose size is part of the interface (clone3(2), prctl(2) PR_SET_MM_MAP). */
_Static_assert(sizeof(struct clone_args) == 88, "struct clone_args");
_Static_assert(sizeof(struct prctl_mm_map) == 104, "struct prctl_mm_map");
_Static_assert(sizeof(struct uffd_msg) == 32, "struct uffd_msg");

#endif
