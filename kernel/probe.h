/*
 * What this kernel lets us do, found by trying (never by its version). Each function returns 0 when it works, else
 * -errno. None leaves anything behind.
 */
#ifndef LM_KERNEL_PROBE_H
#define LM_KERNEL_PROBE_H

/* cffi: begin */
/* A userfaultfd that sees faults of the kernel, by the system call; the same by /dev/userfaultfd. */
int lm_probe_userfaultfd(void);
int lm_probe_userfaultfd_device(void);

/* The pager's handshake with one of either kind; -ENOSYS when there is none. */
int lm_probe_userfaultfd_events(void);

/* Whether such a userfaultfd offers UFFD_FEATURE_WP_ASYNC and UFFD_FEATURE_WP_UNPOPULATED. */
int lm_probe_write_tracking(void);

/* Whether a page that has just been written to shows bit 55 in /proc/self/pagemap; -ENOSYS if not. */
int lm_probe_soft_dirty(void);

/* PAGEMAP_SCAN on our own memory. */
int lm_probe_pagemap_scan(void);

/* clone3(2) with set_tid: a kernel that lets us choose says that our own id is taken. */
int lm_probe_chosen_id(void);

/* unshare(2) of a PID and of a time namespace, in a process that ends at once. */
int lm_probe_pid_namespace(void);
int lm_probe_time_namespace(void);

/* pidfd_getfd(2) from a process like us, and kcmp(2). */
int lm_probe_descriptor_fetching(void);
int lm_probe_comparing(void);
/* cffi: end */

#endif
