/* What rounds do with pages: read, send, remember what was sent. */
#ifndef LM_PAGES_ROUND_PAGES_H
#define LM_PAGES_ROUND_PAGES_H

#include "source_server/pages/client.h"
#include "source_server/pages/page_history.h"

/* cffi: begin */
#define LM_LAST_PUSH 1
#define LM_LAST_DISCARD 2
#define LM_LAST_VOID 4

struct lm_round_result {
    uint64_t pages;     /* with content, sent */
    uint64_t zero;      /* of the pages sent, those that were zero */
    uint64_t again;     /* of the pages sent, those that had been sent before */
    uint64_t deferred;  /* written to in every one of the last rounds: not sent */
    uint64_t discarded; /* to be discarded by the destination */
    uint64_t bytes;     /* written to the connection */
    uint64_t cut;       /* 1: the time was over before all had been scanned */
};
/* cffi: end */

/* What is being done with the pages at hand. */
struct lm_round_work {
    struct lm_page_client *client;
    const struct lm_page_reader *reader;
    struct lm_page_history *history;
    uint32_t id;     /* of the push */
    uint32_t number; /* of the round; 0 in the last call */
    uint32_t flags;  /* LM_LAST_... */
    bool digests;    /* keep a digest of each page sent: shared memory */
    struct lm_round_result *result;
    /* Pages to be read and sent together, by their addresses. */
    uint32_t gathered;
    uint64_t addresses[LM_RUN_PAGES];
};

/* Pages of [start, end) that were written to: send them, let those that always are wait for the end, or, in
 * the last call, have them discarded. Returns 0 or -errno. */
int lm_round_take(struct lm_round_work *work, uint64_t start, uint64_t end);
/* Pages that had waited for the end and were not written to in this round: send them. */
int lm_round_send_rested(struct lm_round_work *work, uint64_t start, uint64_t end);
/* Pages that do not exist; pages that existed when they were sent and do so no more. */
int lm_round_send_absent(struct lm_round_work *work, uint64_t start, uint64_t end);
int lm_round_send_gone(struct lm_round_work *work, uint64_t start, uint64_t end);
/* The last call: pages of shared memory that were sent are taken if they are not what was sent. */
int lm_round_compare(struct lm_round_work *work, uint64_t start, uint64_t end);
/* Write what these have gathered. */
int lm_round_flush(struct lm_round_work *work);

#endif
