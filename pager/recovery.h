/*
 * Going on where another pager was killed: from its ledger, and with duplicates of its userfaultfds, which its keeper holds.
 *
 *     lock the ledger -> create -> recover -> start -> connect: it fetches what is missing
 *
 * The ledger is locked (flock(2)) on an open file of the caller's own, so that the keeper reads no more. Up to start the old ledger
 * counts, and whoever dies has changed nothing; from then on the new one does, and the old keeper leaves.
 */
#ifndef LM_PAGER_RECOVERY_H
#define LM_PAGER_RECOVERY_H

#include "pager/paging.h"

/* cffi: begin */
/* A userfaultfd: its number in the keeper's table, and here. */
struct lm_recovered {
    int32_t there;
    int32_t here;
};

/* What a ledger says of itself. */
struct lm_ledger_facts {
    int32_t pid;    /* the process whose memory it is */
    int32_t worker; /* the last pager's process id */
    bool counts;    /* no other one does */
    bool complete;  /* there is nothing to recover but the note */
    uint64_t note;  /* bytes */
};

/* Read them, and at most `room` bytes of the note. Returns 0 or -errno, -EPROTO for another version's. */
int lm_pager_facts(int ledger, struct lm_ledger_facts *facts, void *note, size_t room);

/* Say that a ledger does not count any more, so that its keeper leaves. Returns 0 or -errno. */
int lm_pager_abandon(int ledger);

/* Fill a fresh pager from a ledger that the caller has locked. The pager takes the descriptors over, the ledger's too. Returns 0 or
 * -errno: -ESRCH when no process needs it any more. */
int lm_pager_recover(struct lm_pager *pager, int ledger, const struct lm_recovered *found, size_t count);
/* cffi: end */

/* From here on this pager's ledger counts, and threads that have waited all the time fault again. */
void lm_recovery_settle(struct lm_pager *pager);

#endif
