/*
 * Process 1 of a PID namespace made for one moved process: mounts the namespace's /proc, says that it is
 * ready, reaps, and ends when the moved process ends.
 *
 * Arguments: the inner id of the moved process, and a connected socket. One byte is written there when /proc
 * has been mounted (1, or 0 when it could not be). The moved process is a child of whoever made it, outside:
 * that one sends its wait status (4 bytes, in the host's order) when it has reaped it, or closes the socket
 * and so leaves it to us, since an orphan falls to the process 1 of its own namespace (pid_namespaces(7)).
 * The exit status is the moved process's own, or 128 + the signal that ended it.
 */
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
    SIGNAL_SET_SIZE = 8,
    SIGNAL_INFO_SIZE = 128,
};

static long call(long number, long a, long b, long c, long d, long e) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result = number;

    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static int parse(const char *text) {
    int value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

static int mount_proc(void) {
    if (call(SYS_mount, (long)"none", (long)"/", 0, MS_REC | MS_PRIVATE, 0) != 0)
        return 0;
    return call(SYS_mount, (long)"proc", (long)"/proc", (long)"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0) ==
           0;
}

static void leave(int status) {
    if (status & SIGNAL_BITS)
        call(SYS_exit_group, SIGNAL_EXIT_BASE + (status & SIGNAL_BITS), 0, 0, 0, 0);
    call(SYS_exit_group, (status >> STATUS_SHIFT) & 0xff, 0, 0, 0, 0);
}

/* Reap whoever has died; leaves when it was the moved process. */
static void reap(int moved) {
    for (;;) {
        int status = 0;
        long pid = call(SYS_wait4, -1, (long)&status, NO_HANG | ALL_CHILDREN, 0, 0);

        if (pid <= 0)
            return;
        if (pid == moved)
            leave(status);
    }
}

__attribute__((used)) void run(const long *stack) {
    const char **arguments = (const char **)(stack + 1);
    int moved = parse(arguments[1]);
    uint64_t child_died = SIGCHLD_MASK;
    struct pollfd sources[2] = {{.events = POLLIN}, {.events = POLLIN}};
    char ready = 0;

    sources[0].fd = parse(arguments[2]);
    call(SYS_rt_sigprocmask, 0, (long)&child_died, 0, SIGNAL_SET_SIZE, 0);
    sources[1].fd = (int)call(SYS_signalfd4, -1, (long)&child_died, SIGNAL_SET_SIZE, 0, 0);
    ready = (char)mount_proc();
    call(SYS_write, sources[0].fd, (long)&ready, 1, 0, 0);
    for (;;) {
        char information[SIGNAL_INFO_SIZE];
        int status = 0;

        reap(moved);
        call(SYS_poll, (long)sources, 2, -1, 0, 0);
        if (sources[1].revents)
            call(SYS_read, sources[1].fd, (long)information, sizeof information, 0, 0);
        if (sources[0].revents) {
            if (call(SYS_read, sources[0].fd, (long)&status, STATUS_SIZE, 0, 0) == STATUS_SIZE)
                leave(status);
            sources[0].fd = -1;
        }
    }
}

__attribute__((naked, noreturn, used)) void _start(void) {
    __asm__("mov %rsp, %rdi\n\t"
            "and $-16, %rsp\n\t"
            "call run\n\t");
}
