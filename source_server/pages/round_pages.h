/* What the parts of the rounds share; nobody else includes it. */
#ifndef LM_SOURCE_ROUND_PAGES_H
#define LM_SOURCE_ROUND_PAGES_H

#include "source_server/pages/page_history.h"
#include "source_server/pages/rounds.h"
#include "source_server/pages/serving.h"

struct lm_run_list {
    struct lm_page_run *runs;
    size_t count, capacity;
};

struct lm_rounds {
    struct lm_page_server *server;
    const struct lm_page_reader *reader;
    struct lm_dirty_tracker tracker;
    struct lm_page_history history;
    struct lm_round_range *ranges;
    size_t range_count;
    struct lm_run_list collected; /* LM_DIRTY_SOFT: what is to be sent in this round */
    uint32_t cut_number;          /* the round whose time was over, to be gone on with; 0: none */
    size_t cut_range;
    uint64_t cut_at;
};

/* What is being done with the pages at hand. */
struct lm_round_work {
    struct lm_rounds *rounds;
    uint32_t id;
    uint32_t number; /* of the round; 0 in the last call */
    uint32_t flags;  /* LM_LAST_... */
    bool digests;    /* keep a digest of each page sent: shared memory */
    uint64_t deadline_ns;
    struct lm_round_result *result;
    /* Pages to be read and sent together, by their addresses. */
    uint32_t gathered;
    uint64_t addresses[LM_RUN_PAGES];
};

/* Pages of [start, end) that were written to: send them, let those that always are wait for the end, or, in
 * the last call, tell to discard them. Returns 0 or -errno. */
int lm_round_take(struct lm_round_work *work, uint64_t start, uint64_t end);
/* Pages that had waited for the end and were not written to in this round: send them. */
int lm_round_send_rested(struct lm_round_work *work, uint64_t start, uint64_t end);
/* Pages that do not exist; pages that existed when they were sent and do so no more. */
int lm_round_tell_absent(struct lm_round_work *work, uint64_t start, uint64_t end);
int lm_round_tell_gone(struct lm_round_work *work, uint64_t start, uint64_t end);
/* The last call: pages of shared memory that were sent are taken if they are not what was sent. */
int lm_round_compare(struct lm_round_work *work, uint64_t start, uint64_t end);
/* Write what these have gathered. */
int lm_round_flush(struct lm_round_work *work);

#endif
