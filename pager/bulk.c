#define _GNU_SOURCE
#include "pager/bulk.h"

#include "kernel/urgency.h"
#include "pager/discarded.h"
#include "pager/placing.h"
#include "pager/prefetch.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RUN_LEAST = 16, ASK_LEAST = LM_FLIGHTS / 4 };
enum { WINDOW_LEAST = 4, WINDOW_FIRST = 32, WINDOW_MOST = LM_FLIGHTS * LM_RUN_PAGES };

/* Wait for the next frame, and where nothing comes, ask whether the source is still there. */
static int next_frame(struct lm_pager *pager, struct lm_frame *frame, const void **data) {
    for (int silent = 0;;) {
        int error = lm_page_source_next(pager->bulk, frame, data);
        if (!error && frame->kind == LM_FRAME_PONG)
            continue;
        if (!error)
            lm_count(&pager->statistics->wire_bytes, LM_HEADER_SIZE + lm_frame_payload(frame));
        if (error != -EAGAIN)
            return error;
        error = lm_page_source_receive(pager->bulk, false, true);
        silent = error == -EAGAIN ? silent + 1 : 0;
        if (silent > LM_SILENT_LOOKS)
            return -ETIMEDOUT;
        if (silent) {
            struct lm_request ping = lm_request_ping();
            error = lm_page_source_request(pager->bulk, &ping, 1);
        }
        if (error)
            return error;
    }
}

/* Everything whose id is the push's up to its END. */
static int receive(struct lm_pager *pager, uint32_t id) {
    for (;;) {
        struct lm_frame frame;
        const void *data;
        int error = next_frame(pager, &frame, &data);
        if (error)
            return error;
        if (frame.kind == LM_FRAME_FAILED)
            return -EREMOTEIO;
        if (frame.id != id)
            return -EPROTO;
        lm_count(&pager->statistics->eager_bytes, LM_HEADER_SIZE + lm_frame_payload(&frame));
        if (frame.kind == LM_FRAME_END)
            return lm_discarded_order(pager);
        bool discard = frame.kind == LM_FRAME_DISCARD || frame.kind == LM_FRAME_GONE;
        error = discard ? lm_discarded_note(pager, &frame) : lm_place_frame(pager, LM_FOR_PUSH, &frame, data);
        if (error)
            return error;
    }
}

static void lose(struct lm_pager *pager, int error) {
    lm_pager_lock_patient(pager);
    lm_pager_lost(pager, "bulk", error);
    lm_pager_unlock(pager);
}

int lm_pager_receive_push(struct lm_pager *pager, uint32_t id) {
    if (pager->bulk_running)
        return -EBUSY;
    if (!pager->bulk)
        return -ENOTCONN;
    int error = receive(pager, id);
    if (error)
        lose(pager, error);
    return error;
}

static struct lm_flight *free_flight(struct lm_pager *pager) {
    for (int i = 0; i < LM_FLIGHTS; i++)
        if (!pager->flights[i].id)
            return &pager->flights[i];
    return NULL;
}

static int free_flights(const struct lm_pager *pager) {
    int count = 0;
    for (int i = 0; i < LM_FLIGHTS; i++)
        count += !pager->flights[i].id;
    return count;
}

/* Hold back as the limit wants it, in short sleeps, so that it does not sleep through an end. */
static void wait_for_bucket(struct lm_pager *pager, uint64_t bytes) {
    uint64_t wait = lm_bucket_take(&pager->bucket, bytes);
    while (wait && !atomic_load(&pager->stop)) {
        struct timespec step = {0, wait < 20000000 ? (long)wait : 20000000};
        nanosleep(&step, NULL);
        wait -= (uint64_t)step.tv_nsec;
    }
}

static bool mapping_in_flight(const struct lm_pager *pager) {
    for (int i = 0; i < LM_FLIGHTS; i++)
        if (pager->flights[i].id && pager->flights[i].map)
            return true;
    return false;
}

