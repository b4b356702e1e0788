/*
 * Custody of the source while nobody may know whether COMMIT was sent.
 *
 * Before the handover the threads are parked in a stub that waits for a word in its own memory: 1, stay for
 * ever, or 2, return to where they were. COMMIT is the moment in which its bytes enter the control socket, and the kernel
 * counts those, whatever becomes of lm-serve. The custodian, a process that does nothing else, holds a
 * duplicate of that socket and outlives lm-serve: when lm-serve dies while the threads are parked and
 * undecided, it compares the count with the one taken before, and writes the word.
 *
 * A no is a message too: the end of a connection says nothing, for who cut it may have COMMIT. From the final
 * description on, with which the destination can get ready, whoever does not hand over records that first, in
 * `state` and with the words: then COMMIT is sent no more. After that the threads go home, and then the words
 * are said. lm-serve can die anywhere in between: the custodian writes the word to threads that still wait,
 * and says what is left of the words, which the count tells too.
 *
 * What kinds of descriptors hold (held.h) goes the same way: lm-serve runs the table of COMMIT, or that of the
 * no before the threads go home, and where it has died, the custodian runs what is left of it.
 *
 * When the threads are at home, or on their way, it has what lm-serve has left in their memory taken away (leftover.h).
 *
 * It is also the last bound of a freeze: when lm-serve itself hangs, long after the time that the freeze may
 * take, the custodian kills it, and the threads return to their work.
 */
#ifndef LM_SOURCE_SERVER_CUSTODY_H
#define LM_SOURCE_SERVER_CUSTODY_H

#include "source_server/leftover.h"

#include <stdint.h>

/* cffi: begin */
#define LM_CUSTODY_AT_HOME 0
#define LM_CUSTODY_PARKED 1
#define LM_CUSTODY_DECIDED 2 /* COMMIT was sent, and the threads stay */
#define LM_CUSTODY_NO 3      /* COMMIT is not sent and never will be */

#define LM_CUSTODY_NO_ROOM 16384

/* Shared between lm-serve and its custodian. `state` is written last, when all that it speaks of is there. */
struct lm_custody {
    uint32_t state;
    int32_t pid;
    int32_t serve; /* lm-serve's process id */
    uint32_t no_length;
    uint64_t deadline_ns;  /* CLOCK_MONOTONIC; 0 while nothing is frozen */
    uint64_t flag_address; /* of the word; 0 while no thread waits for it */
    /* What the kernel has counted when the final description is whole in the control socket: COMMIT or the no
     * follows. 0 until that is begun. */
    uint64_t bytes_before_decision;
    uint32_t held;                        /* 1: the tables in `held_file` count */
    int32_t held_file;                    /* held.h; open in both */
    struct lm_leftover *leftover;         /* shared too */
    unsigned char no[LM_CUSTODY_NO_ROOM]; /* a frame of wire/messages.py */
};

/* The custodian's life: blocks until the other end of `lifeline` is closed, decides if that is needed, and
 * exits, with 1 when the word could not be written. lm-serve's memory is given up; `custody` is shared. */
void lm_custodian_run(struct lm_custody *custody, int control_socket, int lifeline);

/* Say the recorded no into the control socket, or what is left of it. 0 or -errno. */
int lm_custody_say_no(const struct lm_custody *custody, int control_socket);

/* Write the word (LM_PARK_...) that the parked threads of `pid` wait for. */
int lm_park_decide(int pid, uint64_t flag_address, uint32_t word);
/* cffi: end */

#endif
