/* Pushes: memory that the destination cannot ask for, and the rounds. */
#include "source_server/pages/serving.h"

#include <errno.h>
#include <string.h>

static void count(uint64_t *counter, uint64_t amount) {
    __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED);
}

/* Take out of `wanted` what was pushed with the same content before. */
static void skip_unchanged(struct lm_page_server *server, const struct lm_page_reader *reader, uint64_t at,
                           uint32_t pages, bool *wanted) {
    for (uint32_t i = 0; i < pages; i++) {
        const unsigned char *page = server->push_buffer + (size_t)i * LM_PAGE_SIZE;
        if (wanted[i] &&
            lm_push_memory_same(&server->memory, reader->space, at + (uint64_t)i * LM_PAGE_SIZE, page)) {
            wanted[i] = false;
            count(&server->statistics->skipped_pages, 1);
        }
    }
}

int lm_server_send_stretch(struct lm_page_server *server, uint64_t at, uint32_t pages,
                           const unsigned char *content) {
    count(&server->statistics->pushed_pages, pages);
    return lm_page_sender_pages(&server->bulk_sender, at, pages, content);
}

/* The `wanted` ones of the pages in the push buffer. */
static int send_wanted(struct lm_page_server *server, uint64_t at, uint32_t pages, const bool *wanted) {
    int error = 0;
    for (uint32_t i = 0; !error && i < pages;) {
        uint32_t begin = i;
        while (i < pages && wanted[i] == wanted[begin])
            i++;
        if (wanted[begin])
            error = lm_server_send_stretch(server, at + (uint64_t)begin * LM_PAGE_SIZE, i - begin,
                                           server->push_buffer + (size_t)begin * LM_PAGE_SIZE);
    }
    return error;
}

/* The process runs, and has unmapped some of the wanted pages since they were looked at: they are wanted no
 * more, for the layout tells the destination. */
static int read_what_is_there(struct lm_page_server *server, const struct lm_page_reader *reader, uint64_t at,
                              uint32_t pages, bool *wanted) {
    for (uint32_t i = 0; i < pages; i++) {
        size_t offset = (size_t)i * LM_PAGE_SIZE;
        int error = wanted[i] ? lm_page_reader_read(reader, at + offset, 1, server->push_buffer + offset) : 0;
        if (error == -ESRCH)
            return error;
        wanted[i] &= !error;
    }
    return 0;
}

/* At most LM_RUN_PAGES pages. */
static int push_some(struct lm_page_server *server, const struct lm_page_reader *reader, uint64_t at,
                     uint32_t pages, uint32_t run_flags, uint32_t flags) {
    bool wanted[LM_RUN_PAGES];
    int error = 0;
    memset(wanted, true, sizeof wanted);
    if (run_flags & LM_PUSH_PRESENT)
        error = lm_page_reader_present(reader, at, pages, wanted);
    /* A page that was sent and has gone since is sent as it reads now: zeros, or what the file holds. */
    for (uint32_t i = 0; i < pages && flags & LM_PUSH_CHANGED; i++)
        wanted[i] |= lm_push_memory_knows(&server->memory, reader->space, at + (uint64_t)i * LM_PAGE_SIZE);
    if (!error)
        error = lm_page_reader_read_some(reader, at, pages, wanted, server->push_buffer);
    if (error && error != -ESRCH && flags & LM_PUSH_REMEMBER)
        error = read_what_is_there(server, reader, at, pages, wanted);
    if (error)
        return error;
    if (flags & LM_PUSH_CHANGED)
        skip_unchanged(server, reader, at, pages, wanted);
    for (uint32_t i = 0; i < pages && flags & LM_PUSH_REMEMBER; i++)
        if (wanted[i])
            lm_push_memory_keep(&server->memory, reader->space, at + (uint64_t)i * LM_PAGE_SIZE,
                                server->push_buffer + (size_t)i * LM_PAGE_SIZE);
    error = send_wanted(server, at, pages, wanted);
    return error ? error : lm_page_sender_flush(&server->bulk_sender, false);
}

/* One piece after the other, each under the lock, so that answers to requests can go between. */
static int push_run(struct lm_page_server *server, uint32_t id, const struct lm_push_run *run,
                    uint32_t flags) {
    const struct lm_page_reader *reader = lm_server_space(server, run->space);
    if (!reader)
        return -ENOENT;
    if (run->start % LM_PAGE_SIZE || run->end % LM_PAGE_SIZE || run->end < run->start ||
        run->end > LM_ADDRESS_END)
        return -EINVAL;
    int error = 0;
    for (uint64_t at = run->start; !error && at < run->end;) {
        uint64_t left = (run->end - at) / LM_PAGE_SIZE;
        uint32_t pages = left < LM_RUN_PAGES ? (uint32_t)left : LM_RUN_PAGES;
        pthread_mutex_lock(&server->bulk_lock);
        lm_page_sender_begin(&server->bulk_sender, run->space, id);
        server->bulk_sender.urgent = flags & LM_PUSH_URGENT;
        error = push_some(server, reader, at, pages, run->flags, flags);
        pthread_mutex_unlock(&server->bulk_lock);
        at += (uint64_t)pages * LM_PAGE_SIZE;
    }
    return error;
}

int lm_page_server_push(struct lm_page_server *server, uint32_t id, const struct lm_push_run *runs,
                        size_t run_count, uint32_t flags) {
    if (!id)
        return -EINVAL;
    if (!server->threads)
        return -ENOTCONN;
    int error = 0;
    uint64_t before = server->bulk.sent;
    for (size_t i = 0; !error && i < run_count; i++)
        error = push_run(server, id, &runs[i], flags);
    pthread_mutex_lock(&server->bulk_lock);
    if (!error) {
        lm_page_sender_begin(&server->bulk_sender, 0, id);
        server->bulk_sender.urgent = flags & LM_PUSH_URGENT;
        error = lm_page_sender_empty(&server->bulk_sender, LM_FRAME_END, 0, 0);
    }
    if (!error)
        error = lm_page_sender_flush(&server->bulk_sender, true);
    /* After a failure in the middle of a run there may be frames left that belong to nothing. */
    server->bulk_sender.count = 0;
    count(&server->statistics->eager_bytes, server->bulk.sent - before);
    pthread_mutex_unlock(&server->bulk_lock);
    return error;
}

void lm_page_server_discard_pushed(struct lm_page_server *server, uint32_t space, uint64_t start,
                                   uint64_t end) {
    pthread_mutex_lock(&server->bulk_lock);
    lm_push_memory_discard(&server->memory, space, start, end);
    pthread_mutex_unlock(&server->bulk_lock);
}
