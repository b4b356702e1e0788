/*
 * The keeper: a process whose only work is to hold the descriptors.
 *
 * When the last descriptor of a userfaultfd closes, every thread that waits for a page wakes and reads zeros.
 * So a second process shares the pager's descriptor table (clone(2) with CLONE_FILES and without CLONE_VM).
 * The descriptors of fork events appear in it without anybody passing them on. When the pager dies, the keeper
 * closes everything else, so that the source learns of it, and holds the userfaultfds and the ledger until no process needs
 * them any more, or another pager has taken them over. It reads events meanwhile (ledger.h). When the keeper dies, the
 * pager starts another one.
 */
#ifndef LM_PAGER_KEEPER_H
#define LM_PAGER_KEEPER_H

#include "pager/ledger.h"

#include <stdbool.h>

struct lm_keeper {
    int pid;      /* 0: there is none */
    int finished; /* an eventfd: the keeper may go */
    int pager;    /* a pidfd of the pager's process, which the keeper watches */
    int itself;   /* a pidfd of the keeper, which the pager watches */
};

#define LM_NO_KEEPER ((struct lm_keeper){.finished = -1, .pager = -1, .itself = -1})

/* Start the keeper. Returns 0 or -errno. */
int lm_keeper_start(struct lm_keeper *keeper, const struct lm_ledger *ledger);
/* Start another one in the place of one that has ended. Returns 0 or -errno. */
int lm_keeper_replace(struct lm_keeper *keeper, const struct lm_ledger *ledger);
/* Let it go and wait until it has gone. */
void lm_keeper_finish(struct lm_keeper *keeper);
/* Free what is kept of it here; the keeper itself stays. */
void lm_keeper_leave(struct lm_keeper *keeper);

/* Whether the address space behind the userfaultfd still exists. */
bool lm_keeper_is_alive(int userfaultfd);

#endif
