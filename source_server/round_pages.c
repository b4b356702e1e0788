/* What rounds do with pages: read, send, remember. */
#include "source_server/round_pages.h"

#include <errno.h>
#include <string.h>

enum { DEFERRED_FROM = 3, FRAME_PAGES_MOST = 1 << 30 };

/* Read what of [at, at + pages) can be read; what cannot is no longer wanted. */
static int read_pages(const struct lm_rounds *rounds, uint64_t at, uint32_t pages, bool *wanted,
                      unsigned char *buffer) {
    int error = lm_page_reader_read_some(rounds->reader, at, pages, wanted, buffer);
    if (!error || error == -ESRCH)
        return error;
    for (uint32_t i = 0; i < pages; i++) {
        uint64_t offset = (uint64_t)i * LM_PAGE_SIZE;
        error = wanted[i] ? lm_page_reader_read(rounds->reader, at + offset, 1, buffer + offset) : 0;
        if (error == -ESRCH)
            return error;
        /* Unmapped since it was looked at: the layout tells the destination. */
        wanted[i] = wanted[i] && !error;
    }
    return 0;
}

static void note_sent(struct lm_round_work *work, uint64_t at, const unsigned char *content) {
    struct lm_history_chunk *chunk = lm_page_history_chunk(&work->rounds->history, at, false);
    uint8_t *page = &chunk->pages[at / LM_PAGE_SIZE % LM_HISTORY_PAGES];
    work->result->pages++;
    work->result->zero += lm_page_is_zero(content);
    work->result->again += (*page & LM_PAGE_SENT) != 0;
    *page |= LM_PAGE_SENT;
    lm_page_history_set_pending(chunk, page, false);
}

/* Take the bulk sender for a moment: answers can go between. */
static struct lm_page_sender *begin(struct lm_round_work *work) {
    struct lm_page_server *server = work->rounds->server;
    pthread_mutex_lock(&server->bulk_lock);
    lm_page_sender_begin(&server->bulk_sender, work->rounds->reader->space, work->id);
    server->bulk_sender.urgent = work->number == 0;
    work->result->bytes -= server->bulk.sent;
    return &server->bulk_sender;
}

static int end(struct lm_round_work *work, int error) {
    struct lm_page_server *server = work->rounds->server;
    work->result->bytes += server->bulk.sent;
    pthread_mutex_unlock(&server->bulk_lock);
    return error;
}

/* Gather the `wanted` ones of at most LM_RUN_PAGES pages: scattered ones go out together. */
static int send_pages(struct lm_round_work *work, uint64_t at, uint32_t pages, bool *wanted) {
    struct lm_page_sender *sender = begin(work);
    int error = 0;
    if (work->gathered + pages > LM_RUN_PAGES) {
        error = lm_page_sender_flush(sender, false);
        work->gathered = 0;
    }
    unsigned char *buffer = work->rounds->server->push_buffer + (size_t)work->gathered * LM_PAGE_SIZE;
    if (!error)
        error = read_pages(work->rounds, at, pages, wanted, buffer);
    for (uint32_t i = 0; !error && i < pages; i++)
        if (wanted[i])
            note_sent(work, at + (uint64_t)i * LM_PAGE_SIZE, buffer + (size_t)i * LM_PAGE_SIZE);
    if (!error)
        error = lm_server_send_stretches(work->rounds->server, at, pages, wanted, buffer);
    work->gathered += pages;
    return end(work, error);
}

int lm_round_flush(struct lm_round_work *work) {
    struct lm_page_sender *sender = begin(work);
    work->gathered = 0;
    return end(work, lm_page_sender_flush(sender, false));
}

