#include "source_server/pages/pushes.h"

#include <errno.h>
#include <string.h>

/* Take out of `wanted` what was pushed with the same content before. */
static void skip_unchanged(struct lm_page_client *client, const struct lm_page_reader *reader, uint64_t at,
                           uint32_t pages, bool *wanted) {
    for (uint32_t i = 0; i < pages; i++) {
        const unsigned char *page = client->push_buffer + (size_t)i * LM_PAGE_SIZE;
        if (wanted[i] &&
            lm_push_memory_same(&client->memory, reader->space, at + (uint64_t)i * LM_PAGE_SIZE, page)) {
            wanted[i] = false;
            lm_count(&client->statistics->skipped_pages, 1);
        }
    }
}

int lm_push_stretch(struct lm_page_client *client, uint64_t at, uint32_t pages,
                    const unsigned char *content) {
    lm_count(&client->statistics->pushed_pages, pages);
    return lm_page_sender_pages(&client->bulk_sender, at, pages, content);
}

/* The `wanted` ones of the pages in the push buffer. */
static int send_wanted(struct lm_page_client *client, uint64_t at, uint32_t pages, const bool *wanted) {
    int error = 0;
    for (uint32_t i = 0; !error && i < pages;) {
        uint32_t begin = i;
        while (i < pages && wanted[i] == wanted[begin])
            i++;
        if (wanted[begin])
            error = lm_push_stretch(client, at + (uint64_t)begin * LM_PAGE_SIZE, i - begin,
                                    client->push_buffer + (size_t)begin * LM_PAGE_SIZE);
    }
    return error;
}

/* The process runs, and has unmapped some of the wanted pages since the snapshot: they are wanted no more, for the
 * layout tells the destination. */
static int read_what_is_there(struct lm_page_client *client, const struct lm_page_reader *reader, uint64_t at,
                              uint32_t pages, bool *wanted) {
    for (uint32_t i = 0; i < pages; i++) {
        size_t offset = (size_t)i * LM_PAGE_SIZE;
        int error = wanted[i] ? lm_page_reader_read(reader, at + offset, 1, client->push_buffer + offset) : 0;
        if (error == -ESRCH)
            return error;
        wanted[i] &= !error;
    }
    return 0;
}

/* At most LM_RUN_PAGES pages. */
static int push_some(struct lm_page_client *client, const struct lm_page_reader *reader, uint64_t at,
                     uint32_t pages, uint32_t run_flags, uint32_t flags) {
    bool wanted[LM_RUN_PAGES];
    int error = 0;
    memset(wanted, true, sizeof wanted);
    if (run_flags & LM_PUSH_PRESENT)
        error = lm_page_reader_present(reader, at, pages, wanted);
    /* A page that was sent and has gone since is sent as it reads now: zeros, or what the file holds. */
    for (uint32_t i = 0; i < pages && flags & LM_PUSH_CHANGED; i++)
        wanted[i] |= lm_push_memory_knows(&client->memory, reader->space, at + (uint64_t)i * LM_PAGE_SIZE);
    if (!error)
        error = lm_page_reader_read_some(reader, at, pages, wanted, client->push_buffer);
    if (error && error != -ESRCH && flags & LM_PUSH_REMEMBER)
        error = read_what_is_there(client, reader, at, pages, wanted);
    if (error)
        return error;
    if (flags & LM_PUSH_CHANGED)
        skip_unchanged(client, reader, at, pages, wanted);
    for (uint32_t i = 0; i < pages && flags & LM_PUSH_REMEMBER; i++)
        if (wanted[i])
            lm_push_memory_keep(&client->memory, reader->space, at + (uint64_t)i * LM_PAGE_SIZE,
                                client->push_buffer + (size_t)i * LM_PAGE_SIZE);
    error = send_wanted(client, at, pages, wanted);
    return error ? error : lm_page_sender_flush(&client->bulk_sender, false);
}

/* Where to go on, so that what is not there and was not pushed before is left out. */
static int next_wanted(struct lm_page_client *client, const struct lm_page_reader *reader, uint64_t at,
                       const struct lm_push_run *run, uint32_t flags, uint64_t *next) {
    *next = at;
    if (!(run->flags & LM_PUSH_PRESENT))
        return 0;
    int error = lm_page_reader_next(reader, at, run->end, next);
    if (!error && *next > at && flags & LM_PUSH_CHANGED)
        *next = lm_push_memory_next(&client->memory, run->space, at, *next);
    return error;
}

/* Send one piece after the other, each under the lock, so that answers to requests can go in between. */
static int push_run(struct lm_page_client *client, uint32_t id, const struct lm_push_run *run,
                    uint32_t flags) {
    const struct lm_page_reader *reader = lm_page_store_find(client->store, run->space);
    if (!reader)
        return -ENOENT;
    if (run->start % LM_PAGE_SIZE || run->end % LM_PAGE_SIZE || run->end < run->start ||
        run->end > LM_ADDRESS_END)
        return -EINVAL;
    int error = 0;
    for (uint64_t at = run->start; !error && at < run->end;) {
        error = next_wanted(client, reader, at, run, flags, &at);
        if (error || at >= run->end)
            break;
        uint64_t left = (run->end - at) / LM_PAGE_SIZE;
        uint32_t pages = left < LM_RUN_PAGES ? (uint32_t)left : LM_RUN_PAGES;
        pthread_mutex_lock(&client->bulk_lock);
        lm_page_sender_begin(&client->bulk_sender, run->space, id);
        lm_page_sender_show_life(&client->bulk_sender);
        client->bulk_sender.urgent = flags & LM_PUSH_URGENT;
        error = push_some(client, reader, at, pages, run->flags, flags);
        pthread_mutex_unlock(&client->bulk_lock);
        at += (uint64_t)pages * LM_PAGE_SIZE;
    }
    return error;
}

int lm_page_client_push(struct lm_page_client *client, uint32_t id, const struct lm_push_run *runs,
                        size_t run_count, uint32_t flags) {
    if (!id)
        return -EINVAL;
    if (!client->threads)
        return -ENOTCONN;
    int error = 0;
    uint64_t before = client->bulk.sent;
    for (size_t i = 0; !error && i < run_count; i++)
        error = push_run(client, id, &runs[i], flags);
    pthread_mutex_lock(&client->bulk_lock);
    if (!error) {
        lm_page_sender_begin(&client->bulk_sender, 0, id);
        client->bulk_sender.urgent = flags & LM_PUSH_URGENT;
        error = lm_page_sender_empty(&client->bulk_sender, LM_FRAME_END, 0, 0);
    }
    if (!error)
        error = lm_page_sender_flush(&client->bulk_sender, true);
    /* A failure in the middle of a run may leave frames that belong to nothing. */
    lm_page_sender_drop(&client->bulk_sender);
    lm_count(&client->statistics->eager_bytes, client->bulk.sent - before);
    pthread_mutex_unlock(&client->bulk_lock);
    return error;
}

void lm_page_client_discard_pushed(struct lm_page_client *client, uint32_t space, uint64_t start,
                                   uint64_t end) {
    pthread_mutex_lock(&client->bulk_lock);
    lm_push_memory_discard(&client->memory, space, start, end);
    pthread_mutex_unlock(&client->bulk_lock);
}
