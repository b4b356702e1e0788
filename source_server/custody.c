#define _GNU_SOURCE
#include "source_server/custody.h"

#include "kernel/arch/arch.h"
#include "kernel/memory/own_memory.h"
#include "process/descriptors/held_table.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WATCH_MS = 200 };

int lm_park_decide(int pid, uint64_t flag_address, uint32_t word) {
    struct iovec here = {&word, sizeof word};
    struct iovec there = {(void *)(uintptr_t)flag_address, sizeof word};

    return process_vm_writev(pid, &here, 1, &there, 1, 0) == sizeof word ? 0 : -errno;
}

static uint32_t load(const uint32_t *place) {
    return __atomic_load_n(place, __ATOMIC_SEQ_CST);
}

static uint64_t now_ns(void) {
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* When a freeze lasts beyond its deadline, bring lm-serve's end about: it wakes up to a decision. */
static void keep_deadline(struct lm_custody *custody) {
    uint64_t deadline = __atomic_load_n(&custody->deadline_ns, __ATOMIC_SEQ_CST);

    if (deadline != 0 && now_ns() > deadline && lm_decision_decide(&custody->decision, LM_DECISION_NO))
        kill(custody->serve, SIGKILL);
}

static void run_held(const struct lm_custody *custody, int table) {
    if (load(&custody->held) != 0)
        lm_held_run(custody->held_file, table);
}

/* What lm-serve's end has left to do. The descriptors are as they were before the threads go home. 0 or -errno. */
static int take_over(struct lm_custody *custody) {
    const bool stay = !lm_decision_decide(&custody->decision, LM_DECISION_NO);
    const uint64_t flag_address = __atomic_load_n(&custody->flag_address, __ATOMIC_SEQ_CST);

    int error = 0;

    run_held(custody, stay ? LM_HELD_COMMIT : LM_HELD_UNDO);
    if (flag_address != 0)
        error = lm_park_decide(custody->pid, flag_address, stay ? LM_PARK_STAY : LM_PARK_GO_HOME);
    if (!stay)
        lm_leftover_take_away(custody->leftover);
    return error;
}

static uint32_t word_for(uint32_t decided) {
    switch (decided) {
    case LM_DECISION_COMMIT:
        return LM_WORD_COMMIT;
    case LM_DECISION_NO:
        return LM_WORD_NO;
    default:
        return LM_WORD_UNDECIDED;
    }
}

/* Answer what was asked, note what is reported, and tell what was decided until it is known that it was heard. */
static void converse(struct lm_custody *custody, struct lm_decision_line *line) {
    struct lm_decision *decision = &custody->decision;
    struct lm_word word;

    lm_decision_admit(line);
    while (lm_decision_take(line, &word) == 1) {
        if (word.kind == LM_WORD_ASK) {
            lm_decision_say(line, word_for(load(&decision->decided)), word.number, 0);
            continue;
        }
        __atomic_store_n(&decision->heard, word.kind, __ATOMIC_SEQ_CST);
        lm_decision_say(line, LM_WORD_ACKNOWLEDGED, 0, 0);
    }
    if (load(&custody->at_stake) != 0 && load(&decision->heard) == 0 &&
        load(&decision->decided) != LM_DECISION_UNDECIDED)
        lm_decision_keep_saying(line, word_for(load(&decision->decided)));
}

/* Whether nobody waits for what was decided any more. */
static bool is_over(const struct lm_custody *custody) {
    return load(&custody->at_stake) == 0 || load(&custody->decision.heard) != 0;
}

__attribute__((noreturn)) void lm_custodian_run(struct lm_custody *custody, int connection, int listener,
                                                int command, int lifeline) {
    char here;
    const void *const kept[] = {&here, __builtin_thread_pointer()};
    struct pollfd watched[LM_WORD_STRANGERS + 3] = {{.fd = lifeline, .events = POLLIN}};
    struct lm_decision_line line;
    int error = 0;

    /* lm-serve's memory is no business of the custodian's, and what follows looks at no other than these. */
    lm_own_memory_drop(kept, 2);
    lm_decision_open(&line, &custody->decision, connection, listener);
    line.command = command;
    while (watched[0].fd >= 0 || !is_over(custody)) {
        poll(watched, 1 + lm_decision_watch(&line, watched + 1), WATCH_MS);
        if (watched[0].fd >= 0)
            keep_deadline(custody);
        if (watched[0].fd >= 0 && watched[0].revents != 0) {
            watched[0].fd = -1;
            error = take_over(custody);
        }
        converse(custody, &line);
    }
    if (error == 0)
        __atomic_store_n(&custody->over, 1, __ATOMIC_SEQ_CST);
    _exit(error == 0 ? 0 : 1);
}
