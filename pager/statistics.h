/*
 * The pager's counters and its histogram of fault latencies, in memory that others may map.
 *
 * The histogram is of the HDR kind: sixteen equal buckets for every power of two, so that a value is known to
 * a sixteenth of itself. A latency runs from the fault's message being read to its page being placed, in
 * nanoseconds.
 */
#ifndef LM_PAGER_STATISTICS_H
#define LM_PAGER_STATISTICS_H

#include "wire/status.h"

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define LM_HISTOGRAM_BUCKETS 1024

struct lm_histogram {
    uint64_t count;
    uint64_t sum;
    uint64_t maximum;
    uint64_t buckets[LM_HISTOGRAM_BUCKETS];
};

void lm_histogram_add(struct lm_histogram *histogram, uint64_t value);
/* The smallest value that `share` (0 to 1) of all values do not exceed, to a sixteenth; 0 if there are none. */
uint64_t lm_histogram_quantile(const struct lm_histogram *histogram, double share);

/* Written by the pager's threads, read by anybody. Pages are counted when they are placed. */
struct lm_pager_statistics {
    uint64_t total_pages;      /* pages with content that were placed */
    uint64_t faulted_pages;    /* placed because of a fault */
    uint64_t prefetched_pages; /* placed by the bulk stream */
    uint64_t pushed_pages;     /* placed or written by pushes, hot pages among them */
    uint64_t zero_pages;       /* the source said that they are zero */
    uint64_t absent_pages;     /* the source has none */
    uint64_t discarded_pages;  /* thrown away or unmapped by the process while still missing */
    uint64_t rewritten_pages;  /* pushed over what had been placed before */
    uint64_t dropped_pages;    /* placed, and dropped before the process ran, since they had changed */
    uint64_t late_pages;       /* arrived when they were no longer wanted */
    uint64_t wanted_pages;     /* still to come */
    uint64_t faults;           /* messages of faults */
    uint64_t remote_faults;    /* requested from the source */
    uint64_t local_faults;     /* answered with a zero page */
    uint64_t forks, remaps, removes, unmaps;
    uint64_t spaces;      /* address spaces that are served, children among them */
    uint64_t bytes;       /* content placed */
    uint64_t wire_bytes;  /* headers and payloads received */
    uint64_t eager_bytes; /* what of wire_bytes was pushed */
    uint64_t bulk_rate;   /* bytes per second of content that the bulk stream brings at present */
    struct lm_histogram latency;
};
/* cffi: end */

#endif
