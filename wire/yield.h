/*
 * Bulk takes what is left: faults and bulk use one link, and a fault must not stand in a queue that bulk has filled,
 * neither at the bottleneck nor before it.
 *
 * While faults come, the kernel paces what bulk writes (SO_MAX_PACING_RATE) a little below what the link carries, less what the
 * faults' answers take, in pieces that the link carries in a fraction of a round trip. While none come, nothing is held back.
 *
 * What the link carries is measured when bulk keeps it busy: all bytes that were acknowledged, over the time that took. For
 * that, bulk runs freely as long as the rate is not known, and for some milliseconds every second. Where processors are
 * the limit, and not the link, the socket is empty most of the time, nothing is measured, and nothing is held back.
 *
 * The round trip tells when that was too much: bulk's share shrinks while it is longer than the shortest one.
 */
#ifndef LM_WIRE_YIELD_H
#define LM_WIRE_YIELD_H

#include "wire/channel.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { LM_YIELD_FOUND = 3 };

enum lm_yield_phase { LM_YIELD_FREE, LM_YIELD_SEARCH, LM_YIELD_DRAIN, LM_YIELD_STEADY, LM_YIELD_PROBE };

struct lm_yield {
    struct lm_channel *bulk;
    _Atomic uint64_t faulted_ns; /* when a fault was answered last */
    _Atomic uint64_t urgent;     /* bytes of answers to faults */
    _Atomic uint64_t link;       /* bytes per second that it carries; 0 as long as that is not known */
    _Atomic bool held;           /* faults come */
    /* The bulk thread's. */
    enum lm_yield_phase phase;
    uint64_t steady_ns;           /* from one probe to the next */
    uint64_t phase_ns;            /* when the phase began */
    bool filled;                  /* the link was, since the last probe began */
    uint64_t since_ns;            /* when this window began */
    uint64_t acked;               /* until then, bytes */
    uint64_t answered;            /* until then, bytes to faults */
    uint64_t starved_us;          /* until then, the time for which the receiver had no room */
    bool roomy;                   /* the socket takes as much as that needs */
    bool busy;                    /* in the window before, there was always something to send */
    bool backlog;                 /* then there was something that was not sent yet */
    uint32_t late;                /* how many windows there has been a queue */
    double found[LM_YIELD_FOUND]; /* what the last probes have found */
    double last_rate;             /* what the last window told */
    double share;                 /* of the link that is used */
    double urgent_rate;           /* bytes per second of answers to faults, smoothed */
    uint64_t pacing;              /* as it is set; 0 when nothing is held back */
};

void lm_yield_init(struct lm_yield *yield, struct lm_channel *bulk);
/* The bulk connection is another one. */
void lm_yield_restart(struct lm_yield *yield);

/* A fault is about to be answered by so many bytes, at least. For the thread that answers. */
void lm_yield_to_fault(struct lm_yield *yield, uint64_t bytes);
/* Bulk is about to be written. For the thread that writes. */
void lm_yield_before_bulk(struct lm_yield *yield);
/* Whether faults come. */
bool lm_yield_is_held(const struct lm_yield *yield);
/* How many bytes to write before that is asked again, between `least` and `most`. */
uint32_t lm_yield_portion(const struct lm_yield *yield, uint32_t least, uint32_t most);

#endif
