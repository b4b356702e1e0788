/*
 * Custody of the source: what was decided is carried out and told, whatever becomes of lm-serve.
 *
 * Before the handover the threads are parked in a stub that waits for a word in its own memory: 1, stay for
 * ever, or 2, return to where they were. The decision is one compare-and-swap in memory that lm-serve and its custodian share
 * (wire/decision.h), before anything is sent or thawed. The custodian, a process that does nothing else, outlives
 * lm-serve (custodian.c). When lm-serve ends with nothing decided, it decides against the handover; then it writes the word to
 * threads that still wait for one, and tells the destination, or answers it, until that has said what became of its
 * copy. It is the custodian alone that hears the DECISION connection here, and lets a new one in, or makes one.
 *
 * What kinds of descriptors hold (held_table.h) goes the same way: lm-serve runs the table of COMMIT, or that of the
 * no before the threads go home, and where it has died, the custodian runs what is left of it.
 *
 * When the threads are at home, or on their way, it has what lm-serve has left in their memory taken away (leftover.h).
 *
 * It is also the last bound of a freeze: when lm-serve itself hangs, long after the time that the freeze may
 * take, the custodian decides against the handover and kills it, and the threads return to where they were.
 */
#ifndef LM_SOURCE_SERVER_CUSTODY_H
#define LM_SOURCE_SERVER_CUSTODY_H

#include "source_server/leftover.h"
#include "wire/decision.h"

#include <stdint.h>

/* cffi: begin */
/* Shared between lm-serve and its custodian. */
struct lm_custody {
    struct lm_decision decision;
    uint32_t at_stake;     /* 1 from the first freeze on: the destination may wait for what is decided */
    int32_t pid;           /* of the process */
    int32_t serve;         /* lm-serve's process id */
    uint64_t deadline_ns;  /* CLOCK_MONOTONIC; 0 while nothing is frozen */
    uint64_t flag_address; /* of the word; 0 while no thread waits for it. */
    uint32_t held;         /* 1: the tables in `held_file` count */
    int32_t held_file;     /* held_table.h; open in both */
    uint32_t over;         /* 1: the custodian has done and told all that there was, and has left */
    struct lm_leftover leftover;
};

/* Write the word (LM_PARK_...) that the parked threads of `pid` wait for. */
int lm_park_decide(int pid, uint64_t flag_address, uint32_t word);
/* cffi: end */

#endif
