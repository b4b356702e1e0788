#define _GNU_SOURCE
#include "kernel/injection/source_threads.h"

#include "kernel/arch/arch.h"
#include "kernel/arch/sigreturn_frame.h"
#include "kernel/tracing/rseq.h"
#include "kernel/tracing/tracee.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STOPS_BOUND = 1000 };

struct thread {
    int tid;
    struct user_regs_struct registers;
    uint64_t mask;
    uint64_t frame;
    bool started;
    struct lm_rseq_configuration rseq;
    int rseq_error;
    bool stop_held; /* a SIGSTOP came while a program ran: it is sent again afterwards */
    char *xstate;
    size_t xstate_size;
};

struct lm_source_threads {
    size_t count;
    size_t frame_size;
    struct thread threads[];
};

static int look(struct thread *thread, size_t room) {
    int error = lm_trace_get_registers(thread->tid, &thread->registers);

    thread->xstate = malloc(room);
    if (thread->xstate == NULL)
        return -ENOMEM;
    thread->xstate_size = room;
    thread->rseq_error = lm_rseq_area(thread->tid, &thread->rseq);
    if (error == 0)
        error = lm_rseq_abort(thread->tid, &thread->rseq, &thread->registers);
    if (error == 0)
        error = lm_trace_get_mask(thread->tid, &thread->mask);
    if (error == 0)
        error = lm_trace_get_xstate(thread->tid, thread->xstate, &thread->xstate_size);
    return error;
}

int lm_source_threads_init(const int *tids, size_t count, struct lm_source_threads **out) {
    struct lm_source_threads *threads = calloc(1, sizeof *threads + count * sizeof threads->threads[0]);
    size_t room = lm_arch_xstate_room();
    int error = 0;

    if (threads == NULL)
        return -ENOMEM;
    threads->count = count;
    for (size_t i = 0; i < count && error == 0; i++) {
        threads->threads[i].tid = tids[i];
        error = look(&threads->threads[i], room);
        size_t needed = lm_sigreturn_frame_room(threads->threads[i].xstate, threads->threads[i].xstate_size);

        if (needed > threads->frame_size)
            threads->frame_size = needed;
    }
    if (error != 0) {
        lm_source_threads_deinit(threads);
        return error;
    }
    *out = threads;
    return 0;
}

void lm_source_threads_deinit(struct lm_source_threads *threads) {
    for (size_t i = 0; i < threads->count; i++)
        free(threads->threads[i].xstate);
    free(threads);
}

size_t lm_source_frame_size(const struct lm_source_threads *threads) {
    return threads->frame_size;
}

int lm_source_frames(struct lm_source_threads *threads, uint64_t address, void *out, size_t room) {
    if (room < threads->count * threads->frame_size)
        return -ENOSPC;
    for (size_t i = 0; i < threads->count; i++) {
        struct thread *thread = &threads->threads[i];
        int error = 0;

        thread->frame = address + i * threads->frame_size;
        error = lm_sigreturn_frame((char *)out + i * threads->frame_size, threads->frame_size, thread->frame,
                                   &thread->registers, thread->mask, thread->xstate, thread->xstate_size, 0);
        if (error != 0)
            return error;
    }
    return 0;
}

void lm_source_state(const struct lm_source_threads *threads, size_t index, struct lm_source_state *out) {
    const struct thread *thread = &threads->threads[index];

    out->registers = &thread->registers;
    out->xstate = thread->xstate;
    out->xstate_size = thread->xstate_size;
    out->mask = thread->mask;
    out->rseq = &thread->rseq;
    out->rseq_error = thread->rseq_error;
}

/* The registers first: if the tracer dies before the mask is set, the thread goes home with the mask that it had.
 */
static int leave_home(struct thread *thread, struct user_regs_struct *registers, uint64_t mask) {
    int error = lm_trace_set_registers(thread->tid, registers);

    return error != 0 ? error : lm_trace_set_mask(thread->tid, mask);
}

/* The mask first: until the registers are home, the thread is on a path home that restores the mask too. */
static int go_home(struct thread *thread) {
    int error = lm_trace_set_mask(thread->tid, thread->mask);

    return error != 0 ? error : lm_trace_set_registers(thread->tid, &thread->registers);
}

