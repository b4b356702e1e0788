#include "wire/yield.h"

#include "wire/pace.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

/* Times in nanoseconds: how long a window of measuring is; for how long after a fault others are expected; how
 * much the link may carry of one piece. */
enum { WINDOW_NS = 4000000, EXPECTED_NS = 30000000, PIECE_NS = 240000 };
/* From one probe to the next, at first and later; how long that takes. */
enum { STEADY_FIRST_NS = 128000000, STEADY_NS = 1024000000, PROBE_NS = 12000000 };
/* How many windows with a queue, one after another, are a queue that bulk has made. */
enum { LATE = 2 };
enum {
    PIECE_LEAST = 8 << 10,
    PIECE_MOST = 64 << 10,
    UNSENT_LEAST = 128 << 10,
    UNSENT_MOST = 8 << 20,
    UNSENT_FREE = 1 << 20
};
/* Bulk is never paced slower, in bytes per second: the thread that writes has to come by and look again. */
enum { PACE_LEAST = 1 << 20 };
/* The queue that makes bulk's share shrink, in microseconds. */
enum { QUEUE_US = 500 };

static const double SHARE_MOST = 0.94, SHARE_LEAST = 0.85, DRAINING = 0.3;

void lm_yield_init(struct lm_yield *yield, struct lm_channel *bulk) {
    memset(yield, 0, sizeof *yield);
    yield->bulk = bulk;
    yield->share = SHARE_MOST;
    yield->steady_ns = STEADY_FIRST_NS;
}

void lm_yield_restart(struct lm_yield *yield) {
    lm_yield_init(yield, yield->bulk);
}

/* A rate of 0 is none. Where the socket does not know it, nothing is paced. */
static void pace(const struct lm_yield *yield, uint64_t rate) {
    unsigned long most = rate ? rate : ~0ul;
    setsockopt(lm_channel_descriptor(yield->bulk), SOL_SOCKET, SO_MAX_PACING_RATE, &most, sizeof most);
}

void lm_yield_to_fault(struct lm_yield *yield, uint64_t bytes) {
    atomic_fetch_add_explicit(&yield->urgent, bytes, memory_order_relaxed);
    atomic_store_explicit(&yield->faulted_ns, lm_now_ns(), memory_order_relaxed);
    /* The first one after a while finds what bulk has written freely before it: that drains first. */
    if (atomic_load_explicit(&yield->held, memory_order_relaxed) ||
        atomic_exchange_explicit(&yield->held, true, memory_order_relaxed))
        return;
    uint64_t link = atomic_load_explicit(&yield->link, memory_order_relaxed);
    if (link)
        pace(yield, link / 2 > PACE_LEAST ? link / 2 : PACE_LEAST);
}

/* Begin a phase: how fast bulk may be, how much may wait in the socket, and in what pieces it travels. */
static void let(struct lm_yield *yield, enum lm_yield_phase phase, uint64_t rate) {
    if (yield->phase != phase)
        yield->phase_ns = yield->since_ns;
    yield->phase = phase;
    uint64_t difference = rate > yield->pacing ? rate - yield->pacing : yield->pacing - rate;
    if (difference <= rate / 64 && (rate || !yield->pacing))
        return;
    yield->pacing = rate;
    uint64_t piece = rate / 1000 * PIECE_NS / 1000000;
    yield->bulk->piece = !rate || piece >= PIECE_MOST ? 0
                         : piece < PIECE_LEAST        ? PIECE_LEAST
                                                      : (uint32_t)piece;
    /* What waits in the socket is paced all the same, and lasts when this thread is kept waiting for a processor. In a short
     * phase, it has to be there in time for the next. */
    uint64_t unsent = phase == LM_YIELD_STEADY  ? rate / 16
                      : phase == LM_YIELD_DRAIN ? rate / 250
                                                : UNSENT_FREE;
    uint32_t least = phase == LM_YIELD_FREE  ? 0
                     : unsent < UNSENT_LEAST ? UNSENT_LEAST
                     : unsent > UNSENT_MOST  ? UNSENT_MOST
                                             : (uint32_t)unsent;
    int fd = lm_channel_descriptor(yield->bulk), room = UNSENT_MOST / 2;
    /* The kernel gives a connection room by what is in flight, which is little without a queue. */
    if (phase == LM_YIELD_STEADY && !yield->roomy)
        yield->roomy = !setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &least, sizeof least);
    pace(yield, rate);
}

static uint64_t below(const struct lm_yield *yield, double share) {
    double link = (double)atomic_load_explicit(&yield->link, memory_order_relaxed);
    double rate = share * link - yield->urgent_rate, least = link / 16 > PACE_LEAST ? link / 16 : PACE_LEAST;
    return (uint64_t)(rate > least ? rate : least);
}

/* What the window tells: the rate at which bytes were acknowledged, which the link carries at least; and whether it was full
 * all the time. */
