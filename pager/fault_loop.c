/*
 * The fault loop: one thread that reads every message of every userfaultfd and every answer to a fault, and
 * never waits for anything else.
 *
 * Its rules, each with the kernel's behaviour behind it:
 *
 * 1. Messages are read only with the pager's lock held, and pages are placed only with it held.
 * madvise(MADV_DONTNEED), munmap, mremap and fork go on as soon as their event has been read; a copy that
 * began before, and ends after, would put an old page where the process has been promised a new one. So the
 * state of a page is read after the lock is taken, and placing in bulk gives the lock up every few pages.
 * 2. While an event is unread UFFDIO_COPY and UFFDIO_ZEROPAGE answer EAGAIN, and for a moment afterwards.
 * Whoever places then gives the lock up, lets the event be read here, and begins again with the state of the
 * page.
 * 3. A fault message can be older than the placing of its page. So a fault on a page that is there is
 * answered by UFFDIO_ZEROPAGE: EEXIST means wake, anything else means that the process has given the page
 * back (MADV_FREE has no event).
 * 4. A page on its way in bulk is requested again, from the fault source: the first copy to arrive is
 * placed, the other dropped. A page that comes as a neighbour of a fault's page is waited for: no answer
 * overtakes it.
 * 5. A child's pages are the parent's at the moment of the event: its table is copied before the next page is
 * placed.
 * 6. Waiters sleep by address. When a range moves or goes, they are woken, and fault again at the right place.
 * 7. A fault that was read is not reported again. It is remembered until its page is placed, even if a source
 * is lost meanwhile.
 */
#define _GNU_SOURCE
#include "pager/fault_loop.h"

#include "kernel/urgency.h"
#include "pager/events.h"
#include "pager/neighbours.h"
#include "pager/pending.h"
#include "pager/placing.h"
#include "pager/prefetch.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { REQUESTS = 64, FIXED_POLLS = 3, KEEPER_MS = 200 };

struct loop {
    struct lm_pager *pager;
    struct pollfd *polls; /* the wake-up, the page source, the keeper, then a place per space */
    size_t poll_capacity;
    struct lm_request requests[REQUESTS];
    int request_count;
    struct lm_frame frame; /* the answer that is being placed */
    const void *data;
    uint32_t placed;
    bool placing;
    bool begun;       /* the first frame of an answer has been placed, but not its last */
    bool more;        /* there is more to place of what has been read */
    bool lost;        /* there is no source to take from */
    uint64_t look_ns; /* when it was last looked whether anything comes */
    int silent;       /* such looks since something came */
    bool hurried;     /* something waits for a moment to pass */
};

/* Request the page of a fault, and with it those neighbours that nobody has requested yet. Lock held.
 */
static void request_page(struct loop *loop, struct lm_pending *pending, const struct lm_range *range) {
    struct lm_pager *pager = loop->pager;
    uint64_t page = lm_range_page(range, pending->address);
    uint64_t last = lm_range_page(range, range->end - LM_PAGE_SIZE) + 1;
    if (loop->request_count == REQUESTS || !pager->connected)
        return; /* it is requested on the next round */
    uint64_t source = range->source + (pending->address - range->start);
    lm_count(&pager->statistics->remote_faults, 1);
    pending->id = lm_neighbours_answer(pager, range->source_space, source);
    if (pending->id)
        return;
    uint32_t limit = atomic_load_explicit(&pager->fault_pages, memory_order_relaxed);
    struct lm_stream *stream = lm_prefetch_stream(pager, pending->space, pending->address, limit);
    uint64_t end = last - page > stream->window ? page + stream->window : last;
    if (++pager->next_id == 0)
        pager->next_id = 1;
    pending->id = pager->next_id;
    uint32_t more = lm_neighbours_take(pager, pending->id, range, page + 1, end);
    stream->next = pending->address + (1 + more) * LM_PAGE_SIZE;
    struct lm_request *request = &loop->requests[loop->request_count++];
    *request = (struct lm_request){.kind = LM_REQUEST_FAULT,
                                   .space = range->source_space,
                                   .address = source,
                                   .pages = 1 + more,
                                   .id = pending->id};
    lm_request_seal(request);
    lm_prefetch_note(pager, pending->space, pending->address, pending->address + (1 + more) * LM_PAGE_SIZE);
}