static int start(struct thread *thread, const struct lm_source_program *program, uint64_t stub,
                 int end_signal) {
    struct user_regs_struct registers = thread->registers;
    int error = 0;

    lm_arch_run_program(&registers, stub, program->table, program->ending,
                        lm_sigreturn_frame_sigreturn_pointer(thread->frame));
    error = leave_home(thread, &registers, ~((uint64_t)1 << (end_signal - 1)));
    return error != 0 ? error : lm_trace(PTRACE_CONT, thread->tid, 0);
}

/* Wait for the end of a program. Only a SIGSTOP can come in between (all else is blocked): it is kept for
 * later. */
static int await(struct thread *thread, int end_signal, bool *stop_held) {
    for (int stops = 0; stops < STOPS_BOUND; stops++) {
        int status = 0;
        int error = 0;

        while (waitpid(thread->tid, &status, __WALL) < 0) {
            if (errno != EINTR)
                return -errno;
        }
        if (!WIFSTOPPED(status))
            return -ESRCH;
        if (status >> 16 == 0 && WSTOPSIG(status) == end_signal)
            return 0;
        if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP)
            *stop_held = true;
        error = lm_trace(PTRACE_CONT, thread->tid, 0);
        if (error != 0)
            return error;
    }
    return -EBUSY;
}

int lm_source_run(struct lm_source_threads *threads, const struct lm_source_program *programs, uint64_t stub,
                  int end_signal) {
    int error = 0;

    for (size_t i = 0; i < threads->count; i++) {
        threads->threads[i].started = false;
        if (programs[i].table != 0 && error == 0) {
            error = start(&threads->threads[i], &programs[i], stub, end_signal);
            threads->threads[i].started = error == 0;
        }
    }
    for (size_t i = 0; i < threads->count; i++) {
        bool stop_held = false;
        int failed = 0;

        if (!threads->threads[i].started)
            continue;
        failed = await(&threads->threads[i], end_signal, &stop_held);
        if (failed == 0)
            failed = go_home(&threads->threads[i]);
        if (stop_held)
            syscall(SYS_tkill, threads->threads[i].tid, SIGSTOP);
        if (error == 0)
            error = failed;
    }
    return error;
}

int lm_source_run_half(struct lm_source_threads *threads, const struct lm_source_program *program,
                       uint64_t stub, int end_signal) {
    struct thread *leader = &threads->threads[0];
    int error = start(leader, program, stub, end_signal);

    leader->stop_held = false;
    return error != 0 ? error : await(leader, end_signal, &leader->stop_held);
}

int lm_source_run_rest(struct lm_source_threads *threads, int end_signal) {
    struct thread *leader = &threads->threads[0];
    int error = lm_trace(PTRACE_CONT, leader->tid, 0);

    if (error == 0)
        error = await(leader, end_signal, &leader->stop_held);
    if (error == 0)
        error = go_home(leader);
    if (leader->stop_held)
        syscall(SYS_tkill, leader->tid, SIGSTOP);
    return error;
}

int lm_source_park(struct lm_source_threads *threads, uint64_t stub, uint64_t flag) {
    for (size_t i = 0; i < threads->count; i++) {
        struct thread *thread = &threads->threads[i];
        struct user_regs_struct registers = thread->registers;
        int error = 0;

        lm_arch_park(&registers, stub, flag, lm_sigreturn_frame_sigreturn_pointer(thread->frame));
        error = leave_home(thread, &registers, ~(uint64_t)0);
        if (error != 0)
            return error;
    }
    return 0;
}

void lm_source_settle(struct lm_source_threads *threads, uint64_t stub, uint64_t flag) {
    for (size_t i = 0; i < threads->count; i++) {
        struct thread *thread = &threads->threads[i];

        lm_arch_park(&thread->registers, stub, flag, lm_sigreturn_frame_sigreturn_pointer(thread->frame));
        thread->mask = ~(uint64_t)0;
    }
}

int lm_source_home(struct lm_source_threads *threads) {
    int error = 0;

    for (size_t i = 0; i < threads->count; i++) {
        int failed = go_home(&threads->threads[i]);

        if (error == 0 && failed != -ESRCH)
            error = failed;
    }
    return error;
}
