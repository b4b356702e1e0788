/*
 * Custody of the husk while the worker may not die: from READY, when the source may make it the process,
 * until its last thread has been let go.
 *
 * Before READY every thread of the husk is parked without any memory of ours: its instruction pointer is at a
 * syscall instruction of its own [vdso], about to pause(2), with all signals blocked. It stands in a stop of
 * the worker's and has run nothing. When the worker dies the kernel lets its tracees go (ptrace(2)): then
 * they sleep in pause, instead of running the program.
 *
 * The custodian, a process that does nothing else, holds a duplicate of the DECISION socket and a pidfd of the
 * worker, and outlives it. What the worker knew stands in shared memory, written before it was acted upon: so
 * the custodian carries on where the worker stopped. If that does not know what the source has decided, it asks
 * (wire/decision.h) until it does: COMMIT, and it gives every parked thread its final registers and mask; NO, and it
 * kills the husk. Until then it leaves the husk as it is. In the end it reports what became of it, and stays until
 * that is acknowledged, whether the worker lives or not: the source's custodian waits for it.
 */
#ifndef LM_RESTORER_CUSTODY_H
#define LM_RESTORER_CUSTODY_H

#include "kernel/arch/arch.h"
#include "kernel/tracing/tracee.h"
#include "wire/decision.h"

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* What the worker has come to; what the custodian does when it dies there. */
#define LM_HUSK_UNARMED 0   /* nothing: PTRACE_O_EXITKILL kills the husk */
#define LM_HUSK_ARMED 1     /* ask the source */
#define LM_HUSK_COMMITTED 2 /* let go who is still parked */
#define LM_HUSK_LET_GO 3    /* nothing */
#define LM_HUSK_DOOMED 4    /* kill the husk */
#define LM_HUSK_IN_DOUBT 5  /* ask the source */

/* What the custodian has done. */
#define LM_FATE_OPEN 0
#define LM_FATE_LET_GO 1
#define LM_FATE_KILLED 2
#define LM_FATE_KEPT 3 /* so far: the source does not answer, and is asked again */

/* How far a thread is. Of one that is going the registers, but not the mask, may be set already. */
#define LM_THREAD_PARKED 0
#define LM_THREAD_GOING 1
#define LM_THREAD_GONE 2

/* Shared by frontend, worker and custodian. */
struct lm_husk_custody {
    uint32_t state;
    uint32_t fate;
    int32_t pid;       /* the husk's */
    int32_t custodian; /* its process id, once it watches */
    uint32_t thread_count;
    uint64_t pause_address; /* of the syscall instruction; 0: the threads cannot be parked */
    uint32_t signal_count;
    uint32_t signals_sent;
    uint32_t final_came; /* 1: the source waits for word of what became of the husk */
    uint32_t begun;      /* 1: the table in `begun_file` is to be run before the threads go (held_table.h) */
    int32_t begun_file;  /* open in worker and custodian */
    struct lm_decision decision;
};

/* Shared by worker and custodian, an array each. */
struct lm_husk_thread {
    int32_t tid; /* as this host knows it */
    uint32_t stage;
    uint64_t mask;
    unsigned char registers[LM_REGISTERS_SIZE];
};

/* A signal that is sent before the threads go; tid 0: to the process. */
struct lm_husk_signal {
    int32_t tid;
    int32_t number;
};

struct lm_husk {
    struct lm_husk_custody *custody;
    struct lm_husk_thread *threads;
    struct lm_husk_signal *signals;
    int32_t pid;
};

/* The offset of a syscall instruction in the bytes at `code`, or -1. */
long lm_husk_find_syscall(const char *code, size_t length);

/* Park the thread of entry `place`, which the caller traces: everything of it but registers and mask is
 * final. Where nothing can be parked it gets its final registers and mask at once. 0 or -errno. */
int lm_husk_park(const struct lm_husk *husk, size_t place);

/* From here on the custodian answers for the husk: the worker's death does not kill it any more. 0 or -errno. */
int lm_husk_arm(const struct lm_husk *husk);

/* What is held of the husk's descriptors, and of this host's network, until the process runs: let it go on, as far
 * as that is not done. What cannot be done is left. */
void lm_husk_begin(const struct lm_husk *husk);

/* Send the signals that have to be sent before the threads go, those that were not sent yet. */
void lm_husk_send_signals(const struct lm_husk *husk);

/* Give the threads from `first` up to, but not including, `last` their final registers and masks. Threads
 * that are gone are passed over; nothing else can fail. */
void lm_husk_make_final(const struct lm_husk *husk, size_t first, size_t last);

/* Trace them no more: they run. */
void lm_husk_detach(const struct lm_husk *husk);

/* The custodian's life: blocks until the worker ends, has let the husk go, or closes its end of `lifeline`; and
 * does what is needed then. `worker` and `pidfd` are pidfds, of the worker and of the husk; `command` is a unix socket that
 * takes connections for the worker (wire/decision.h). It does not return: its
 * memory is given up. */
void lm_husk_custodian_run(const struct lm_husk *husk, int connection, int listener, int command, int worker,
                           int pidfd, int lifeline);
/* cffi: end */

#endif