/* A request for the run on a free flight. Returns the bytes it requests. */
static uint64_t compose(struct lm_pager *pager, const struct lm_run *run, bool map,
                        struct lm_request *request) {
    uint64_t bytes = (uint64_t)run->pages * LM_PAGE_SIZE, end = run->address + bytes;
    if (++pager->next_run_id == 0)
        pager->next_run_id = 1;
    *free_flight(pager) = (struct lm_flight){.id = pager->next_run_id,
                                             .source_space = run->source_space,
                                             .next = run->address,
                                             .end = end,
                                             .pages = map ? 0 : run->pages,
                                             .reach_end = end + (uint64_t)run->reach * LM_PAGE_SIZE,
                                             .map = map};
    *request = (struct lm_request){.kind = map ? LM_REQUEST_MAP : LM_REQUEST_RUN,
                                   .flags = (uint8_t)run->flags,
                                   .space = run->source_space,
                                   .address = run->address,
                                   .pages = run->pages,
                                   .reach = run->reach,
                                   .id = pager->next_run_id};
    lm_request_seal(request);
    return map ? 0 : bytes;
}

/* How many pages have been requested and have not come yet. */
static uint32_t flying(const struct lm_pager *pager) {
    uint64_t bytes = 0;
    for (int i = 0; i < LM_FLIGHTS; i++)
        if (pager->flights[i].id && !pager->flights[i].map && pager->flights[i].next < pager->flights[i].end)
            bytes += pager->flights[i].end - pager->flights[i].next;
    return (uint32_t)(bytes / LM_PAGE_SIZE);
}

/* Fill the free flights as far as the window allows, several at once: a write wakes the source. Of a small window
 * each takes half, so that there is always another one. Under a limit, send one request at a time, so that little has
 * been requested and not come yet. */
static int request_runs(struct lm_pager *pager) {
    if (free_flights(pager) < ASK_LEAST)
        return 0;
    struct lm_request requests[LM_FLIGHTS];
    struct lm_run run;
    int count = 0;
    bool limited = atomic_load_explicit(&pager->bucket.rate, memory_order_relaxed) != 0;
    uint32_t most = pager->run_most, under_way = flying(pager);
    uint64_t bytes = 0;
    if (limited)
        most = lm_bucket_portion(&pager->bucket, RUN_LEAST * LM_PAGE_SIZE, LM_RUN_PAGES * LM_PAGE_SIZE) /
               LM_PAGE_SIZE;
    if (most > pager->window / 2)
        most = pager->window / 2;
    lm_pager_lock_patient(pager);
    pager->prefetch.run_pages = most;
    /* Request which pages exist, one piece at a time, before and beside the pages. */
    if (!mapping_in_flight(pager) && free_flight(pager) && lm_prefetch_map(pager, &run))
        compose(pager, &run, true, &requests[count++]);
    while (free_flight(pager) && !(limited && bytes) && under_way + most <= pager->window &&
           lm_prefetch_next(pager, &run)) {
        bytes += compose(pager, &run, false, &requests[count++]);
        under_way += run.pages;
    }
    lm_pager_unlock(pager);
    if (!count)
        return 0;
    wait_for_bucket(pager, bytes);
    uint64_t now = lm_now_ns();
    for (int i = 0; i < LM_FLIGHTS; i++)
        if (pager->flights[i].id && !pager->flights[i].sent_ns)
            pager->flights[i].sent_ns = now;
    return lm_page_source_request(pager->bulk, requests, (size_t)count);
}

/* The frame has to go on where the answer to its request has arrived; a map may leave out what exists. */
static int check_answer(struct lm_pager *pager, const struct lm_frame *frame, struct lm_flight **found) {
    *found = NULL;
    for (int i = 0; i < LM_FLIGHTS; i++)
        if (frame->id && pager->flights[i].id == frame->id)
            *found = &pager->flights[i];
    struct lm_flight *flight = *found;
    if (!flight)
        return -EPROTO;
    bool last = frame->flags & LM_FRAME_LAST;
    if (flight->map && frame->kind == LM_FRAME_END)
        return last ? 0 : -EPROTO;
    uint64_t end = frame->address + (uint64_t)frame->pages * LM_PAGE_SIZE;
    uint64_t most = frame->kind == LM_FRAME_ABSENT ? flight->reach_end : flight->end;
    bool sane = frame->space == flight->source_space && end <= most;
    if (flight->map)
        sane = sane && !last && frame->kind == LM_FRAME_ABSENT && frame->address >= flight->next;
    else
        sane = sane &&
               ((frame->kind >= LM_FRAME_RAW && frame->kind <= LM_FRAME_ABSENT) ||
                frame->kind == LM_FRAME_POISON) &&
               frame->address == flight->next && last == (end >= flight->end);
    flight->next = end;
    return sane ? 0 : -EPROTO;
}

