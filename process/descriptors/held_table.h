/*
 * What kinds of descriptors hold at the freeze (process/descriptors/held.py), as data: two tables of system
 * calls on descriptors of the source. One runs when the process has been handed over (commit), the other one
 * when it has not (undo). lm-serve runs them or, if it has died, its custodian.
 *
 * They stand in a file in memory that both have open. Every row that was run is counted there, so that the
 * custodian goes on where lm-serve has died: only the row in which it died runs a second time.
 */
#ifndef LM_PROCESS_HELD_TABLE_H
#define LM_PROCESS_HELD_TABLE_H

#include <stdint.h>

/* cffi: begin */
#define LM_HELD_ARGUMENTS 6
#define LM_HELD_NO_DESCRIPTOR 4294967295u
#define LM_HELD_ROOM 65536

#define LM_HELD_COMMIT 0
#define LM_HELD_UNDO 1

/* What an argument is. */
#define LM_HELD_VALUE 0
#define LM_HELD_DESCRIPTOR 1 /* the row's own */
#define LM_HELD_RESULT 2     /* what the row that began the block has given */
#define LM_HELD_DATA 3       /* the address of what stands at this offset of the data */
#define LM_HELD_BUFFER 4     /* the address of LM_HELD_ROOM bytes that nobody reads */
#define LM_HELD_RULES 5      /* sockets of our own, as the head has them */
#define LM_HELD_ROUTES 6

/* A descriptor of the source. One with another inode by now is left alone, and so is one that is `spared`. */
struct lm_held_descriptor {
    int32_t number;
    uint32_t spared;
    uint64_t inode;
};

/* A system call. It is made at most `most` times, as long as it gives more than 0. With `block`, that many rows
 * after it are run for each descriptor that it gives, which is closed then. A row that writes `expected` bytes (not 0) to a connection is run
 * only if so many were written before as `written` says (lm_tcp_written), since it must not run twice; and where it writes
 * fewer, the connection is reset: rather no connection than one that lacks bytes. */
struct lm_held_row {
    uint32_t call;
    uint32_t descriptor; /* its index, or LM_HELD_NO_DESCRIPTOR */
    uint32_t most;
    uint32_t block;
    uint32_t expected;
    uint32_t written;
    uint64_t arguments[LM_HELD_ARGUMENTS];
    uint8_t kinds[LM_HELD_ARGUMENTS];
};

/* The head of the file. The descriptors follow, then the rows of commit, those of undo, then the data. `done`:
 * so many rows of each table are run. */
struct lm_held {
    int32_t pid;
    uint32_t descriptors;
    uint32_t rows[2];
    uint32_t done[2];
    int32_t sockets[2]; /* for LM_HELD_RULES and LM_HELD_ROUTES; -1: none */
};

/* Run the rest of a table of the file, which is whole. What cannot be done is left. 0, or -errno if nothing could be
 * begun. */
int lm_held_run(int file, int table);
/* The same for whoever has duplicates of its own: `own` has one for each descriptor of the table, or -1. They stand for
 * those of a process that has ended. */
int lm_held_run_with(int file, int table, const int *own);
/* cffi: end */

#endif
