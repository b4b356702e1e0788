/*
 * Puts pages on a channel: it finds zeros, compresses where that pays, and gathers frames into few writes.
 */
#ifndef LM_PAGES_SENDER_H
#define LM_PAGES_SENDER_H

#include "wire/channel.h"
#include "wire/pace.h"
#include "wire/page_stream.h"
#include "wire/yield.h"

#include <pthread.h>
#include <zstd.h>

/* cffi: begin */
/* The counters of a client. */
struct lm_client_statistics {
    uint64_t pages;         /* pages sent with content */
    uint64_t zero_pages;    /* pages found to be zero */
    uint64_t absent_pages;  /* pages that the process does not have */
    uint64_t fault_pages;   /* pages sent for a fault, and requested themselves */
    uint64_t bulk_pages;    /* pages sent for a run */
    uint64_t pushed_pages;  /* pages pushed */
    uint64_t skipped_pages; /* pages not pushed again, because they had not changed */
    uint64_t bytes;         /* of pages with content, as they were in memory */
    uint64_t wire_bytes;    /* headers and payloads */
    uint64_t eager_bytes;   /* what of wire_bytes was pushed */
    uint64_t packed_pages;  /* pages that travelled compressed */
    uint64_t requests;      /* requests served */
    uint64_t link_rate;     /* bytes per second the link took when it was the limit; 0 when it never was */
};
/* cffi: end */

enum { LM_SENDER_FRAMES = 64 };

struct lm_page_sender {
    struct lm_channel *channel;
    struct lm_pace *pace;
    struct lm_bucket *bucket; /* NULL where nothing is ever held back; the same holds for `yield` */
    struct lm_yield *yield;
    struct lm_client_statistics *statistics;
    bool urgent;              /* what is being sent is not held back; until the next begin */
    uint64_t written_ns;      /* when something was last written */
    const _Atomic bool *stop; /* ends a wait for the bucket */
    ZSTD_CCtx *compressor;
    unsigned char *packed; /* compressed payloads of the frames that are waiting */
    size_t packed_size, packed_used;
    uint32_t space, id;
    int count;
    struct lm_frame frames[LM_SENDER_FRAMES];
    struct iovec parts[2 * LM_SENDER_FRAMES];
};

/* Room for `pages` pages per answer. Returns 0 or -ENOMEM. */
int lm_page_sender_init(struct lm_page_sender *sender, uint32_t pages);
void lm_page_sender_deinit(struct lm_page_sender *sender);

/* Discard what has been gathered and not written. */
void lm_page_sender_drop(struct lm_page_sender *sender);
/* Begin an answer or a push: what follows belongs to `space` and bears `id`. */
void lm_page_sender_begin(struct lm_page_sender *sender, uint32_t space, uint32_t id);

/* Pages with their content; `data` must not change until the flush. */
int lm_page_sender_pages(struct lm_page_sender *sender, uint64_t address, uint32_t pages, const void *data);
/* Frames without payload: LM_FRAME_ZERO, LM_FRAME_ABSENT, LM_FRAME_END. */
int lm_page_sender_empty(struct lm_page_sender *sender, int kind, uint64_t address, uint32_t pages);
/* At once: we are there. Between answers only. Returns 0 or -errno. */
int lm_page_sender_pong(struct lm_page_sender *sender);
/* The same if nothing was written for LM_LOOK_MS: of a push that takes its time, or is held back. */
void lm_page_sender_show_life(struct lm_page_sender *sender);
/* Instead of an answer: the memory cannot be read, for the reason -`error`. */
int lm_page_sender_failed(struct lm_page_sender *sender, int error);

/* Write what has been gathered; `last` marks the last frame. Returns 0 or -errno. */
int lm_page_sender_flush(struct lm_page_sender *sender, bool last);

#endif
