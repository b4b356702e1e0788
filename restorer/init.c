/*
 * Process 1 of a PID namespace made for one moved process: mounts the namespace's /proc, says that it is
 * ready, reaps, and ends when the moved process ends.
 *
 * Arguments: the inner id of the moved process, and a connected SOCK_SEQPACKET socket. We write one byte there when
 * /proc has been mounted (1, or 0 if it could not be). The moved process is a child of its maker, outside, and as an
 * orphan it falls to a reaper of its parent's namespace, never to us. So its maker says with one byte that it exists,
 * and we watch it by a pidfd. When the maker has reaped it, it sends the wait status (4 bytes, in the host's order). A
 * maker that closes the socket leaves the watching to us; if the moved process is not there then, nobody needs us. The
 * exit status is the moved process's own, or 128 + the signal that ended it, or 0 if nobody has told us.
 */
#include "kernel/arch/freestanding.h"

#include <poll.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/types.h>

enum {
    NO_HANG = 1,
    ALL_CHILDREN = 0x40000000,
    SIGCHLD_MASK = 1 << (17 - 1),
    SIGNAL_BITS = 0x7f,
    STATUS_SHIFT = 8,
    SIGNAL_EXIT_BASE = 128,
    STATUS_SIZE = 4,
    STATUS_WAIT_MS = 1000,
    SIGNAL_SET_SIZE = 8,
    SIGNAL_INFO_SIZE = 128,
};

static int parse(const char *text) {
    int value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

static int mount_proc(void) {
    if (lm_call(SYS_mount, (long)"none", (long)"/", 0, MS_REC | MS_PRIVATE, 0) != 0)
        return 0;
    return lm_call(SYS_mount, (long)"proc", (long)"/proc", (long)"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC,
                   0) == 0;
}

static void leave(int status) {
    if (status & SIGNAL_BITS)
        lm_call(SYS_exit_group, SIGNAL_EXIT_BASE + (status & SIGNAL_BITS), 0, 0, 0, 0);
    lm_call(SYS_exit_group, (status >> STATUS_SHIFT) & 0xff, 0, 0, 0, 0);
}

/* Reap whoever has died. */
static void reap(void) {
    while (lm_call(SYS_wait4, -1, 0, NO_HANG | ALL_CHILDREN, 0, 0) > 0)
        continue;
}

/* Read what the maker says: that the moved process exists, how it has ended, or nothing any more. */
static void hear(int moved, struct pollfd *maker, struct pollfd *watched) {
    int status = 0;
    long length = lm_call(SYS_read, maker->fd, (long)&status, STATUS_SIZE, 0, 0);

    if (length == STATUS_SIZE)
        leave(status);
    if (length <= 0)
        maker->fd = -1;
    if (watched->fd < 0)
        watched->fd = (int)lm_call(SYS_pidfd_open, moved, 0, 0, 0, 0);
    if (length <= 0 && watched->fd < 0)
        leave(0);
}

void lm_main(const long *stack) {
    const char **arguments = (const char **)(stack + 1);
    int moved = parse(arguments[1]);
    uint64_t child_died = SIGCHLD_MASK;
    struct pollfd sources[3] = {{.events = POLLIN}, {.fd = -1, .events = POLLIN}, {.events = POLLIN}};
    struct pollfd *maker = &sources[0];
    struct pollfd *watched = &sources[1];
    struct pollfd *children = &sources[2];
    char ready = 0;

    maker->fd = parse(arguments[2]);
    lm_call(SYS_rt_sigprocmask, 0, (long)&child_died, 0, SIGNAL_SET_SIZE, 0);
    children->fd = (int)lm_call(SYS_signalfd4, -1, (long)&child_died, SIGNAL_SET_SIZE, 0, 0);
    ready = (char)mount_proc();
    lm_call(SYS_write, maker->fd, (long)&ready, 1, 0, 0);
    for (;;) {
        char information[SIGNAL_INFO_SIZE];

        lm_call(SYS_poll, (long)sources, 3, -1, 0, 0);
        if (children->revents) {
            lm_call(SYS_read, children->fd, (long)information, sizeof information, 0, 0);
            reap();
        }
        if (maker->revents)
            hear(moved, maker, watched);
        else if (watched->revents) {
            /* The maker may be gone while somebody still holds its socket, so the wait for it is short. */
            if (lm_call(SYS_poll, (long)maker, 1, STATUS_WAIT_MS, 0, 0) == 1)
                hear(moved, maker, watched);
            leave(0);
        }
    }
}
