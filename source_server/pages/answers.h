/*
 * The answers to a destination's requests: which pages, read from where, go out as which frames. The request has been
 * checked already (lm_request_check). The answer is complete when the call returns.
 */
#ifndef LM_PAGES_ANSWERS_H
#define LM_PAGES_ANSWERS_H

#include "source_server/pages/sender.h"
#include "source_server/pages/store.h"

/* What became of a request: 0, or -errno, after which the connection is of no use: -EPROTO for what cannot be requested
 * there, -EACCES for what cannot be requested yet. If the memory is `unreadable`, nothing that the destination could
 * use has been sent, and the connection is still good. */
struct lm_answered {
    int error;
    bool unreadable;
};

/* On the FAULT channel. `buffer` has room for LM_FAULT_PAGES. */
struct lm_answered lm_answer_fault(const struct lm_page_store *store, struct lm_page_sender *sender,
                                   const struct lm_request *request, unsigned char *buffer);
/* On the BULK channel. `buffer` has room for LM_RUN_PAGES. */
struct lm_answered lm_answer_bulk(const struct lm_page_store *store, struct lm_page_sender *sender,
                                  const struct lm_request *request, unsigned char *buffer);

#endif
