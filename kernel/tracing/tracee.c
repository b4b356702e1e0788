#define _GNU_SOURCE
#include "kernel/tracing/tracee.h"

#include "kernel/arch/arch.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(siginfo_t) == LM_SIGNAL_INFO_SIZE, "LM_SIGNAL_INFO_SIZE");

enum {
    SYSCALL_STOP = SIGTRAP | 0x80,
    MASK_SIZE = sizeof(uint64_t),
    YIELDS_BEFORE_SLEEPING = 200,
    SLEEP_NS = 50000,
};

int lm_trace(int request, int tid, uint64_t data) {
    return ptrace(request, tid, NULL, (void *)(uintptr_t)data) == -1 ? -errno : 0;
}

int lm_trace_memory(int request, int tid, uint64_t address, void *data) {
    return ptrace(request, tid, (void *)(uintptr_t)address, data) == -1 ? -errno : 0;
}

int lm_trace_wait(int tid, int options, int *status) {
    for (;;) {
        pid_t found = waitpid(tid, status, options | __WALL);

        if (found == tid)
            return 0;
        if (found == 0)
            return -EAGAIN;
        if (errno != EINTR)
            return -errno;
    }
}

int lm_trace_peek(int tid, int options, int *status) {
    siginfo_t found = {0};

    while (waitid(P_PID, (id_t)tid, &found, options | WEXITED | WNOWAIT | __WALL) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    if (found.si_pid == 0)
        return -EAGAIN;
    if (found.si_code == CLD_TRAPPED && found.si_status <= SIGRTMAX) {
        *status = W_STOPCODE(found.si_status);
        return 0;
    }
    return lm_trace_wait(tid, options, status);
}

static int64_t now_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* A thread group's leader that has ended while others live is not reported by waitpid until they have ended,
 * too. */
static int is_zombie(int tid) {
    char path[64];
    char text[512] = {0};
    const char *name_end = NULL;
    ssize_t length = 0;
    int file = 0;

    /* Without streams, which need a heap: a custodian has none. */
    snprintf(path, sizeof path, "/proc/%d/stat", tid);
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 1;
    length = read(file, text, sizeof text - 1);
    close(file);
    name_end = length <= 0 ? NULL : strrchr(text, ')');
    return name_end == NULL || name_end[1] == '\0' || strchr("ZX", name_end[2]) != NULL;
}

/* Never a blocking waitpid: a thread in an uninterruptible sleep would hold the others frozen without bound,
 * and an ended leader would for ever. Yielding first costs less than sleeping and being woken. */
static int wait_bounded(int tid, int64_t deadline, int *status) {
    for (int tries = 0;; tries++) {
        const struct timespec pause = {0, SLEEP_NS};
        int error = lm_trace_peek(tid, WNOHANG, status);

        if (error != -EAGAIN)
            return error == -ECHILD ? -ESRCH : error;
        if (tries < YIELDS_BEFORE_SLEEPING) {
            sched_yield();
            continue;
        }
        if (is_zombie(tid) && lm_trace_peek(tid, WNOHANG, status) != 0) {
            *status = 0;
            return -ESRCH;
        }
        if (now_ms() > deadline)
            return -ETIMEDOUT;
        nanosleep(&pause, NULL);
    }
}

/* The signal to resume with: one that the thread was stopped at on its way to it. */
static int signal_to_inject(int status) {
    int signal = WSTOPSIG(status);

    return status >> 16 == 0 && signal != SYSCALL_STOP ? signal : 0;
}

int lm_trace_stop(int tid, int last_status, int timeout_ms, int *status) {
    const int64_t deadline = now_ms() + timeout_ms;

    *status = last_status;
    for (;;) {
        int error = 0;

        if (*status != 0 && !WIFSTOPPED(*status))
            return -ESRCH;
        if (*status >> 16 == PTRACE_EVENT_STOP)
            return 0;
        /* Asked for before it is resumed, the stop comes at the very beginning of the handler of an injected
         * signal: nothing is lost and nothing has run. Every other stop uses up the request, so it is made
         * again. */
        error = lm_trace(PTRACE_INTERRUPT, tid, 0);
        if (error == 0 && *status != 0)
            error = lm_trace(PTRACE_CONT, tid, (uint64_t)signal_to_inject(*status));
        if (error != 0 && error != -ESRCH)
            return error;
        error = wait_bounded(tid, deadline, status);
        if (error != 0)
            return error;
    }
}

int lm_trace_release(int tid, int last_status, int detach) {
    if (detach)
        return lm_trace(PTRACE_DETACH, tid, (uint64_t)signal_to_inject(last_status));
    if (last_status >> 16 == PTRACE_EVENT_STOP && WSTOPSIG(last_status) != SIGTRAP)
        return lm_trace(PTRACE_LISTEN, tid, 0);
    return lm_trace(PTRACE_CONT, tid, (uint64_t)signal_to_inject(last_status));
}

int lm_trace_get_registers(int tid, void *registers) {
    return lm_trace_memory(PTRACE_GETREGS, tid, 0, registers);
}

int lm_trace_set_registers(int tid, const void *registers) {
    return lm_trace_memory(PTRACE_SETREGS, tid, 0, (void *)(uintptr_t)registers);
}

int lm_trace_get_xstate(int tid, void *xstate, size_t *size) {
    struct iovec area = {xstate, *size};
    int error = lm_trace_memory(PTRACE_GETREGSET, tid, LM_XSTATE_SET, &area);

    *size = area.iov_len;
    return error;
}

int lm_trace_set_xstate(int tid, const void *xstate, size_t size) {
    struct iovec area = {(void *)(uintptr_t)xstate, size};

    return lm_trace_memory(PTRACE_SETREGSET, tid, LM_XSTATE_SET, &area);
}

int lm_trace_get_mask(int tid, uint64_t *mask) {
    return lm_trace_memory(PTRACE_GETSIGMASK, tid, MASK_SIZE, mask);
}

int lm_trace_set_mask(int tid, uint64_t mask) {
    return lm_trace_memory(PTRACE_SETSIGMASK, tid, MASK_SIZE, &mask);
}

int lm_trace_peek_signals(int tid, int shared, uint64_t offset, void *infos, int capacity) {
    struct __ptrace_peeksiginfo_args arguments = {
        .off = offset, .flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0, .nr = capacity};
    long count = ptrace(PTRACE_PEEKSIGINFO, tid, &arguments, infos);

    return count < 0 ? -errno : (int)count;
}

int lm_trace_have_signals(const int *tids, size_t count, unsigned char *found) {
    siginfo_t first;

    for (size_t i = 0; i < count; i++) {
        int pending = lm_trace_peek_signals(tids[i], 0, 0, &first, 1);

        if (pending < 0)
            return pending;
        found[i] = pending > 0;
    }
    return 0;
}
