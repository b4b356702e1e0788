#include "process/descriptors/calls.h"

#include <errno.h>
#include <string.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define NANOSECONDS 1000000000L

static int result_or_errno(long result) {
    return result < 0 ? -errno : (int)result;
}

long lm_tee(int from, int to, unsigned long length) {
    long copied = tee(from, to, length, SPLICE_F_NONBLOCK);

    return copied < 0 ? -errno : copied;
}

int lm_get_owner(int number, int *found) {
    struct f_owner_ex owner;

    if (fcntl(number, F_GETOWN_EX, &owner) < 0)
        return -errno;
    found[0] = owner.type;
    found[1] = owner.pid;
    found[2] = fcntl(number, F_GETSIG);
    return found[2] < 0 ? -errno : 0;
}

int lm_signalfd(unsigned long mask, int flags) {
    /* The kernel's signal set, not the C library's (signalfd(2), C library/kernel differences). */
    uint64_t set = mask;

    return result_or_errno(syscall(SYS_signalfd4, -1, &set, sizeof(set), flags));
}

int lm_timerfd_create(int clock, int flags) {
    return result_or_errno(timerfd_create(clock, flags));
}

int lm_timerfd_set(int number, int flags, long value, long interval) {
    struct itimerspec times = {.it_interval = {interval / NANOSECONDS, interval % NANOSECONDS},
                               .it_value = {value / NANOSECONDS, value % NANOSECONDS}};

    return result_or_errno(timerfd_settime(number, flags, &times, NULL));
}

static long nanoseconds(const struct timespec *time) {
    return time->tv_sec * NANOSECONDS + time->tv_nsec;
}

/* The expirations and the time left that fdinfo shows (proc_pid_fdinfo(5)), in the order in which it is written. */
static int read_timer_information(int information, unsigned long *ticks, long *value) {
    char text[1024];
    long seconds, rest;
    ssize_t length = pread(information, text, sizeof(text) - 1, 0);

    if (length < 0)
        return -errno;
    text[length] = 0;
    const char *ticks_line = strstr(text, "\nticks: "), *value_line = strstr(text, "\nit_value: (");
    if (!ticks_line || !value_line || sscanf(ticks_line, "\nticks: %lu", ticks) != 1 ||
        sscanf(value_line, "\nit_value: (%ld, %ld)", &seconds, &rest) != 2)
        return -ENODATA;
    *value = seconds * NANOSECONDS + rest;
    return 0;
}

/*
 * The kernel does not tell expirations and time left together. What it does: an interval timer that goes off
 * stands still until it is read or asked (timerfd_gettime(2) counts what was missed, and sets it going again).
 * So after one such call it goes off once at most, and expirations that were read before a time that is not 0
 * belong to it.
 */
int lm_timerfd_get(int number, lm_timerfd_state *state) {
    enum { ATTEMPTS = 64, PATIENT = 32 };
    char path[64];
    struct itimerspec times;
    struct timespec now;
    unsigned long before, after;
    long value, first;
    int result = 0;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", number);
    int information = open(path, O_RDONLY | O_CLOEXEC);
    if (information < 0)
        return -errno;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        if (timerfd_gettime(number, &times) < 0) {
            result = -errno;
            break;
        }
        if ((result = read_timer_information(information, &before, &first)) < 0 ||
            (result = read_timer_information(information, &after, &value)) < 0)
            break;
        clock_gettime(CLOCK_MONOTONIC, &now);
        state->monotonic = nanoseconds(&now);
        clock_gettime(CLOCK_REALTIME, &now);
        state->wall = nanoseconds(&now);
        state->interval = nanoseconds(&times.it_interval);
        state->ticks = before;
        state->value = value;
        if (value > 0)
            break;
        if (!state->interval) {
            /* It has gone off, or is about to in these microseconds, or was never armed. */
            result = read_timer_information(information, &state->ticks, &first);
            break;
        }
        state->ticks = after;
        state->value = 1;
        if (attempt >= PATIENT && after == before + 1) {
            /* So fast that it always goes off meanwhile: it just has, and the next time is one interval away. */
            state->value = state->interval;
            break;
        }
    }
    close(information);
    return result;
}

int lm_timerfd_set_ticks(int number, unsigned long ticks) {
    uint64_t value = ticks;

    /* TFD_IOC_SET_TICKS of linux/timerfd.h, which clashes with the C library's sys/timerfd.h. */
    return result_or_errno(ioctl(number, _IOW('T', 0, uint64_t), &value));
}

int lm_is_message_queue(int number) {
    enum { MQUEUE_MAGIC = 0x19800202 }; /* of the kernel's ipc/mqueue.c */
    struct statfs found;

    if (fstatfs(number, &found) < 0)
        return -errno;
    return found.f_type == MQUEUE_MAGIC;
}

int lm_inotify_init(int flags) {
    return result_or_errno(inotify_init1(flags));
}

int lm_inotify_add(int number, const char *path, unsigned int mask) {
    return result_or_errno(inotify_add_watch(number, path, mask));
}

int lm_inotify_remove(int number, int watch) {
    return result_or_errno(inotify_rm_watch(number, watch));
}

int lm_open_handle(int mount, int type, const void *handle, unsigned int length) {
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } copy = {.handle = {.handle_bytes = length, .handle_type = type}};

    if (length > MAX_HANDLE_SZ)
        return -EINVAL;
    memcpy(copy.handle.f_handle, handle, length);
    return result_or_errno(open_by_handle_at(mount, &copy.handle, O_PATH | O_CLOEXEC));
}

int lm_pack_epoll_event(unsigned int events, unsigned long data, char *event) {
    struct epoll_event packed = {.events = events, .data.u64 = data};

    _Static_assert(sizeof(packed) <= 16, "room for struct epoll_event");
    memcpy(event, &packed, sizeof(packed));
    return sizeof(packed);
}

int lm_pack_owner(int type, int id, char *owner) {
    struct f_owner_ex packed = {.type = type, .pid = id};

    _Static_assert(sizeof(packed) <= 16, "room for struct f_owner_ex");
    memcpy(owner, &packed, sizeof(packed));
    return sizeof(packed);
}

int lm_pack_lock(int type, long start, long length, char *lock) {
    struct flock packed = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};

    _Static_assert(sizeof(packed) <= 32, "room for struct flock");
    memcpy(lock, &packed, sizeof(packed));
    return sizeof(packed);
}
