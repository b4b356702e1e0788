#include "source_server/pages/round_pages.h"

#include "source_server/pages/pushes.h"

#include <errno.h>
#include <string.h>

enum { DEFERRED_FROM = 3, FRAME_PAGES_MOST = 1 << 30, COMPARED_PAGES = 16 };

/* A page has changed since it was sent. */
static int take_back(struct lm_round_work *work, struct lm_page_sender *sender, uint64_t address) {
    struct lm_history_chunk *chunk = lm_page_history_chunk(work->history, address, false);
    uint8_t *page = chunk ? &chunk->pages[address / LM_PAGE_SIZE % LM_HISTORY_PAGES] : NULL;
    if (!page || !(*page & LM_PAGE_SENT))
        return 0;
    *page &= (uint8_t)~LM_PAGE_SENT;
    work->result->discarded++;
    return lm_page_sender_empty(sender, LM_FRAME_DISCARD, address, 1);
}

/* Read what was gathered; a page that cannot be read is no longer gathered. It was unmapped since it was seen, which
 * the layout tells the destination, or it has become a guard: then it has changed since it was sent. */
static int read_gathered(struct lm_round_work *work, struct lm_page_sender *sender, unsigned char *buffer) {
    const struct lm_page_reader *reader = work->reader;
    int error = lm_page_reader_read_scattered(reader, work->addresses, work->gathered, buffer);
    if (!error || error == -ESRCH)
        return error;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < work->gathered; i++) {
        error = lm_page_reader_read(reader, work->addresses[i], 1, buffer + (size_t)kept * LM_PAGE_SIZE);
        if (error == -ESRCH)
            return error;
        if (!error)
            work->addresses[kept++] = work->addresses[i];
        else
            error = take_back(work, sender, work->addresses[i]);
        if (error)
            return error;
    }
    work->gathered = kept;
    return 0;
}

static void note_sent(struct lm_round_work *work, uint64_t at, const unsigned char *content) {
    struct lm_history_chunk *chunk = lm_page_history_chunk(work->history, at, false);
    uint8_t *page = &chunk->pages[at / LM_PAGE_SIZE % LM_HISTORY_PAGES];
    work->result->pages++;
    work->result->zero += lm_page_is_zero(content);
    work->result->again += (*page & LM_PAGE_SENT) != 0;
    *page |= LM_PAGE_SENT;
    if (work->digests)
        lm_push_memory_keep(&work->client->memory, work->reader->space, at, content);
}

/* Take the bulk sender for a moment: answers can go in between. */
static struct lm_page_sender *begin(struct lm_round_work *work) {
    struct lm_page_client *client = work->client;
    pthread_mutex_lock(&client->bulk_lock);
    lm_page_sender_begin(&client->bulk_sender, work->reader->space, work->id);
    lm_page_sender_show_life(&client->bulk_sender);
    client->bulk_sender.urgent = work->number == 0;
    work->result->bytes -= client->bulk.sent;
    return &client->bulk_sender;
}

static int end(struct lm_round_work *work, int error) {
    struct lm_page_client *client = work->client;
    work->result->bytes += client->bulk.sent;
    pthread_mutex_unlock(&client->bulk_lock);
    return error;
}

/* Read and send what was gathered, scattered pages together. */
static int send_gathered(struct lm_round_work *work) {
    struct lm_page_client *client = work->client;
    unsigned char *buffer = client->push_buffer;
    struct lm_page_sender *sender = begin(work);
    int error = work->gathered ? read_gathered(work, sender, buffer) : 0;
    for (uint32_t i = 0; !error && i < work->gathered;) {
        uint32_t first = i;
        do {
            note_sent(work, work->addresses[i], buffer + (size_t)i * LM_PAGE_SIZE);
            i++;
        } while (i < work->gathered && work->addresses[i] == work->addresses[i - 1] + LM_PAGE_SIZE);
        error =
            lm_push_stretch(client, work->addresses[first], i - first, buffer + (size_t)first * LM_PAGE_SIZE);
    }
    if (!error)
        error = lm_page_sender_flush(sender, false);
    work->gathered = 0;
    return end(work, error);
}

