/*
 * The signal frame by which a thread of the source gets home by itself.
 *
 * rt_sigreturn(2) puts back every register, the vector state and the signal mask from a frame in memory. A
 * thread that runs anything of ours runs it "below" such a frame: whatever happens to its tracer, the last
 * thing it does is to return from a signal that never was.
 */
#ifndef LM_KERNEL_ARCH_SIGRETURN_FRAME_H
#define LM_KERNEL_ARCH_SIGRETURN_FRAME_H

#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

/* cffi: begin */
/* The largest frame of any processor (Intel's AMX has 8 KiB of vector state), for buffers. */
#define LM_SIGRETURN_FRAME_ROOM 12288

/* The bytes that a frame takes, a multiple of 64, which is a frame's alignment: with this vector state, or
 * with that of any thread that has not asked the kernel for more (AMX) if xstate_size is 0. */
size_t lm_sigreturn_frame_room(const void *xstate, size_t xstate_size);

/* Find out from the processor what has to be known of its vector state. Call it before a freeze, since it can take
 * a millisecond. */
void lm_sigreturn_frame_prepare(void);
/* cffi: end */

/* Compose into `room` bytes at `out`, to be placed at `address` in the process (a multiple of 64), a frame
 * that brings a thread to `registers` and the signal mask `mask` with the vector state `xstate` (the bytes of
 * PTRACE_GETREGSET), or with the initial vector state if xstate_size is 0. Interrupted system
 * calls are wound back first, as the kernel would (signal(7)); one that would go on from a restart block
 * begins again. `return_code` is the address of code that calls rt_sigreturn: the frame's first word, so that
 * a `ret` with the stack pointer on the frame goes home. Returns -ENOSPC when it does not fit.
 *
 * Layout: arch/x86/include/asm/sigframe.h (rt_sigframe) and Documentation/arch/x86/xstate.rst. */
int lm_sigreturn_frame(void *out, size_t room, uint64_t address, const struct user_regs_struct *registers,
                       uint64_t mask, const void *xstate, size_t xstate_size, uint64_t return_code);

/* The stack pointer from which `ret` takes the frame at `address`, and the one with which rt_sigreturn is
 * called. */
uint64_t lm_sigreturn_frame_return_pointer(uint64_t address);
uint64_t lm_sigreturn_frame_sigreturn_pointer(uint64_t address);

#endif
