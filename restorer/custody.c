#define _GNU_SOURCE
#include "restorer/custody.h"

#include "kernel/arch/arch.h"
#include "kernel/memory/own_memory.h"
#include "kernel/pidfd.h"
#include "kernel/tracing/freeze.h"
#include "process/descriptors/held_table.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <unistd.h>

enum {
    STOP_MS = 2000,
    SEIZE_TRIES = 2000,
    SEIZE_PAUSE_US = 1000,
    WATCH_MS = 200,
    UNARMED_MS = 60000,
    ANSWER_MS = 3000,
    EARLY_MS = 8000,
    LATE_MS = 600000,
    /* They take as long. */
    MOST_REFUSED = 300,
};

/* What a thread has that has blocked everything: these two cannot be (sigprocmask(2)). */
static const uint64_t ALL_BLOCKED = ~(UINT64_C(1) << (SIGKILL - 1)) & ~(UINT64_C(1) << (SIGSTOP - 1));

static uint32_t load(const uint32_t *place) {
    return __atomic_load_n(place, __ATOMIC_SEQ_CST);
}

static void store(uint32_t *place, uint32_t value) {
    __atomic_store_n(place, value, __ATOMIC_SEQ_CST);
}

long lm_husk_find_syscall(const char *code, size_t length) {
    return lm_arch_find_syscall(code, length);
}

static int set_final(struct lm_husk_thread *thread) {
    /* The registers first. A thread that would be let go between the two runs with its signals blocked for a
     * moment; the other way round a handler could run on the registers of the pause, and return to it. */
    int error = lm_trace_set_registers(thread->tid, thread->registers);

    return error == 0 ? lm_trace_set_mask(thread->tid, thread->mask) : error;
}

int lm_husk_park(const struct lm_husk *husk, size_t place) {
    struct lm_husk_thread *thread = &husk->threads[place];
    struct user_regs_struct registers;
    int error = 0;

    if (husk->custody->pause_address == 0)
        return set_final(thread);
    __builtin_memcpy(&registers, thread->registers, sizeof registers);
    lm_arch_pause(&registers, husk->custody->pause_address);
    error = lm_trace_set_mask(thread->tid, ALL_BLOCKED);
    return error == 0 ? lm_trace_set_registers(thread->tid, &registers) : error;
}

int lm_husk_arm(const struct lm_husk *husk) {
    store(&husk->custody->state, LM_HUSK_ARMED);
    for (size_t i = 0; i < husk->custody->thread_count; i++) {
        int error = lm_trace(PTRACE_SETOPTIONS, husk->threads[i].tid, 0);

        if (error != 0)
            return error;
    }
    return 0;
}

void lm_husk_begin(const struct lm_husk *husk) {
    if (load(&husk->custody->begun) != 0)
        lm_held_run(husk->custody->begun_file, LM_HELD_COMMIT);
}

void lm_husk_send_signals(const struct lm_husk *husk) {
    struct lm_husk_custody *custody = husk->custody;

    for (; custody->signals_sent < custody->signal_count; custody->signals_sent++) {
        const struct lm_husk_signal *one = &husk->signals[custody->signals_sent];

        if (one->tid == 0)
            kill(husk->pid, one->number);
        else
            lm_send_to_thread(husk->pid, one->tid, one->number);
    }
}

void lm_husk_make_final(const struct lm_husk *husk, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        struct lm_husk_thread *thread = &husk->threads[i];

        store(&thread->stage, LM_THREAD_GOING);
        set_final(thread);
        store(&thread->stage, LM_THREAD_GONE);
    }
}

void lm_husk_detach(const struct lm_husk *husk) {
    const size_t count = husk->custody->thread_count;

    /* A death of ours kills the process as long as any thread has EXITKILL, which those have that could not
     * be parked: so all lose it before the first one runs. */
    for (size_t i = 0; husk->custody->pause_address == 0 && i < count; i++)
        lm_trace(PTRACE_SETOPTIONS, husk->threads[i].tid, 0);
    for (size_t i = 0; i < count; i++)
        lm_trace(PTRACE_DETACH, husk->threads[i].tid, 0);
}

/* The dead worker's tracees are free when its end can be seen, or very soon after. */
static int seize(int tid) {
    int error = 0;

    for (int tries = 0; tries < SEIZE_TRIES; tries++) {
        error = lm_trace(PTRACE_SEIZE, tid, 0);
        if (error != -EPERM)
            return error;
        usleep(SEIZE_PAUSE_US);
    }
    return error;
}

/* Let one thread go that the worker has not, or only half. One that runs already is left as it is. */
static void let_thread_go(const struct lm_husk *husk, struct lm_husk_thread *thread) {
    struct user_regs_struct registers;
    struct lm_frozen frozen = {.tid = thread->tid};
    const uint32_t stage = load(&thread->stage);
    uint64_t mask = 0;
    int status = 0;

    if (stage == LM_THREAD_GONE || seize(thread->tid) != 0)
        return;
    /* One that cannot be stopped runs: it waits for a page within a system call. */
    if (lm_trace_stop(thread->tid, 0, STOP_MS, &status) != 0)
        return;
    frozen.status = status;
    if (lm_trace_get_registers(thread->tid, &registers) == 0 && lm_trace_get_mask(thread->tid, &mask) == 0) {
        if (lm_arch_is_paused(&registers, husk->custody->pause_address)) {
            set_final(thread);
            store(&thread->stage, LM_THREAD_GONE);
            /* Not thawed: the call in which the final registers are is the source's affair. */
            lm_trace_release(thread->tid, status, 1);
            return;
        }
        if (stage == LM_THREAD_GOING && mask == ALL_BLOCKED)
            lm_trace_set_mask(thread->tid, thread->mask);
    }
    store(&thread->stage, LM_THREAD_GONE);
    lm_thaw(&frozen, 1, 1);
}