static int gather(struct lm_round_work *work, struct lm_history_chunk *chunk, uint64_t address) {
    int error = work->gathered == LM_RUN_PAGES ? send_gathered(work) : 0;
    work->addresses[work->gathered++] = address;
    lm_page_history_set_pending(chunk, &chunk->pages[address / LM_PAGE_SIZE % LM_HISTORY_PAGES], false);
    return error;
}

int lm_round_flush(struct lm_round_work *work) {
    return send_gathered(work);
}

/* Frames without payload for [start, stop). */
static int send_empty(struct lm_round_work *work, int kind, uint64_t start, uint64_t stop) {
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

/* A page was written to: decide whether it is sent now. */
static int take_page(struct lm_round_work *work, uint64_t address) {
    struct lm_history_chunk *chunk = lm_page_history_chunk(work->history, address, true);
    if (!chunk)
        return -ENOMEM;
    uint8_t *page = &chunk->pages[address / LM_PAGE_SIZE % LM_HISTORY_PAGES];
    if (!work->number || lm_page_history_written(page, work->number) < DEFERRED_FROM)
        return gather(work, chunk, address);
    lm_page_history_set_pending(chunk, page, true);
    work->result->deferred++;
    return 0;
}

static int discard_run(struct lm_round_work *work, uint64_t start, uint64_t end) {
    struct lm_page_history *history = work->history;
    for (uint64_t at = start; at < end; at += LM_PAGE_SIZE) {
        struct lm_history_chunk *chunk = lm_page_history_chunk(history, at, false);
        if (chunk)
            lm_page_history_set_pending(chunk, &chunk->pages[at / LM_PAGE_SIZE % LM_HISTORY_PAGES], false);
    }
    work->result->discarded += (end - start) / LM_PAGE_SIZE;
    return send_empty(work, LM_FRAME_DISCARD, start, end);
}

int lm_round_take(struct lm_round_work *work, uint64_t start, uint64_t end) {
    if (work->flags & LM_LAST_DISCARD)
        return discard_run(work, start, end);
    int error = 0;
    for (; !error && start < end; start += LM_PAGE_SIZE)
        error = take_page(work, start);
    return error;
}

int lm_round_compare(struct lm_round_work *work, uint64_t start, uint64_t end) {
    const struct lm_page_reader *reader = work->reader;
    unsigned char content[COMPARED_PAGES * LM_PAGE_SIZE];
    int error = 0;
    while (!error && start < end) {
        uint64_t left = (end - start) / LM_PAGE_SIZE;
        uint32_t pages = left < COMPARED_PAGES ? (uint32_t)left : COMPARED_PAGES;
        error = lm_page_reader_read(reader, start, pages, content);
        for (uint32_t i = 0; !error && i < pages; i++, start += LM_PAGE_SIZE) {
            const unsigned char *page = content + (size_t)i * LM_PAGE_SIZE;
            if (!lm_push_memory_same(&work->client->memory, reader->space, start, page))
                error = lm_round_take(work, start, start + LM_PAGE_SIZE);
        }
    }
    return error;
}

int lm_round_send_rested(struct lm_round_work *work, uint64_t start, uint64_t end) {
    int error = 0;
    for (; !error && start < end; start += LM_PAGE_SIZE)
        error = gather(work, lm_page_history_chunk(work->history, start, false), start);
    return error;
}

int lm_round_send_absent(struct lm_round_work *work, uint64_t start, uint64_t end) {
    return send_empty(work, LM_FRAME_ABSENT, start, end);
}

int lm_round_send_gone(struct lm_round_work *work, uint64_t start, uint64_t end) {
    struct lm_page_history *history = work->history;
    for (uint64_t at = start; at < end; at += LM_PAGE_SIZE) {
        struct lm_history_chunk *chunk = lm_page_history_chunk(history, at, false);
        uint8_t *page = &chunk->pages[at / LM_PAGE_SIZE % LM_HISTORY_PAGES];
        *page &= (uint8_t)~LM_PAGE_SENT;
        lm_page_history_set_pending(chunk, page, false);
    }
    work->result->discarded += (end - start) / LM_PAGE_SIZE;
    return send_empty(work, LM_FRAME_GONE, start, end);
}