/* Lock held. */
static void on_fault(struct loop *loop, struct lm_space *space, uint64_t address, uint64_t now) {
    struct lm_pager *pager = loop->pager;
    lm_count(&pager->statistics->faults, 1);
    struct lm_range *range = lm_space_at(space, address);
    bool wanted =
        range && range->table &&
        LM_STATES(lm_page_table_get(range->table, lm_range_page(range, address))) & LM_STATES_WANTED;
    if (!wanted && lm_place_zero(pager, space, address) == 0) {
        lm_histogram_add(&pager->statistics->latency, lm_now_ns() - now);
        return;
    }
    if (space->gone || lm_pending_find(pager, space, address))
        return;
    struct lm_pending *pending = lm_pending_add(pager, space, address, now);
    if (!pending) {
        lm_status_set(&pager->status, LM_PAGER_FAILED, "%s", "no memory to remember a fault");
        return;
    }
    pending->local = !wanted;
    if (wanted)
        request_page(loop, pending, range);
}

/* Do what could not be done at once: zero pages that the kernel would not take, faults without a source.
 * Lock held. */
static void retry(struct loop *loop) {
    struct lm_pager *pager = loop->pager;
    loop->hurried = false;
    for (size_t i = pager->pending_count; i-- > 0;) {
        /* Settling one fault may settle others. */
        if (i >= pager->pending_count)
            continue;
        struct lm_pending *pending = &pager->pending[i];
        if (pending->id && !pending->local)
            continue;
        struct lm_space *space = pending->space;
        struct lm_range *range = lm_space_at(space, pending->address);
        bool wanted = range && range->table &&
                      LM_STATES(lm_page_table_get(range->table, lm_range_page(range, pending->address))) &
                          LM_STATES_WANTED;
        if (wanted) {
            pending->local = false;
            request_page(loop, pending, range);
            continue;
        }
        pending->local = true;
        uint64_t address = pending->address, since = pending->since_ns;
        if (lm_place_zero(pager, space, address)) {
            loop->hurried = true;
        } else if (!space->gone) {
            lm_histogram_add(&pager->statistics->latency, lm_now_ns() - since);
            pager->pending[i] = pager->pending[--pager->pending_count];
        }
    }
}

/* Read the messages of all spaces that have some, then do what they say. */
static void serve_spaces(struct loop *loop, size_t spaces) {
    struct lm_pager *pager = loop->pager;
    uint64_t faults[LM_MESSAGES];
    int count;
    lm_pager_lock_urgent(pager);
    for (size_t i = 0; i < spaces; i++) {
        if (!(loop->polls[FIXED_POLLS + i].revents & (POLLIN | POLLERR)))
            continue;
        struct lm_space *space = pager->spaces[i];
        if (space->gone || lm_events_read(pager, space, faults, &count))
            continue;
        uint64_t now = lm_now_ns();
        for (int j = 0; j < count && !space->gone; j++)
            on_fault(loop, space, faults[j], now);
    }
    if (pager->pending_count)
        retry(loop);
    lm_pager_unlock(pager);
    lm_pager_note_progress(pager);
}

/* What was requested will not come any more. Lock held. */
static void discard_requested(struct loop *loop) {
    struct lm_pager *pager = loop->pager;
    for (size_t i = 0; i < pager->pending_count; i++)
        pager->pending[i].id = 0;
    memset(pager->neighbours, 0, sizeof pager->neighbours);
    loop->placing = loop->more = loop->begun = false;
    loop->request_count = 0;
}

static void lose(struct loop *loop, int error) {
    struct lm_pager *pager = loop->pager;
    lm_pager_lock_urgent(pager);
    pager->connected = false;
    discard_requested(loop);
    /* If the next source is there already, this one's end means nothing. */
    if (!pager->next_fault)
        lm_pager_lost(pager, "fault", error);
    lm_pager_unlock(pager);
    loop->lost = true;
}

