/* What the parts of the pager share; nobody else includes it. */
#ifndef LM_PAGER_PAGING_H
#define LM_PAGER_PAGING_H

#include "pager/keeper.h"
#include "pager/pager.h"
#include "pager/space.h"
#include "wire/channel.h"
#include "wire/pace.h"
#include "wire/page_stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <zstd.h>

enum {
    LM_FLIGHTS = 16,     /* bulk requests under way */
    LM_PLACE_PAGES = 16, /* placed at a time under the lock: as long as a fault may have to wait for it */
    LM_RECENT_FAULTS = 32,
    LM_STREAMS = 8,
    LM_ANSWERS = 64,             /* answers with neighbours under way */
    LM_CHILD_SPACE = 0x20000000, /* numbers of spaces that were born here */
};

/* Why pages are placed. */
enum lm_purpose { LM_FOR_FAULT, LM_FOR_BULK, LM_FOR_PUSH };

struct lm_how {
    enum lm_purpose purpose;
    uint64_t *empty; /* counts pages without content */
};

/* A thread of the process waits for this page. */
struct lm_pending {
    struct lm_space *space;
    uint64_t address;
    uint64_t since_ns;
    uint32_t id; /* of the request; 0 while it has not been asked for */
    bool local;  /* to be answered with a zero page as soon as the kernel lets us */
};

/* A fault's neighbours, marked ASKED until the answer's last frame. */
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
    bool map; /* it only asks which pages exist */
    uint64_t sent_ns;
};

struct lm_recent {
    struct lm_space *space;
    uint64_t low, high;  /* what has been asked for around the fault */
    uint64_t start, end; /* its mapping, of which alone the fault says something */
    uint32_t pages;      /* how many to ask for next */
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
    size_t map_space; /* how far it has been asked which pages exist */
    uint64_t map_address;
};

/* Pages, by source address, that a push says are not what was pushed before. */
struct lm_discarded_run {
    uint64_t start, end;
    uint32_t source_space;
    bool gone; /* they are zero now */
};

struct lm_discarded {
    struct lm_discarded_run *runs;
    size_t count, capacity;
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
    struct lm_space **spaces;
    size_t space_count, space_capacity;
    uint32_t children;
    uint64_t wanted;
    struct lm_pending *pending;
    size_t pending_count, pending_capacity;
    struct lm_prefetch prefetch;
    pthread_cond_t work; /* the bulk thread may have something to ask for */
    int next_fault_fd;   /* the fault loop is to go over to this connection; -1: none */
    uint32_t next_attempt;
    bool connected; /* faults can be asked for */
    bool prefetching;
    bool followed; /* the source tells what changes, so that what was said to be empty stays known */

    /* Set up before the threads that use them. */
    struct lm_object *objects;
    size_t object_count;
    uint8_t session[16];
    struct lm_keeper keeper;
    int wake; /* an eventfd that the fault loop waits on */
    _Atomic bool stop;
    _Atomic uint32_t fault_pages;

    struct lm_status status; /* LM_PAGER_... */

    /* The fault loop's own. */
    struct lm_channel fault;
    struct lm_inbox fault_inbox;
    ZSTD_DCtx *fault_decompressor;
    unsigned char *fault_unpacked;
    pthread_t fault_thread;
    bool fault_running;
    uint32_t next_id;
    struct lm_neighbours neighbours[LM_ANSWERS];

    /* The bulk thread's own, and before it runs that of receive_push. */
    struct lm_channel bulk;
    struct lm_inbox bulk_inbox;
    ZSTD_DCtx *bulk_decompressor;
    unsigned char *bulk_unpacked;
    pthread_t bulk_thread;
    bool bulk_running;
    struct lm_flight flights[LM_FLIGHTS];
    uint32_t next_run_id;
    struct lm_discarded discarded;
    uint64_t base_ns; /* the quickest answer */
    struct lm_bucket bucket;
};

/* pager.c */
void lm_pager_lock_urgent(struct lm_pager *pager);
void lm_pager_lock_patient(struct lm_pager *pager);
void lm_pager_unlock(struct lm_pager *pager);
/* COMPLETE when nothing is wanted any more. */
void lm_pager_note_progress(struct lm_pager *pager);
/* A connection is of no use any more: end both and stall. Lock held. */
void lm_pager_lost(struct lm_pager *pager, const char *which, int error);
/* A space of our own making; takes the descriptors. Lock held. NULL when there is no memory. */
struct lm_space *lm_pager_new_space(struct lm_pager *pager, uint32_t number, int userfault, int pid,
                                    int memory);
/* The process's memory is no more: discard what was wanted there. Lock held. */
void lm_pager_space_gone(struct lm_pager *pager, struct lm_space *space);