static double measure(struct lm_yield *yield, const struct tcp_info *info, uint64_t now) {
    uint64_t answered = atomic_load_explicit(&yield->urgent, memory_order_relaxed);
    double seconds = (double)(now - yield->since_ns) / 1e9;
    double urgent = (double)(answered - yield->answered),
           bulk = (double)(info->tcpi_bytes_acked - yield->acked);
    bool starved = (double)(info->tcpi_rwnd_limited - yield->starved_us) > 2e5 * seconds;
    yield->busy = yield->backlog && info->tcpi_notsent_bytes && !starved;
    yield->urgent_rate += (urgent / seconds - yield->urgent_rate) / 4;
    yield->answered = answered;
    yield->acked = info->tcpi_bytes_acked;
    yield->starved_us = info->tcpi_rwnd_limited;
    yield->backlog = info->tcpi_notsent_bytes;
    yield->since_ns = now;
    yield->filled |= yield->busy;
    return (bulk + urgent) / seconds;
}

/* Take over what bulk was measured to get while nothing held it back. The smaller of two windows counts: after a pause of a
 * processor or of the link, more arrives in one than the link carries. */
static void learn(struct lm_yield *yield, double rate) {
    double sure = rate < yield->last_rate ? rate : yield->last_rate;
    yield->last_rate = rate;
    if (sure > yield->found[0])
        yield->found[0] = sure;
    double link = 0;
    for (int i = 0; i < LM_YIELD_FOUND; i++)
        link = yield->found[i] > link ? yield->found[i] : link;
    atomic_store_explicit(&yield->link, (uint64_t)link, memory_order_relaxed);
}

/* What this probe finds counts as much as what the last ones have found: a processor may have kept one of them small. */
static void probe(struct lm_yield *yield) {
    if (yield->filled) {
        memmove(yield->found + 1, yield->found, sizeof yield->found - sizeof yield->found[0]);
        yield->found[0] = 0;
    }
    yield->filled = false;
    yield->last_rate = 0;
    yield->steady_ns = yield->steady_ns * 2 < STEADY_NS ? yield->steady_ns * 2 : STEADY_NS;
    let(yield, LM_YIELD_PROBE, 0);
}

/* The next window, while faults come. */
static void go_on(struct lm_yield *yield, double rate, bool queued) {
    uint64_t lasted = yield->since_ns - yield->phase_ns;
    if (yield->phase == LM_YIELD_SEARCH || yield->phase == LM_YIELD_PROBE)
        learn(yield, rate);
    bool known = atomic_load_explicit(&yield->link, memory_order_relaxed) != 0;
    /* Once it may also be a processor that somebody else had. */
    yield->late = queued ? yield->late + 1 : 0;
    switch (yield->phase) {
    case LM_YIELD_FREE:
    case LM_YIELD_SEARCH:
        if (known && yield->late >= LATE)
            let(yield, LM_YIELD_DRAIN, below(yield, DRAINING));
        else
            let(yield, LM_YIELD_SEARCH, 0);
        return;
    case LM_YIELD_PROBE:
        if (lasted < PROBE_NS)
            return;
        if (queued)
            let(yield, LM_YIELD_DRAIN, below(yield, DRAINING));
        else
            let(yield, LM_YIELD_SEARCH, 0);
        return;
    case LM_YIELD_STEADY:
        if (lasted >= yield->steady_ns) {
            probe(yield);
            return;
        }
        if (yield->late >= LATE)
            yield->share = yield->share * 0.9 > SHARE_LEAST ? yield->share * 0.9 : SHARE_LEAST;
        else if (!queued && yield->share < SHARE_MOST)
            yield->share = yield->share + 0.02 < SHARE_MOST ? yield->share + 0.02 : SHARE_MOST;
        break;
    case LM_YIELD_DRAIN:
        break;
    }
    let(yield, LM_YIELD_STEADY, below(yield, yield->share));
}

bool lm_yield_is_held(const struct lm_yield *yield) {
    return atomic_load_explicit(&yield->held, memory_order_relaxed);
}

uint32_t lm_yield_portion(const struct lm_yield *yield, uint32_t least, uint32_t most) {
    uint64_t bytes = yield->pacing ? yield->pacing / 500 : most;
    return bytes < least ? least : bytes > most ? most : (uint32_t)bytes;
}

void lm_yield_before_bulk(struct lm_yield *yield) {
    uint64_t now = lm_now_ns();
    if (now - yield->since_ns < WINDOW_NS)
        return;
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    if (getsockopt(lm_channel_descriptor(yield->bulk), IPPROTO_TCP, TCP_INFO, &info, &size))
        return;
    double rate = measure(yield, &info, now);
    uint64_t faulted = atomic_load_explicit(&yield->faulted_ns, memory_order_relaxed);
    if (!faulted || now > faulted + EXPECTED_NS) {
        if (yield->phase == LM_YIELD_FREE && yield->busy)
            learn(yield, rate);
        let(yield, LM_YIELD_FREE, 0);
        atomic_store_explicit(&yield->held, false, memory_order_relaxed);
        return;
    }
    if (yield->phase == LM_YIELD_FREE)
        yield->pacing = UINT64_MAX; /* the fault has set another pace */
    uint64_t piece_us =
        yield->bulk->piece && yield->pacing ? yield->bulk->piece * 1000000ul / yield->pacing : 0;
    uint64_t most = info.tcpi_min_rtt / 4 > QUEUE_US ? info.tcpi_min_rtt / 4 : QUEUE_US;
    most = most > 3 * piece_us ? most : 3 * piece_us;
    go_on(yield, rate, info.tcpi_rtt > info.tcpi_min_rtt + most);
}
