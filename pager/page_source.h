/*
 * A page source takes the pager's requests and gives the frames that answer them, in the terms of the page
 * stream (wire/page_stream.h). A pager has two at a time, one for faults and one for bulk, and does not know what
 * stands behind them: sockets (socket_source.h) or memory (memory_source.h).
 *
 * One thread uses a source at a time, but `shutdown` may come from any.
 */
#ifndef LM_PAGER_PAGE_SOURCE_H
#define LM_PAGER_PAGE_SOURCE_H

#include "wire/page_stream.h"

#include <stdbool.h>
#include <stddef.h>

struct lm_page_source;

/* All return 0 or -errno: -EPIPE when the source has ended, -EPROTO when it breaks the rules. After any error but
 * -EAGAIN the source is of no use. */
struct lm_page_source_operations {
    /* Send sealed requests. */
    int (*request)(struct lm_page_source *source, const struct lm_request *requests, size_t count);
    /* Take in what has come since, once; -EAGAIN if that is nothing. `wait`: wait for it, for LM_LOOK_MS at most. `first`: take no more than one
     * page, for which somebody waits. What `next` gave is not valid any more. */
    int (*receive)(struct lm_page_source *source, bool first, bool wait);
    /* The next frame that was taken in as a whole, or -EAGAIN. `*data` is its content as it is to be in memory, or NULL if
     * it has none; it is valid until the next call. */
    int (*next)(struct lm_page_source *source, struct lm_frame *frame, const void **data);
    /* Whether something was taken in that `next` has not given yet. */
    bool (*holds)(const struct lm_page_source *source);
    /* Whether there is something to take in that poll(2) does not show at the descriptor. */
    bool (*pending)(const struct lm_page_source *source);
    /* Give an error to whoever waits in a call, in any thread. */
    void (*shutdown)(struct lm_page_source *source);
    void (*close)(struct lm_page_source *source);
};

/* What each kind of source begins with. */
struct lm_page_source {
    const struct lm_page_source_operations *operations;
    int descriptor; /* readable when there is something to take in (poll(2)) */
};

static inline int lm_page_source_request(struct lm_page_source *source, const struct lm_request *requests,
                                         size_t count) {
    return source->operations->request(source, requests, count);
}

static inline int lm_page_source_receive(struct lm_page_source *source, bool first, bool wait) {
    return source->operations->receive(source, first, wait);
}

static inline int lm_page_source_next(struct lm_page_source *source, struct lm_frame *frame,
                                      const void **data) {
    return source->operations->next(source, frame, data);
}

static inline bool lm_page_source_holds(const struct lm_page_source *source) {
    return source->operations->holds(source);
}

static inline bool lm_page_source_pending(const struct lm_page_source *source) {
    return source->operations->pending(source);
}

/* NULL is no source, and nothing is done; the same holds for `close`. */
void lm_page_source_shutdown(struct lm_page_source *source);

/* cffi: begin */
struct lm_page_source;

void lm_page_source_close(struct lm_page_source *source);
/* cffi: end */

#endif