/* placing.c: put the next pages of a frame where they belong (`data` NULL for zero and absent ones), under
 * the lock: a few, or all when there is no data. `*placed` pages of it are done, at first 0. Returns 0 or
 * -errno: -EAGAIN when an event has to be read first (then call again), -EPROTO for a push to where nothing
 * was described. */
int lm_place_some(struct lm_pager *pager, enum lm_purpose purpose, const struct lm_frame *frame,
                  const void *data, uint32_t *placed);
/* The whole frame, out of the fault loop's way for a moment whenever an event has to be read first. Returns
 * -ECANCELED when the pager stops meanwhile. */
int lm_place_frame(struct lm_pager *pager, enum lm_purpose purpose, const struct lm_frame *frame,
                   const void *data);
/* The content of a frame, unpacked if need be; NULL for zero and absent. */
int lm_unpack(const struct lm_frame *frame, const void *payload, ZSTD_DCtx *decompressor,
              unsigned char *buffer, const void **data);
/* Answer with a zero page at a destination address. Lock held. Returns 0 or -EAGAIN. */
int lm_place_zero(struct lm_pager *pager, struct lm_space *space, uint64_t address);

/* discarded.c: remember a DISCARD or GONE frame of a push. Returns 0 or -errno. */
int lm_discarded_note(struct lm_pager *pager, const struct lm_frame *frame);
/* The same for pages that could not be pushed again. */
int lm_discarded_add(struct lm_pager *pager, uint64_t address, uint64_t pages, uint32_t source_space);

/* pending.c; lock held. */
struct lm_pending *lm_pending_find(struct lm_pager *pager, const struct lm_space *space, uint64_t address);
struct lm_pending *lm_pending_add(struct lm_pager *pager, struct lm_space *space, uint64_t address,
                                  uint64_t since_ns);
/* The pages of [start, end) are placed: nobody waits there any more. */
void lm_pending_settle(struct lm_pager *pager, const struct lm_space *space, uint64_t start, uint64_t end);
/* They have moved or gone: wake who waits, who will fault again where it is right. */
void lm_pending_drop(struct lm_pager *pager, const struct lm_space *space, uint64_t start, uint64_t end);
/* They are zero: answer who waits. */
void lm_pending_zero(struct lm_pager *pager, struct lm_space *space, uint64_t start, uint64_t end);

/* neighbours.c; by the fault loop alone. Mark the MISSING pages from `page` on ASKED, at most up to `end`, to
 * come with the answer to the request; lock held. Returns how many. */
uint32_t lm_neighbours_take(struct lm_pager *pager, uint32_t id, const struct lm_range *range, uint64_t page,
                            uint64_t end);
/* The answer under way that brings the page, or 0. */
uint32_t lm_neighbours_answer(const struct lm_pager *pager, uint32_t source_space, uint64_t source);
/* The answer is over; its last frame ended at `end`. What did not come can be asked for again, also by whom
 * waits for it: then `*waited_for` is set. Takes the lock. Returns 0 or -errno. */
int lm_neighbours_end(struct lm_pager *pager, uint32_t id, uint64_t end, bool *waited_for);

/* events.c: what a space's userfaultfd tells; lock held. `faults` has room for LM_MESSAGES. */
enum { LM_MESSAGES = 16 };
int lm_events_read(struct lm_pager *pager, struct lm_space *space, uint64_t *faults, int *count);

/* prefetch.c; lock held. */
struct lm_run {
    uint32_t source_space;
    uint32_t flags; /* LM_REQUEST_... */
    uint64_t address;
    uint32_t pages, reach;
};
void lm_prefetch_note(struct lm_pager *pager, struct lm_space *space, uint64_t low, uint64_t high);
/* How many pages to ask for with a fault at the address: few, on a slow link one, unless faults come one
 * behind the other; then more each time, at most `most`. The stream is to be told where it ended. */
struct lm_stream *lm_prefetch_stream(struct lm_pager *pager, const struct lm_space *space, uint64_t address,
                                     uint32_t most);
/* The next run to ask for, marked ASKED. Returns false when there is none. */
bool lm_prefetch_next(struct lm_pager *pager, struct lm_run *run);
/* The next stretch of which to ask what exists there. Returns false when all has been asked. */
bool lm_prefetch_map(struct lm_pager *pager, struct lm_run *run);

/* fault_loop.c, bulk.c: the threads. */
void *lm_fault_main(void *pager);
void *lm_bulk_main(void *pager);
/* ASKED pages of all spaces are MISSING again. Lock held. */
int lm_pager_unask(struct lm_pager *pager);

#endif
