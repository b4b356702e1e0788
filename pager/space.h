/*
 * An address space of the destination: which of its addresses hold which of the source's pages.
 *
 * Ranges do not overlap and are sorted by address. A range whose pages are paged on demand has a page table; only
 * pushes write to a range without one.
 */
#ifndef LM_PAGER_SPACE_H
#define LM_PAGER_SPACE_H

#include "pager/page_table.h"

#include <stdbool.h>

/* cffi: begin */
#define LM_RANGE_ANONYMOUS 1
#define LM_RANGE_SHARED 2
#define LM_RANGE_WRITTEN 3

struct lm_range {
    uint64_t start, end; /* in the destination */
    uint64_t source;     /* address of the first page in the source */
    uint32_t source_space;
    uint32_t kind;               /* LM_RANGE_... */
    struct lm_page_table *table; /* NULL where nothing is paged on demand */
    uint64_t first;              /* number of the first page in the table */
};

struct lm_space {
    uint32_t number;
    int userfault; /* our descriptor; -1 when closed */
    int pid;       /* 0 for a child that was born meanwhile: it is never written to */
    int memory;    /* /proc/PID/mem, or -1 */
    int pagemap;   /* /proc/PID/pagemap while the kernel tells of guards there, or -1 */
    bool guarded;  /* a guard has been found where a page was to be placed */
    bool gone;     /* the process's memory is no more */
    struct lm_range *ranges;
    size_t count, capacity;
    size_t *by_source; /* the ranges' places in the order of their source addresses */
    bool sorted;       /* by_source is right */
    bool recorded;     /* the ledger has these ranges */
};

/* Takes both descriptors. */
void lm_space_init(struct lm_space *space, uint32_t number, int userfault, int pid, int memory);
void lm_space_deinit(struct lm_space *space);

/* The place of the first range that ends after `address`; `count` if there is none. */
size_t lm_space_find(const struct lm_space *space, uint64_t address);
/* The range that holds the address, or NULL. */
struct lm_range *lm_space_at(const struct lm_space *space, uint64_t address);

/* The range that holds the source's address, else the next one after it that begins before `end`, or NULL. */
struct lm_range *lm_space_by_source(struct lm_space *space, uint32_t source_space, uint64_t address,
                                    uint64_t end);

/* Put a range (which brings its reference to the table) where there is none. Returns 0, -EEXIST or -ENOMEM.
 */
int lm_space_insert(struct lm_space *space, const struct lm_range *range);

/* Take [start, end) out. With `taken`, the pieces are appended to its ranges, with their references; otherwise they are
 * released. Returns 0, or -ENOMEM with nothing changed. */
int lm_space_cut(struct lm_space *space, uint64_t start, uint64_t end, struct lm_space *taken);

/* The child of a fork: the same ranges with tables of its own. Returns 0 or -ENOMEM. */
int lm_space_copy(const struct lm_space *parent, struct lm_space *child);
/* Its ranges have changed. */
void lm_space_changed(struct lm_space *space);
/* cffi: end */

static inline uint64_t lm_range_page(const struct lm_range *range, uint64_t address) {
    return range->first + (address - range->start) / 4096;
}

#endif
