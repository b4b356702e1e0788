#include "source_server/pages/answers.h"

#include "wire/status.h"

#include <errno.h>
#include <string.h>

/* The page of a fault first and alone, written at once; then its neighbours. */
struct lm_answered lm_answer_fault(const struct lm_page_store *store, struct lm_page_sender *sender,
                                   const struct lm_request *request, unsigned char *buffer) {
    const struct lm_page_reader *reader = lm_page_store_find(store, request->space);
    if (request->kind != LM_REQUEST_FAULT)
        return (struct lm_answered){.error = -EPROTO};
    if (!lm_page_store_is_open(store))
        return (struct lm_answered){.error = -EACCES};
    if (!reader)
        return (struct lm_answered){.error = -EPROTO};
    lm_page_sender_begin(sender, request->space, request->id);
    int error = lm_page_reader_read(reader, request->address, 1, buffer);
    if (lm_page_is_poison(error))
        error = lm_page_sender_empty(sender, LM_FRAME_POISON, request->address, 1);
    else if (error)
        return (struct lm_answered){.error = error, .unreadable = true};
    else
        error = lm_page_sender_pages(sender, request->address, 1, buffer);
    if (!error)
        error = lm_page_sender_flush(sender, request->pages == 1);
    lm_count(&sender->statistics->requests, 1);
    lm_count(&sender->statistics->fault_pages, 1);
    if (error || request->pages == 1)
        return (struct lm_answered){.error = error};
    uint64_t next = request->address + LM_PAGE_SIZE;
    uint32_t pages = request->pages - 1;
    /* The neighbours are a guess: if they cannot be read, nobody is told. */
    if (lm_page_reader_read(reader, next, pages, buffer))
        error = lm_page_sender_empty(sender, LM_FRAME_END, 0, 0);
    else
        error = lm_page_sender_pages(sender, next, pages, buffer);
    return (struct lm_answered){.error = error ? error : lm_page_sender_flush(sender, true)};
}

/* Absent pages cost one header, however many there are, even beyond what was requested. */
static int answer_absent(const struct lm_page_reader *reader, struct lm_page_sender *sender,
                         const struct lm_request *request) {
    uint64_t end = request->address + ((uint64_t)request->pages + request->reach) * LM_PAGE_SIZE, next = end;
    int error =
        lm_page_reader_next(reader, request->address + (uint64_t)request->pages * LM_PAGE_SIZE, end, &next);
    if (error)
        return error;
    return lm_page_sender_empty(sender, LM_FRAME_ABSENT, request->address,
                                (uint32_t)((next - request->address) / LM_PAGE_SIZE));
}

/* Send the run as stretches of absent pages, of pages with content, and of pages that nobody can read. */
static int answer_stretches(const struct lm_page_reader *reader, struct lm_page_sender *sender,
                            const struct lm_request *request, const bool *present, unsigned char *buffer) {
    bool poison[LM_RUN_PAGES] = {false};
    int error = lm_page_reader_read_some(reader, request->address, request->pages, present, buffer);
    if (lm_page_is_poison(error))
        error = lm_page_reader_read_each(reader, request->address, request->pages, present, buffer, poison);
    for (uint32_t i = 0; !error && i < request->pages;) {
        uint32_t begin = i;
        while (i < request->pages && present[i] == present[begin] && poison[i] == poison[begin])
            i++;
        uint64_t at = request->address + (uint64_t)begin * LM_PAGE_SIZE;
        if (poison[begin])
            error = lm_page_sender_empty(sender, LM_FRAME_POISON, at, i - begin);
        else if (present[begin])
            error = lm_page_sender_pages(sender, at, i - begin, buffer + (size_t)begin * LM_PAGE_SIZE);
        else
            error = lm_page_sender_empty(sender, LM_FRAME_ABSENT, at, i - begin);
    }
    return error;
}

static int answer_run(const struct lm_page_reader *reader, struct lm_page_sender *sender,
                      const struct lm_request *request, unsigned char *buffer) {
    bool present[LM_RUN_PAGES];
    int error = 0;
    if (request->flags & LM_REQUEST_SHARED)
        memset(present, true, sizeof present);
    else
        error = lm_page_reader_present(reader, request->address, request->pages, present);
    uint32_t found = 0;
    for (uint32_t i = 0; !error && i < request->pages; i++)
        found += present[i];
    if (!error)
        error = found ? answer_stretches(reader, sender, request, present, buffer)
                      : answer_absent(reader, sender, request);
    lm_count(&sender->statistics->requests, 1);
    lm_count(&sender->statistics->bulk_pages, found);
    return error ? error : lm_page_sender_flush(sender, true);
}

/* The first page at or after `at` that is not there, or `end`. */
static int next_absent(const struct lm_page_reader *reader, uint64_t at, uint64_t end, uint64_t *next) {
    bool present[LM_RUN_PAGES];
    while (at < end) {
        uint64_t left = (end - at) / LM_PAGE_SIZE;
        uint32_t pages = left < LM_RUN_PAGES ? (uint32_t)left : LM_RUN_PAGES, i = 0;
        int error = lm_page_reader_present(reader, at, pages, present);
        if (error)
            return error;
        while (i < pages && present[i])
            i++;
        at += (uint64_t)i * LM_PAGE_SIZE;
        if (i < pages)
            break;
    }
    *next = at;
    return 0;
}

/* Tell which pages of a range do not exist, so that a fault there need not be requested. A stretch that is absent at
 * its end is followed as far as the request reaches. */
static int answer_map(const struct lm_page_reader *reader, struct lm_page_sender *sender,
                      const struct lm_request *request) {
    uint64_t at = request->address, end = at + (uint64_t)request->pages * LM_PAGE_SIZE;
    uint64_t reach_end = end + (uint64_t)request->reach * LM_PAGE_SIZE;
    int error = 0;
    while (!error && at < end) {
        uint64_t next = at;
        error = lm_page_reader_next(reader, at, reach_end, &next);
        if (!error && next > at)
            error = lm_page_sender_empty(sender, LM_FRAME_ABSENT, at, (uint32_t)((next - at) / LM_PAGE_SIZE));
        if (!error)
            error = next_absent(reader, next, end, &at);
        if (at < next)
            at = next;
    }
    if (!error)
        error = lm_page_sender_empty(sender, LM_FRAME_END, 0, 0);
    return error ? error : lm_page_sender_flush(sender, true);
}

struct lm_answered lm_answer_bulk(const struct lm_page_store *store, struct lm_page_sender *sender,
                                  const struct lm_request *request, unsigned char *buffer) {
    const struct lm_page_reader *reader = lm_page_store_find(store, request->space);
    if (!lm_page_store_is_open(store))
        return (struct lm_answered){.error = -EACCES};
    bool run = request->kind == LM_REQUEST_RUN;
    if (!reader || (!run && request->kind != LM_REQUEST_MAP))
        return (struct lm_answered){.error = -EPROTO};
    lm_page_sender_begin(sender, request->space, request->id);
    int error = run ? answer_run(reader, sender, request, buffer) : answer_map(reader, sender, request);
    return (struct lm_answered){.error = error,
                                .unreadable =
                                    error == -ESRCH || error == -EFAULT || error == -EIO || error == -ENOMEM};
}
