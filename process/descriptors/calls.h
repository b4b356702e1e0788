#ifndef LM_PROCESS_DESCRIPTOR_CALLS_H
#define LM_PROCESS_DESCRIPTOR_CALLS_H
/* System calls on descriptors that Python 3.11 lacks. Every function returns its result or -errno. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>

/* cffi: begin */
/* tee(2): the content of pipe `from` appears in pipe `to` as well, without being consumed. */
long lm_tee(int from, int to, unsigned long length);
/* F_GETOWN_EX and F_GETSIG: who gets a signal when the descriptor is ready, and which: type, id, signal.
 */
int lm_get_owner(int number, int *owner);
/* signalfd(2) for the signals in `mask`, bit 0 for signal 1. */
int lm_signalfd(unsigned long mask, int flags);

/* timerfd_create(2). Times are nanoseconds; `flags` those of timerfd_settime. */
int lm_timerfd_create(int clock, int flags);
int lm_timerfd_set(int number, int flags, long value, long interval);
/* The state at one moment: expirations not read yet, time left (1 for a timer that is due, 0 for one that is not
 * armed), and what CLOCK_MONOTONIC and CLOCK_REALTIME said then or a little later. */
typedef struct {
    unsigned long ticks;
    long value, interval, monotonic, wall;
} lm_timerfd_state;
int lm_timerfd_get(int number, lm_timerfd_state *state);
/* TFD_IOC_SET_TICKS: expirations that have not been read yet. Needs CONFIG_CHECKPOINT_RESTORE. */
int lm_timerfd_set_ticks(int number, unsigned long ticks);

/* Whether it is a message queue of mq_overview(7), by its file system. */
int lm_is_message_queue(int number);

/* inotify(7) */
int lm_inotify_init(int flags);
int lm_inotify_add(int number, const char *path, unsigned int mask);
int lm_inotify_remove(int number, int watch);
/* open_by_handle_at(2) with O_PATH: the file with that handle, on the file system of `mount`. */
int lm_open_handle(int mount, int type, const void *handle, unsigned int length);

/* epoll_ctl(2): writes a struct epoll_event to `event`, which has room for 16 bytes, and returns its size. */
int lm_pack_epoll_event(unsigned int events, unsigned long data, char *event);
/* fcntl(2): the same for struct f_owner_ex. */
int lm_pack_owner(int type, int id, char *owner);
/* fcntl(2), F_SETLK and F_OFD_SETLK: the same for struct flock, with room for 32 bytes. */
int lm_pack_lock(int type, long start, long length, char *lock);
/* cffi: end */

#if 0
/* cffi: begin */
#define F_OWNER_TID ...
#define F_OWNER_PID ...
#define F_OWNER_PGRP ...
#define F_SETOWN_EX ...
#define F_SETSIG ...
#define F_OFD_SETLK ...
#define TFD_TIMER_ABSTIME ...
#define TFD_TIMER_CANCEL_ON_SET ...
#define TFD_NONBLOCK ...
#define TFD_CLOEXEC ...
/* cffi: end */
#endif
#endif
