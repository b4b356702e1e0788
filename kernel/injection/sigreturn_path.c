#define _GNU_SOURCE
#include "kernel/injection/sigreturn_path.h"

#include "kernel/arch/arch.h"
#include "kernel/arch/sigreturn_frame.h"
#include "kernel/memory/memory.h"
#include "kernel/tracing/tracee.h"

#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SYSCALL_STOP = SIGTRAP | 0x80,
    STOPS_BOUND = 1000, /* stray stops (a SIGSTOP, a group-stop) before we give up on a thread */
};

static const uint64_t ALL_SIGNALS = ~(uint64_t)0;

/* What a thread was before we touched it. */
struct home {
    struct user_regs_struct registers;
    uint64_t mask;
    char xstate[LM_SIGRETURN_FRAME_ROOM];
    size_t xstate_size;
};

static int snapshot_home(int tid, struct home *home) {
    int error = lm_trace_get_registers(tid, &home->registers);

    home->xstate_size = sizeof home->xstate;
    if (error == 0)
        error = lm_trace_get_mask(tid, &home->mask);
    if (error == 0)
        error = lm_trace_get_xstate(tid, home->xstate, &home->xstate_size);
    return error;
}

static int read_frame(const struct lm_sigreturn_path *way, char *frame, size_t length) {
    return lm_memory_read_forced(way->memory, way->frame, frame, length);
}

static int write_frame(const struct lm_sigreturn_path *way, const char *frame, size_t length) {
    return lm_memory_write_forced(way->memory, way->frame, frame, length);
}

/* On the thread's own stack, one `leave; ret` away from the frame: see sigreturn_path.h. */
static int step_aside(int tid, const struct lm_sigreturn_path *way, const struct home *home) {
    struct user_regs_struct registers = home->registers;

    if (way->leave_return == 0)
        return 0;
    lm_arch_leave(&registers, way->leave_return, lm_sigreturn_frame_return_pointer(way->frame));
    return lm_trace_set_registers(tid, &registers);
}

/* Resume with `request` until the stop that `event` and `signal` tell; a SIGSTOP that arrives meanwhile is
 * held back. Any other signal, with all of them blocked, is a fault of the thread on its way. */
static int resume_until(int tid, int request, int event, int signal, int *held) {
    for (int stops = 0; stops < STOPS_BOUND; stops++) {
        int status = 0;
        int error = lm_trace(request, tid, 0);

        if (error != 0)
            return error;
        while (waitpid(tid, &status, __WALL) < 0) {
            if (errno != EINTR)
                return -errno;
        }
        if (!WIFSTOPPED(status))
            return -ESRCH;
        if (status >> 16 == event && (event != 0 || WSTOPSIG(status) == signal))
            return 0;
        if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP)
            *held = SIGSTOP;
        else if (status >> 16 == 0 && WSTOPSIG(status) != SYSCALL_STOP)
            return -EFAULT;
    }
    return -EBUSY;
}

/* Make the call, from a thread whose way home is ready. */
static int call(int tid, const struct lm_sigreturn_path *way, const struct home *home, uint64_t number,
                const uint64_t *arguments, int64_t *result, int *held) {
    struct user_regs_struct registers = home->registers;
    int error = step_aside(tid, way, home);

    lm_arch_call_and_return(&registers, way->syscall_return, lm_sigreturn_frame_return_pointer(way->frame),
                            number, arguments);
    /* The registers lead away before the mask is set: when the tracer dies, the thread goes home, which restores the mask.
     */
    if (error == 0 && way->leave_return != 0)
        error = lm_trace_set_mask(tid, ALL_SIGNALS);
    if (error == 0)
        error = lm_trace_set_registers(tid, &registers);
    if (error == 0 && way->leave_return == 0)
        error = lm_trace_set_mask(tid, ALL_SIGNALS);
    if (error == 0)
        error = resume_until(tid, PTRACE_SYSCALL, 0, SYSCALL_STOP, held);
    if (error == 0)
        error = lm_trace(PTRACE_INTERRUPT, tid, 0);
    if (error == 0)
        error = resume_until(tid, PTRACE_CONT, PTRACE_EVENT_STOP, 0, held);
    if (error == 0)
        error = lm_trace_get_registers(tid, &registers);
    if (error == 0)
        *result = lm_arch_result(&registers);
    return error;
}

int lm_remote_syscall(int tid, const struct lm_sigreturn_path *way, uint64_t number,
                      const uint64_t *arguments, int64_t *result) {
    struct home home;
    char saved[LM_SIGRETURN_FRAME_ROOM];
    char frame[LM_SIGRETURN_FRAME_ROOM] = {0};
    size_t room = 0;
    int held = 0;
    int back = 0;
    int error = snapshot_home(tid, &home);

    if (error == 0)
        room = lm_sigreturn_frame_room(home.xstate, home.xstate_size);
    if (room > sizeof frame)
        return -ENOSPC;
    if (error == 0)
        error = lm_sigreturn_frame(frame, room, way->frame, &home.registers, home.mask, home.xstate,
                                   home.xstate_size, way->signal_return);
    if (error == 0)
        error = read_frame(way, saved, room);
    if (error == 0)
        error = write_frame(way, frame, room);
    if (error != 0)
        return error;
    error = call(tid, way, &home, number, arguments, result, &held);
    /* The mask goes home before the registers: with the registers home and the mask not, a dead tracer would leave
     * signals blocked. */
    back = step_aside(tid, way, &home);
    if (back == 0)
        back = lm_trace_set_mask(tid, home.mask);
    if (back == 0)
        back = lm_trace_set_registers(tid, &home.registers);
    if (back == 0)
        back = write_frame(way, saved, room);
    if (held != 0)
        syscall(SYS_tkill, tid, held);
    return error != 0 ? error : back;
}