static void let_go(const struct lm_husk *husk) {
    store(&husk->custody->state, LM_HUSK_COMMITTED);
    lm_husk_begin(husk);
    lm_husk_send_signals(husk);
    for (size_t i = 0; i < husk->custody->thread_count; i++)
        let_thread_go(husk, &husk->threads[i]);
    store(&husk->custody->fate, LM_FATE_LET_GO);
}

/* Whether the husk ends within that time; -1: as long as it takes. */
static bool ends(int pidfd, int timeout_ms) {
    struct pollfd end = {.fd = pidfd, .events = POLLIN};

    return poll(&end, 1, timeout_ms) == 1;
}

/* It is gone, and the source is told. If that has not said the last word before its own (FINAL), it need not wait for
 * this one. */
static void report_dropped(const struct lm_husk *husk, struct lm_decision_line *line) {
    if (load(&husk->custody->final_came) != 0)
        lm_decision_report(line, LM_WORD_DROPPED, -1, LATE_MS, MOST_REFUSED);
    else
        lm_decision_report(line, LM_WORD_DROPPED, -1, EARLY_MS, 0);
}

static void drop(const struct lm_husk *husk, struct lm_decision_line *line, int pidfd) {
    lm_pidfd_send_signal(pidfd, SIGKILL);
    ends(pidfd, -1);
    store(&husk->custody->fate, LM_FATE_KILLED);
    report_dropped(husk, line);
}

/* Ask until it is known. A husk that somebody has ended meanwhile is dropped. */
static uint32_t ask(const struct lm_husk *husk, struct lm_decision_line *line, int pidfd) {
    uint32_t decided = LM_DECISION_UNDECIDED;
    uint64_t frozen_ns = 0;

    do {
        decided = lm_decision_ask(line, pidfd, ANSWER_MS, 0, &frozen_ns);
        if (decided == LM_DECISION_UNDECIDED && ends(pidfd, 0))
            return LM_DECISION_NO;
        if (decided == LM_DECISION_UNDECIDED)
            store(&husk->custody->fate, LM_FATE_KEPT);
    } while (decided == LM_DECISION_UNDECIDED);
    return decided;
}

static void take_over(const struct lm_husk *husk, struct lm_decision_line *line, int pidfd) {
    switch (load(&husk->custody->state)) {
    case LM_HUSK_UNARMED:
        /* By PTRACE_O_EXITKILL, or by the worker. */
        if (ends(pidfd, UNARMED_MS))
            report_dropped(husk, line);
        return;
    case LM_HUSK_DOOMED:
        drop(husk, line, pidfd);
        return;
    case LM_HUSK_ARMED:
    case LM_HUSK_IN_DOUBT:
        if (ask(husk, line, pidfd) == LM_DECISION_NO) {
            drop(husk, line, pidfd);
            return;
        }
        let_go(husk);
        break;
    case LM_HUSK_COMMITTED:
        let_go(husk);
        break;
    }
    lm_decision_report(line, LM_WORD_RESUMED, pidfd, -1, MOST_REFUSED);
}

/* The worker's memory is no business of the custodian's. The heap stays, in which the C library has what it
 * looks at (its locale); but nothing may be allocated, and no Python can run any more. */
static void let_go_of_memory(void) {
    char here;
    const void *const kept[] = {&here, __builtin_thread_pointer(), (const char *)sbrk(0) - 1};

    lm_own_memory_drop(kept, sizeof kept / sizeof *kept);
}

__attribute__((noreturn)) void lm_husk_custodian_run(const struct lm_husk *shared, int connection,
                                                     int listener, int command, int worker, int pidfd,
                                                     int lifeline) {
    const struct lm_husk husk = *shared;
    struct pollfd watched[] = {{.fd = worker, .events = POLLIN}, {.fd = lifeline, .events = POLLIN}};
    struct lm_decision_line line;

    let_go_of_memory();
    lm_decision_open(&line, &husk.custody->decision, connection, listener);
    line.command = command;
    __atomic_store_n(&husk.custody->custodian, getpid(), __ATOMIC_SEQ_CST);
    while (watched[0].revents == 0 && load(&husk.custody->state) != LM_HUSK_LET_GO) {
        if (poll(watched, 2, WATCH_MS) <= 0 || watched[1].revents == 0)
            continue;
        /* The worker lets us go; or it is dying, and its descriptors have closed before its end can be seen.
         */
        switch (load(&husk.custody->state)) {
        case LM_HUSK_ARMED:
        case LM_HUSK_COMMITTED:
        case LM_HUSK_IN_DOUBT:
            watched[1].fd = -1;
            continue;
        }
        break;
    }
    take_over(&husk, &line, pidfd);
    _exit(0);
}