/* An answer to a request for so many pages took so long. What is requested grows while the link's queue stays short, and
 * shrinks when it does not, so that a page that the next fault makes urgent never waits behind more than some tens of
 * milliseconds, and little comes twice. The window begins small and grows by what comes in time, that is, it doubles in
 * a round trip: nobody knows beforehand what a link or the source's limit lets through. */
static void adapt(struct lm_pager *pager, uint64_t took_ns, uint32_t asked) {
    const uint64_t short_ns = 20000000, long_ns = 40000000;
    uint64_t base = pager->base_ns && pager->base_ns < took_ns ? pager->base_ns : took_ns;
    uint32_t pages = pager->run_most, window = pager->window;
    if (took_ns > base + long_ns) {
        pages = pages * 3 / 4 > RUN_LEAST ? pages * 3 / 4 : RUN_LEAST;
        window = window * 3 / 4 > WINDOW_LEAST ? window * 3 / 4 : WINDOW_LEAST;
    } else if (took_ns < base + short_ns) {
        pages = pages + RUN_LEAST < LM_RUN_PAGES ? pages + RUN_LEAST : LM_RUN_PAGES;
        window = window + asked < WINDOW_MOST ? window + asked : WINDOW_MOST;
    }
    pager->run_most = pages;
    pager->window = window;
    pager->base_ns = base + base / 1024; /* forgotten slowly: the path may have become longer */
}

static int take_answer(struct lm_pager *pager) {
    struct lm_frame frame;
    const void *data;
    struct lm_flight *flight;
    int error = next_frame(pager, &frame, &data);
    if (error)
        return error;
    if (frame.kind == LM_FRAME_FAILED) {
        lm_status_set(&pager->status, LM_PAGER_FAILED, "the source cannot read the memory any more: %s",
                      strerror((int)frame.length));
        return -EREMOTEIO;
    }
    error = check_answer(pager, &frame, &flight);
    if (error)
        return error;
    if (frame.kind != LM_FRAME_END)
        error = lm_place_frame(pager, LM_FOR_BULK, &frame, data);
    if (frame.flags & LM_FRAME_LAST) {
        flight->id = 0;
        if (!flight->map)
            adapt(pager, lm_now_ns() - flight->sent_ns, flight->pages);
    }
    return error;
}

/* Sleep until there may be something to request. */
static void rest(struct lm_pager *pager) {
    pthread_mutex_lock(&pager->lock);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 1;
    if (!atomic_load(&pager->stop))
        pthread_cond_timedwait(&pager->work, &pager->lock, &until);
    pthread_mutex_unlock(&pager->lock);
}

static void measure(struct lm_pager *pager, uint64_t *since_ns, uint64_t *since_bytes) {
    uint64_t now = lm_now_ns(), bytes = __atomic_load_n(&pager->statistics->bytes, __ATOMIC_RELAXED);
    if (now - *since_ns < 50000000)
        return;
    uint64_t rate = (uint64_t)((double)(bytes - *since_bytes) * 1e9 / (double)(now - *since_ns));
    __atomic_store_n(&pager->statistics->bulk_rate, rate, __ATOMIC_RELAXED);
    *since_ns = now;
    *since_bytes = bytes;
}

void *lm_bulk_main(void *argument) {
    struct lm_pager *pager = argument;
    uint64_t since_ns = lm_now_ns(),
             since_bytes = __atomic_load_n(&pager->statistics->bytes, __ATOMIC_RELAXED);
    int error = 0;
    pager->run_most = LM_FRAME_PAGES;
    pager->window = WINDOW_FIRST;
    pager->base_ns = 0;
    lm_urgency_last();
    while (!error && !atomic_load(&pager->stop)) {
        error = request_runs(pager);
        if (error)
            break;
        lm_pager_note_progress(pager);
        if (free_flights(pager) < LM_FLIGHTS)
            error = take_answer(pager);
        else
            rest(pager);
        measure(pager, &since_ns, &since_bytes);
    }
    if (error)
        lose(pager, error);
    return NULL;
}
