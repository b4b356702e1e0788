#ifndef LM_KERNEL_PIDFD_H
#define LM_KERNEL_PIDFD_H
#include <linux/kcmp.h>
#include <stddef.h>

/* File descriptors that stand for processes, and comparing what two processes hold. Every function returns
 * its result or -errno. */

/* cffi: begin */
int lm_pidfd_open(int pid, unsigned int flags);
int lm_pidfd_getfd(int pidfd, int number);
int lm_pidfd_send_signal(int pidfd, int signal);
/* Whether a process is being ended, so that its memory may be going, page by page (the kernel's OOM reaper,
 * process_mrelease(2)): a page that is gone looks as if it had never been there. What was read or scanned before this said
 * 0 was right. 1 also for a process that has ended; 0 where the kernel cannot tell (before Linux 5.15). */
int lm_pidfd_is_ending(int pidfd);
/* tgkill(2): to one thread. */
int lm_send_to_thread(int pid, int tid, int signal);
/* kcmp(2): 0 the same, 1 less, 2 greater, 3 different without an order. */
int lm_kcmp(int first, int second, int type, unsigned long first_index, unsigned long second_index);
/* 1 if a process has a list of semaphores to be undone (SEM_UNDO of semop(2)), else 0. kcmp(2) compares it with that of a
 * child of ours, which has none: a process that has threads, as ours may, has a list, too. */
int lm_has_undo_list(int pid);
/* Number the open files of which `numbers` are descriptors of this process, in the order that the kernel has for them:
 * `places` gets, for each, one and the same for one and the same open file. It takes one call for each that stands in
 * that order already. 0 or -errno. */
int lm_number_open_files(const int *numbers, size_t count, int *places);
/* KCMP_EPOLL_TFD: is descriptor `number` of process `first` the file that epoll instance `epoll` of process
 * `second` watches under the number `target`, as the `offset`th of that number? */
int lm_kcmp_epoll_target(int first, int second, int number, int epoll, int target, int offset);
/* cffi: end */

#if 0
/* cffi: begin */
#define KCMP_FILE ...
#define KCMP_VM ...
#define KCMP_FILES ...
#define KCMP_FS ...
#define KCMP_IO ...
#define KCMP_SYSVSEM ...
/* cffi: end */
#endif
#endif
