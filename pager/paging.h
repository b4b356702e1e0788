/* What the parts of the pager share: its memory, its lock, its spaces. Only they include it. */
#ifndef LM_PAGER_PAGING_H
#define LM_PAGER_PAGING_H

#include "pager/keeper.h"
#include "pager/page_source.h"
#include "pager/space.h"
#include "pager/statistics.h"
#include "wire/pace.h"
#include "wire/status.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* cffi: begin */
#define LM_PAGER_STAGED 0
#define LM_PAGER_RUNNING 1
#define LM_PAGER_COMPLETE 2
#define LM_PAGER_STALLED 3
#define LM_PAGER_FAILED 4
#define LM_PAGER_FINISHED 5

/* What to fetch before all else, by source address. */
struct lm_hot_run {
    uint64_t start;
    uint64_t end;
    uint32_t source_space;
    uint32_t reserved;
};
/* cffi: end */

enum {
    LM_FLIGHTS = 16,     /* bulk requests under way */
    LM_PLACE_PAGES = 16, /* placed at a time under the lock: as long as a fault may have to wait for it */
    LM_RECENT_FAULTS = 32,
    LM_STREAMS = 8,
    LM_ANSWERS = 64,             /* answers with neighbours under way */
    LM_CHILD_SPACE = 0x20000000, /* numbers of spaces that were born here */
};

/* A thread of the process waits for this page. */
struct lm_pending {
    struct lm_space *space;
    uint64_t address;
    uint64_t since_ns;
    uint32_t id; /* of the request; 0 while there is none */
    bool local;  /* to be answered with a zero page as soon as the kernel lets us */
};

/* A fault's neighbours, marked REQUESTED until the answer's last frame. */
struct lm_neighbours {
    uint32_t id;
    uint32_t source_space;
    uint64_t address;
    uint32_t pages;
};

/* A bulk request under way; answers come in the order of their addresses. */
struct lm_flight {
    uint32_t id; /* 0: free */
    uint32_t source_space;
    uint64_t next, end, reach_end;
    uint32_t pages; /* of which the content is requested */
    bool map;       /* it only requests which pages exist */
    uint64_t sent_ns;
};

struct lm_recent {
    struct lm_space *space;
    uint64_t low, high;  /* what has been requested around the fault */
    uint64_t start, end; /* its mapping: the fault says nothing about others */
    uint32_t pages;      /* how many to request next */
};

/* A thread that walks through memory: where its next fault is expected, and how many pages the last one
 * brought. */
struct lm_stream {
    const struct lm_space *space;
    uint64_t next;
    uint32_t window;
};

struct lm_prefetch {
    struct lm_stream streams[LM_STREAMS];
    unsigned newest_stream;
    struct lm_recent recent[LM_RECENT_FAULTS];
    unsigned newest;
    struct lm_hot_run *hot;
    size_t hot_count, hot_at;
    uint32_t hot_ahead; /* pages of hot runs fetched since as many were around faults */
    size_t space_at;
    uint64_t address;
    bool restarted; /* the current pass over all spaces began at the beginning */
    uint32_t run_pages;
    size_t map_space; /* so far it has been requested which pages exist */
    uint64_t map_address;
};

/* Pages, by source address, that have changed since they were pushed, as a later push says. */
struct lm_discarded_run {
    uint64_t start, end;
    uint32_t source_space;
    bool gone; /* they are zero now */
};

struct lm_discarded {
    struct lm_discarded_run *runs;
    size_t count, capacity;
    size_t ordered; /* so many there were when they were put in order last */
};

struct lm_object {
    uint32_t number;
    int fd;
    uint64_t size;
};

struct lm_pager {
    struct lm_pager_statistics *statistics;
    struct lm_pager_statistics own_statistics;

    pthread_mutex_t lock;         /* guards everything from here to the next comment; see fault_loop.c */
    _Atomic int urgent;           /* the fault loop wants it */
    _Atomic int holder_processor; /* where its holder ran when it took it */
    struct lm_ledger *ledger;
    struct lm_space **spaces;
    size_t space_count, space_capacity;
    uint32_t children;
    uint64_t wanted;
    struct lm_pending *pending;
    size_t pending_count, pending_capacity;
    struct lm_prefetch prefetch;
    pthread_cond_t work;               /* the bulk thread may have something to request */
    struct lm_page_source *next_fault; /* the fault loop is to change to this one */
    bool connected;                    /* faults can be requested */
    bool prefetching;
    bool followed; /* the source tells what changes, so that what it said to be empty stays known */

    /* Set up before the threads that use them. */
    struct lm_object *objects;
    size_t object_count;
    struct lm_keeper keeper;
    int wake; /* an eventfd that the fault loop waits on */
    _Atomic bool stop;
    _Atomic uint32_t fault_pages;

    struct lm_status status; /* LM_PAGER_... */

    /* The fault loop's own. */
    struct lm_page_source *fault; /* NULL before there is one; replaced with the lock held */
    pthread_t fault_thread;
    bool fault_running;
    uint32_t next_id;
    struct lm_neighbours neighbours[LM_ANSWERS];

    /* The bulk thread's own; before it runs, receive_push's. */
    struct lm_page_source *bulk;
    pthread_t bulk_thread;
    bool bulk_running;
    struct lm_flight flights[LM_FLIGHTS];
    uint32_t next_run_id;
    struct lm_discarded discarded;
    uint64_t base_ns;  /* the quickest answer */
    uint32_t run_most; /* how many pages a request is for, at most */
    uint32_t window;   /* how many may be under way */
    struct lm_bucket bucket;
};

/* For the fault loop, which others let go first; for everybody else. */
void lm_pager_lock_urgent(struct lm_pager *pager);
void lm_pager_lock_patient(struct lm_pager *pager);
void lm_pager_unlock(struct lm_pager *pager);
/* COMPLETE when nothing is wanted any more. */
void lm_pager_note_progress(struct lm_pager *pager);
/* A source is of no use any more: end both sources and stall. Lock held. */
void lm_pager_lost(struct lm_pager *pager, const char *which, int error);

/* NULL when there is none. Lock held. */
struct lm_space *lm_pager_find_space(const struct lm_pager *pager, uint32_t number);
/* A space of our own making; takes the descriptors. Lock held. NULL when there is no memory. */
struct lm_space *lm_pager_new_space(struct lm_pager *pager, uint32_t number, int userfault, int pid,
                                    int memory);
/* A space of process `pid` (0: a child that was born here), with its files in /proc; takes the userfaultfd. Lock held, or no
 * thread started. NULL with errno. */
struct lm_space *lm_pager_open_space(struct lm_pager *pager, uint32_t number, int userfault, int pid);
/* The process's memory is gone: nothing is wanted there any more. Lock held. */
void lm_pager_space_gone(struct lm_pager *pager, struct lm_space *space);

#endif