static void send_requests(struct loop *loop) {
    if (!loop->request_count || loop->lost)
        return;
    int error = lm_page_source_request(loop->pager->fault, loop->requests, (size_t)loop->request_count);
    bool more = loop->request_count == REQUESTS;
    loop->request_count = 0;
    if (error)
        lose(loop, error);
    loop->hurried |= more;
}

/* The next frame that has come. Returns 1, 0 when no whole frame has come, or what ends the source. */
static int next_answer(struct loop *loop) {
    struct lm_pager *pager = loop->pager;
    int error;
    do
        error = lm_page_source_next(pager->fault, &loop->frame, &loop->data);
    while (!error && loop->frame.kind == LM_FRAME_PONG);
    if (error)
        return error == -EAGAIN ? 0 : error;
    lm_count(&pager->statistics->wire_bytes, LM_HEADER_SIZE + lm_frame_payload(&loop->frame));
    if (loop->frame.kind == LM_FRAME_FAILED)
        return -(int)loop->frame.length;
    if (loop->frame.kind >= LM_FRAME_DISCARD && loop->frame.kind != LM_FRAME_POISON)
        return -EPROTO;
    loop->placed = 0;
    loop->placing = true;
    return 1;
}

/* Place a few pages of the frame at hand or of the next one, so that the page of the next fault, which may be there
 * already, is requested before the rest is placed. Returns 0 or what ends the source. */
static int place_some(struct loop *loop) {
    const struct lm_frame *frame = &loop->frame;
    loop->more = false;
    int found = loop->placing ? 1 : next_answer(loop);
    if (found <= 0)
        return found;
    int error = frame->kind == LM_FRAME_END
                    ? 0
                    : lm_place_some(loop->pager, LM_FOR_FAULT, frame, loop->data, &loop->placed);
    loop->hurried |= error == -EAGAIN;
    if (error)
        return error == -EAGAIN ? 0 : error;
    loop->more = true;
    if (loop->placed < frame->pages)
        return 0;
    loop->more = lm_page_source_holds(loop->pager->fault);
    loop->placing = false;
    loop->begun = !(frame->flags & LM_FRAME_LAST);
    if (loop->begun)
        return 0;
    uint64_t end = frame->address + (uint64_t)frame->pages * LM_PAGE_SIZE;
    return lm_neighbours_end(loop->pager, frame->id, end, &loop->hurried);
}

static void serve_answers(struct loop *loop, bool readable) {
    struct lm_pager *pager = loop->pager;
    int error = place_some(loop);
    readable |= lm_page_source_pending(pager->fault);
    if (!error && !loop->more && !loop->placing && readable) {
        /* Somebody waits for the first page of an answer alone: its neighbours, some tens of microseconds of
         * copying, are taken in when it is placed. */
        bool first = !loop->begun && !lm_page_source_holds(pager->fault);
        error = lm_page_source_receive(pager->fault, first, false);
        if (!error) {
            error = place_some(loop);
            loop->more |= lm_page_source_pending(pager->fault);
        } else if (error == -EAGAIN) {
            error = 0;
        }
    }
    lm_pager_note_progress(pager);
    if (error && loop->frame.kind == LM_FRAME_FAILED)
        lm_status_set(&pager->status, LM_PAGER_FAILED, "the source cannot read the memory any more: %s",
                      strerror(-error));
    else if (error)
        lose(loop, error);
}

/* Change to a new source, if there is one. */
static void adopt(struct loop *loop) {
    struct lm_pager *pager = loop->pager;
    uint64_t woken;
    if (read(pager->wake, &woken, sizeof woken) < 0)
        woken = 0; /* nothing to read is as good */
    lm_pager_lock_urgent(pager);
    struct lm_page_source *next = pager->next_fault, *last = NULL;
    pager->next_fault = NULL;
    if (next) {
        last = pager->fault;
        pager->fault = next;
        pager->connected = true;
        loop->lost = false;
        loop->silent = 0;
        /* Nobody may have noticed the end of the old source. */
        discard_requested(loop);
        retry(loop);
    }
    lm_pager_unlock(pager);
    lm_page_source_close(last);
    send_requests(loop);
}

