/*
 * ptrace(2), as plain functions over thread ids. Every call must come from the thread that attached
 * (ptrace(2)). All return 0 or -errno; -ESRCH means that the thread is gone, or not stopped.
 */
#ifndef LM_KERNEL_TRACEE_H
#define LM_KERNEL_TRACEE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* cffi: begin */
#define LM_SIGNAL_INFO_SIZE 128

/* struct ptrace_rseq_configuration of linux/ptrace.h. */
struct lm_rseq_configuration {
    uint64_t address;
    uint32_t size;
    uint32_t signature;
    uint32_t flags;
    uint32_t padding;
};

struct lm_frozen {
    int32_t tid;
    int32_t status;
};

/* A ptrace request whose data is a number: PTRACE_SEIZE, _INTERRUPT, _CONT, _SYSCALL, _LISTEN, _DETACH,
 * _SETOPTIONS. */
int lm_trace(int request, int tid, uint64_t data);
/* One whose data is memory here. */
int lm_trace_memory(int request, int tid, uint64_t address, void *data);

/* The next wait status of one tracee: 0, -EAGAIN when `options` has WNOHANG and there is none, -ECHILD. EINTR
 * is taken care of. */
int lm_trace_wait(int tid, int options, int *status);
/* The same, but a signal that the tracee has stopped for is left where it is until the tracee is resumed. The
 * kernel keeps the number where waitpid takes it from (wait_task_stopped): a tracer that died between that
 * and PTRACE_CONT would take the signal with it. */
int lm_trace_peek(int tid, int options, int *status);

/* PTRACE_INTERRUPT and wait for a stop; signals that come first are let through to the process, as they would
 * have been, so that the stop is one at which the tracer's death is harmless: PTRACE_EVENT_STOP, of the
 * interrupt or of a group-stop. `status` is that stop's, or the exit's with -ESRCH. A tracee that is stopped
 * already is taken from there: give its last status, or 0 when it runs. */
int lm_trace_stop(int tid, int last_status, int timeout_ms, int *status);

/* Let a stopped tracee go on as it was, given its last status: signals that it was about to get are injected,
 * group-stops stay stops. With `detach` it is not traced any more. */
int lm_trace_release(int tid, int last_status, int detach);

int lm_trace_get_registers(int tid, void *registers);
int lm_trace_set_registers(int tid, const void *registers);
/* The whole vector state; `size` goes in as the room and comes out as the length. */
int lm_trace_get_xstate(int tid, void *xstate, size_t *size);
int lm_trace_set_xstate(int tid, const void *xstate, size_t size);
int lm_trace_get_mask(int tid, uint64_t *mask);
int lm_trace_set_mask(int tid, uint64_t mask);

/* Raw siginfo of the pending signals, from the `offset`th on, at most `capacity`: of the process if `shared`,
 * else of the thread. Returns how many, or -errno. */
int lm_trace_peek_signals(int tid, int shared, uint64_t offset, void *infos, int capacity);
/* For each of `count` stopped tracees, whether signals are pending that are its own. 0 or -errno. */
int lm_trace_have_signals(const int *tids, size_t count, unsigned char *found);
/* cffi: end */

#endif
