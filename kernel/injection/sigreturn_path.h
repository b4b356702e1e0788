/*
 * System calls in a process that is not ours: whatever happens to the tracer, the process gets home.
 *
 * One remote syscall needs nothing of ours in the process. The thread is set on a `syscall; ret` found in its own
 * code, with the stack pointer on a signal frame whose first word is the address of its own rt_sigreturn
 * code. Should the tracer die at any instant, the thread makes the call, returns into rt_sigreturn and is
 * back where it was, with all its registers and its mask. The tracer itself stops it at the entry of the call
 * (with PTRACE_O_TRACESYSGOOD the death of the tracer in a syscall-stop is harmless: 0x85 is no signal
 * number), asks for an interrupt and lets go: the next stop is after the call and before the `ret`.
 *
 * Registers and mask cannot be set in one step. If the tracer dies in between, signals come in, and their handlers
 * need a stack. Under a frame on the stack there is one. From a frame elsewhere, the thread goes through a
 * `leave; ret` of its own code, on its own stack with the base pointer on the frame: a handler runs on the
 * stack that it would have had anyway, and returns to code that goes on to the frame.
 */
#ifndef LM_KERNEL_SIGRETURN_PATH_H
#define LM_KERNEL_SIGRETURN_PATH_H

#include <stdint.h>

/* cffi: begin */
/* What a remote syscall uses of the process: addresses of `syscall; ret`, of code that calls rt_sigreturn and of
 * `leave; ret` (0 for a frame with room for handlers under it), lm_sigreturn_frame_room bytes at `frame` (a
 * multiple of 64) that nothing reads meanwhile and that are put back afterwards, and an open /proc/PID/mem
 * (proc_pid_mem(5)), which writes to program text too. */
struct lm_sigreturn_path {
    uint64_t syscall_return;
    uint64_t signal_return;
    uint64_t leave_return;
    uint64_t frame;
    int memory;
};

/* Make one system call in the stopped tracee `tid` (seized with PTRACE_O_TRACESYSGOOD) and bring the thread home;
 * afterwards it is stopped as before. Returns 0 and the call's own result, or -errno: -ESRCH when the thread is
 * gone. */
int lm_remote_syscall(int tid, const struct lm_sigreturn_path *way, uint64_t number,
                      const uint64_t *arguments, int64_t *result);
/* cffi: end */

#endif