/* Gather everything to wait for. Returns the number of spaces among it, or -ENOMEM. */
static ssize_t prepare(struct loop *loop) {
    struct lm_pager *pager = loop->pager;
    /* Only this thread adds spaces once it runs, and only before that others do. */
    size_t spaces = __atomic_load_n(&pager->space_count, __ATOMIC_ACQUIRE);
    if (spaces + FIXED_POLLS > loop->poll_capacity) {
        size_t capacity = 2 * (spaces + FIXED_POLLS);
        struct pollfd *polls = realloc(loop->polls, capacity * sizeof *polls);
        if (!polls)
            return -ENOMEM;
        loop->polls = polls;
        loop->poll_capacity = capacity;
    }
    loop->polls[0] = (struct pollfd){.fd = pager->wake, .events = POLLIN};
    bool listening = !loop->lost && !loop->placing && !loop->more;
    loop->polls[1] = (struct pollfd){.fd = listening ? pager->fault->descriptor : -1, .events = POLLIN};
    loop->polls[2] = (struct pollfd){.fd = pager->keeper.itself, .events = POLLIN};
    for (size_t i = 0; i < spaces; i++)
        loop->polls[FIXED_POLLS + i] = (struct pollfd){
            .fd =
                __atomic_load_n(&pager->spaces[i]->gone, __ATOMIC_RELAXED) ? -1 : pager->spaces[i]->userfault,
            .events = POLLIN};
    return (ssize_t)spaces;
}

/* Wait, for at most 50 us when something is to be tried again; do not wait when there is something to do. */
static int wait_for_work(struct loop *loop, size_t polls) {
    static const struct timespec soon = {0, 50000}, now = {0, 0}, later = {0, KEEPER_MS * 1000000},
                                 look = {0, LM_LOOK_MS * 1000000};
    const struct timespec *most = loop->pager->keeper.itself < 0 ? &later : loop->lost ? NULL : &look;
    return ppoll(loop->polls, polls, loop->more ? &now : loop->hurried ? &soon : most, NULL);
}

/* From time to time, ask whether the source is still there; `heard`: something of it has come. */
static void look_for_silence(struct loop *loop, bool heard) {
    if (heard)
        loop->silent = 0;
    uint64_t now = lm_now_ns();
    if (loop->lost || now - loop->look_ns < LM_LOOK_MS * 1000000ull)
        return;
    loop->look_ns = now;
    struct lm_request ping = lm_request_ping();
    int error =
        loop->silent++ < LM_SILENT_LOOKS ? lm_page_source_request(loop->pager->fault, &ping, 1) : -ETIMEDOUT;
    if (error)
        lose(loop, error);
}

void *lm_fault_main(void *argument) {
    struct lm_pager *pager = argument;
    struct loop loop = {.pager = pager, .lost = true};
    lm_urgency_first();
    adopt(&loop);
    while (!atomic_load(&pager->stop)) {
        ssize_t spaces = prepare(&loop);
        if (spaces < 0) {
            lm_status_set(&pager->status, LM_PAGER_FAILED, "%s", "no memory to wait for a new process");
            break;
        }
        int ready = wait_for_work(&loop, (size_t)spaces + FIXED_POLLS);
        if (ready < 0 && errno != EINTR) {
            lm_status_set(&pager->status, LM_PAGER_FAILED, "waiting for faults: %s", strerror(errno));
            break;
        }
        if (ready < 0)
            continue;
        bool answered = loop.polls[1].revents || loop.placing || loop.more, faulted = false;
        bool hurried = loop.hurried;
        loop.hurried = false;
        if (loop.polls[0].revents)
            adopt(&loop);
        /* If it cannot be started now, it is soon. */
        if (loop.polls[2].revents || pager->keeper.itself < 0)
            lm_keeper_replace(&pager->keeper, pager->ledger);
        for (ssize_t i = 0; i < spaces; i++)
            faulted |= loop.polls[FIXED_POLLS + i].revents != 0;
        if (faulted || hurried)
            serve_spaces(&loop, (size_t)spaces);
        send_requests(&loop);
        if (answered && !loop.lost)
            serve_answers(&loop, loop.polls[1].revents != 0);
        look_for_silence(&loop, answered);
    }
    free(loop.polls);
    return NULL;
}
