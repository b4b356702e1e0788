/*
 * The ledger: what must outlive the pager, in a file in memory that the keeper holds too.
 *
 * A pager that is killed at any instruction leaves a ledger from which another one goes on (recovery.h):
 *
 *     the state of every page      changed in place, one byte a page, only after the kernel has done what it says. A page
 *                                  on its way is REQUESTED until it is in place; whoever is killed in between leaves one that
 *                                  is requested again, and found to be present
 *     the ranges of every space    written as a whole beside those that count, which one store then replaces
 *     events                       read into a slot of a ring. The store that replaces the ranges also says how far the ring
 *                                  is applied; what was read and is not, is applied again, which changes nothing
 *                                  that the first time did
 *     a note                       what Python needs: the session, and how the source is reached
 *
 * While the pager lives it reads the events of the userfaultfds; when it is dead the keeper does, so that no thread waits in munmap
 * or fork. Faults are not kept: whoever goes on wakes all threads that wait, and the kernel reports them again.
 *
 * Who reads holds a lock on the file (flock(2)). Another worker takes it, copies all into a ledger of its own,
 * starts a keeper for that, and only then says that this one does not count any more (`abandoned`). If it dies before that, its
 * lock is gone and everything is as before.
 */
#ifndef LM_PAGER_LEDGER_H
#define LM_PAGER_LEDGER_H

#include "kernel/kernel.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
struct lm_ledger;
/* cffi: end */

enum {
    LM_MESSAGES = 16, /* read at a time */
    LM_LEDGER_SLOTS = 1024,
    LM_LEDGER_SPACES = 1 << 16,
    LM_LEDGER_CLASSES = 48,
};

/* Messages of one userfaultfd, in the order in which they were read. Unread ones have the event 0. */
struct lm_ledger_slot {
    uint64_t sequence;  /* its place among all slots, from 1; anything else: it is not in use */
    int32_t descriptor; /* of the userfaultfd, in the table of whoever has read */
    uint32_t spare;
    struct uffd_msg messages[LM_MESSAGES];
};

/* A range as space.h has it; `table` is an offset, as `chunks` in page_table.h. */
struct lm_ledger_range {
    uint64_t start, end, source;
    uint32_t source_space, kind;
    uint64_t table, first;
};

/* The younger copy whose stamp is not beyond the last commit's counts. */
struct lm_ledger_space {
    uint32_t number;
    int32_t descriptor; /* of the userfaultfd, in the table that pager and keeper share */
    int32_t pid;
    struct lm_ledger_copy {
        uint64_t stamp;
        uint64_t ranges; /* an offset */
        uint64_t count, capacity;
    } copies[2];
};

struct lm_ledger_commit {
    uint64_t stamp;
    uint64_t applied; /* slots */
    uint32_t spaces;
    uint32_t children;
};

/* The beginning of the file. */
struct lm_ledger_head {
    uint64_t layout;     /* LM_LEDGER_LAYOUT */
    int32_t pid;         /* the process whose memory it is */
    int32_t worker;      /* the pager's process id */
    uint32_t active;     /* 1: it counts; before that the predecessor does */
    uint32_t abandoned;  /* 1: it does not count any more */
    uint32_t complete;   /* 1: no page is missing, and nobody has a userfaultfd; the note counts still */
    int32_t predecessor; /* a descriptor of the one that this one was made of; -1: none */
    uint32_t current;    /* of the two commits */
    struct lm_ledger_commit commits[2];
    uint32_t current_note;
    struct lm_ledger_note {
        uint64_t place, length;
    } notes[2];
};

/* A mapping of a ledger. */
struct lm_ledger {
    int fd;
    unsigned char *base;
    uint64_t used;
    struct lm_ledger_freed {
        uint64_t *places;
        size_t count, capacity,
            free; /* the first `free` may be used; the others when what is committed needs them not */
    } freed[LM_LEDGER_CLASSES];
};

#define LM_LEDGER_SPACES_AT 4096
#define LM_LEDGER_SLOTS_AT (LM_LEDGER_SPACES_AT + (uint64_t)LM_LEDGER_SPACES * sizeof(struct lm_ledger_space))
#define LM_LEDGER_REST_AT                                                                                    \
    ((LM_LEDGER_SLOTS_AT + LM_LEDGER_SLOTS * sizeof(struct lm_ledger_slot) + 4095) & ~UINT64_C(4095))
#define LM_LEDGER_SIZE (UINT64_C(1) << 36)
/* Another one's ledger is not read. */
#define LM_LEDGER_LAYOUT (UINT64_C(0x6c6d31) << 40 | LM_LEDGER_REST_AT)

/* A new file, empty. Returns NULL when there is no memory. */
struct lm_ledger *lm_ledger_create(void);
/* Unmap it, and close the descriptor unless it is to be kept for the keeper. */
void lm_ledger_destroy(struct lm_ledger *ledger, bool kept);
/* Map the file for reading and writing; the descriptor stays the caller's. Returns 0 or -errno, -EPROTO for another layout. */
int lm_ledger_map(struct lm_ledger *ledger, int fd);
void lm_ledger_unmap(struct lm_ledger *ledger);

/* Zeroed memory of it, by offset; 0 when there is none. Without a ledger: of the heap, by address. */
uint64_t lm_ledger_take(struct lm_ledger *ledger, uint64_t size);
/* Give it back, with the same size. It is used again after the next commit. */
void lm_ledger_give(struct lm_ledger *ledger, uint64_t place, uint64_t size);

static inline void *lm_ledger_at(const struct lm_ledger *ledger, uint64_t place) {
    return ledger ? ledger->base + place : (void *)(uintptr_t)place;
}

struct lm_ledger_head *lm_ledger_head(const struct lm_ledger *ledger);
const struct lm_ledger_commit *lm_ledger_committed(const struct lm_ledger *ledger);
struct lm_ledger_space *lm_ledger_space(const struct lm_ledger *ledger, uint32_t place);
/* The ranges that count; NULL: none were ever written. */
const struct lm_ledger_copy *lm_ledger_ranges(const struct lm_ledger *ledger, uint32_t place);

/* Room for `count` ranges of a space, which count after the next commit. NULL when there is no memory. */
struct lm_ledger_range *lm_ledger_write(struct lm_ledger *ledger, uint32_t place, uint64_t count);
/* What was written counts, and so many slots are applied. */
void lm_ledger_commit(struct lm_ledger *ledger, uint64_t applied, uint32_t spaces, uint32_t children);

/* The slot at a place of the ring, if messages were read into it, else NULL. */
const struct lm_ledger_slot *lm_ledger_slot(const unsigned char *base, uint64_t place);
/* Read messages of a userfaultfd into that slot. The number of messages, 0 when there are none, or -errno. */
int lm_ledger_read(unsigned char *base, uint64_t place, int userfault);

/* Replace the note. Returns 0 or -ENOMEM. */
int lm_ledger_note(struct lm_ledger *ledger, const void *note, size_t length);

#endif