/* Frames without payload for [start, stop). */
static int tell(struct lm_round_work *work, int kind, uint64_t start, uint64_t stop) {
    struct lm_page_sender *sender = begin(work);
    int error = 0;
    while (!error && start < stop) {
        uint64_t pages = (stop - start) / LM_PAGE_SIZE;
        uint32_t step = pages < FRAME_PAGES_MOST ? (uint32_t)pages : FRAME_PAGES_MOST;
        error = lm_page_sender_empty(sender, kind, start, step);
        start += (uint64_t)step * LM_PAGE_SIZE;
    }
    return end(work, error);
}

/* Pages that were written to: decide which of them are sent now. */
static int take_some(struct lm_round_work *work, uint64_t at, uint32_t pages) {
    bool wanted[LM_RUN_PAGES];
    for (uint32_t i = 0; i < pages; i++) {
        uint64_t address = at + (uint64_t)i * LM_PAGE_SIZE;
        struct lm_history_chunk *chunk = lm_page_history_chunk(&work->rounds->history, address, true);
        if (!chunk)
            return -ENOMEM;
        uint8_t *page = &chunk->pages[address / LM_PAGE_SIZE % LM_HISTORY_PAGES];
        bool busy = work->number && lm_page_history_written(page, work->number) >= DEFERRED_FROM;
        wanted[i] = !busy;
        if (busy) {
            lm_page_history_set_pending(chunk, page, true);
            work->result->deferred++;
        }
    }
    return send_pages(work, at, pages, wanted);
}

static int forget_run(struct lm_round_work *work, uint64_t start, uint64_t end) {
    struct lm_page_history *history = &work->rounds->history;
    for (uint64_t at = start; at < end; at += LM_PAGE_SIZE) {
        struct lm_history_chunk *chunk = lm_page_history_chunk(history, at, false);
        if (chunk)
            lm_page_history_set_pending(chunk, &chunk->pages[at / LM_PAGE_SIZE % LM_HISTORY_PAGES], false);
    }
    work->result->forgotten += (end - start) / LM_PAGE_SIZE;
    return tell(work, LM_FRAME_FORGET, start, end);
}

int lm_round_take(struct lm_round_work *work, uint64_t start, uint64_t end) {
    if (work->flags & LM_LAST_FORGET)
        return forget_run(work, start, end);
    int error = 0;
    while (!error && start < end) {
        uint64_t left = (end - start) / LM_PAGE_SIZE;
        uint32_t pages = left < LM_RUN_PAGES ? (uint32_t)left : LM_RUN_PAGES;
        error = take_some(work, start, pages);
        start += (uint64_t)pages * LM_PAGE_SIZE;
    }
    return error;
}

int lm_round_send_rested(struct lm_round_work *work, uint64_t start, uint64_t end) {
    int error = 0;
    while (!error && start < end) {
        bool wanted[LM_RUN_PAGES];
        uint64_t left = (end - start) / LM_PAGE_SIZE;
        uint32_t pages = left < LM_RUN_PAGES ? (uint32_t)left : LM_RUN_PAGES;
        memset(wanted, true, sizeof wanted);
        error = send_pages(work, start, pages, wanted);
        start += (uint64_t)pages * LM_PAGE_SIZE;
    }
    return error;
}

int lm_round_tell_absent(struct lm_round_work *work, uint64_t start, uint64_t end) {
    return tell(work, LM_FRAME_ABSENT, start, end);
}

int lm_round_tell_gone(struct lm_round_work *work, uint64_t start, uint64_t end) {
    struct lm_page_history *history = &work->rounds->history;
    for (uint64_t at = start; at < end; at += LM_PAGE_SIZE) {
        struct lm_history_chunk *chunk = lm_page_history_chunk(history, at, false);
        uint8_t *page = &chunk->pages[at / LM_PAGE_SIZE % LM_HISTORY_PAGES];
        *page &= (uint8_t)~LM_PAGE_SENT;
        lm_page_history_set_pending(chunk, page, false);
    }
    work->result->forgotten += (end - start) / LM_PAGE_SIZE;
    return tell(work, LM_FRAME_GONE, start, end);
}
