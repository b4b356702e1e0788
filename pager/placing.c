#define _GNU_SOURCE
#include "pager/placing.h"

#include "kernel/memory/memory.h"
#include "kernel/memory/pagemap.h"
#include "pager/discarded.h"
#include "pager/pending.h"
#include "pager/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST_POISONED = 1 << 16 };

struct how {
    enum lm_purpose purpose;
    uint64_t *empty; /* counts pages without content */
    bool poison;     /* nobody may touch them */
};

static const unsigned char zeros[LM_PAGE_SIZE];

static uint64_t counted(struct lm_pager *pager, enum lm_purpose purpose, uint64_t pages) {
    lm_count(&pager->statistics->total_pages, pages);
    lm_count(&pager->statistics->bytes, pages * LM_PAGE_SIZE);
    if (purpose == LM_FOR_BULK)
        lm_count(&pager->statistics->prefetched_pages, pages);
    if (purpose == LM_FOR_PUSH)
        lm_count(&pager->statistics->pushed_pages, pages);
    return pages;
}

/* Copy by the kernel into a process's memory, without a fault: an ordinary write would first wait for a
 * page that is missing, perhaps for ourselves. Where the process's protections forbid it, and for mappings that
 * are not registered, the other way helps. */
static int write_pages(const struct lm_space *space, bool registered, uint64_t address, const void *data,
                       uint64_t pages) {
    for (uint64_t i = 0; i < pages; i++) {
        const void *page = data ? (const char *)data + i * LM_PAGE_SIZE : (const char *)zeros;
        uint64_t at = address + i * LM_PAGE_SIZE;
        int error = lm_memory_write_forced(space->memory, at, page, LM_PAGE_SIZE);
        if (error && !registered)
            error = lm_memory_write(space->pid, at, page, LM_PAGE_SIZE);
        if (error == -EFAULT && !registered)
            error = lm_memory_write_shared(space->pid, at, page, LM_PAGE_SIZE);
        if (error)
            return error;
    }
    return 0;
}

static int note(struct lm_range *range, uint64_t page, uint64_t pages, enum lm_page_state state) {
    return lm_page_table_set(range->table, page, pages, ~0u, state);
}

/* How many of the `pages` pages at `address` may be placed before the first guard; `*guards` follow it. The process may make
 * missing pages guards (MADV_GUARD_INSTALL), of which no event tells, and UFFDIO_COPY puts the old page in place of one
 * (mm/userfaultfd.c, pte_none_mostly). Nothing keeps one from being made between this look and the copy, so that both are
 * done page by page in a process that makes guards. */
static uint64_t before_guards(struct lm_space *space, uint64_t address, uint64_t pages, uint64_t *guards) {
    struct lm_page_run run;
    *guards = 0;
    if (space->pagemap < 0)
        return pages;
    if (lm_pagemap_guards(space->pagemap, address, address + pages * LM_PAGE_SIZE, &run)) {
        close(space->pagemap);
        space->pagemap = -1;
        return pages;
    }
    *guards = (run.end - run.start) / LM_PAGE_SIZE;
    space->guarded |= *guards != 0;
    return (run.start - address) / LM_PAGE_SIZE;
}

/* Copy pages that are not there yet. `*done` of them are dealt with, also when an error is returned. */
static int copy_pages(struct lm_pager *pager, const struct how *how, struct lm_space *space,
                      struct lm_range *range, uint64_t address, const char *data, uint64_t pages,
                      uint64_t *done) {
    uint64_t first = lm_range_page(range, address), step = pages;
    int error = 0;
    /* What cannot be read at the source is a guard there, most likely. */
    space->guarded |= how->poison;
    for (*done = 0; !error && *done < pages;) {
        uint64_t at = address + *done * LM_PAGE_SIZE, count = step < pages - *done ? step : pages - *done,
                 guards;
        if (space->guarded)
            count = 1;
        count = before_guards(space, at, count, &guards);
        if (!count) {
            error = note(range, first + *done, guards, LM_PAGE_DISCARDED);
            lm_pending_drop(pager, space, at, at + guards * LM_PAGE_SIZE);
            *done += guards;
            continue;
        }
        struct lm_placed placed =
            how->poison
                ? lm_userfault_poison(space->userfault, at, count * LM_PAGE_SIZE)
                : lm_userfault_copy(space->userfault, at, data + *done * LM_PAGE_SIZE, count * LM_PAGE_SIZE);
        uint64_t whole = placed.bytes / LM_PAGE_SIZE;
        switch (placed.answer) {
        case LM_ANSWER_PLACED:
        case LM_ANSWER_SHORT:
            error = note(range, first + *done, whole, LM_PAGE_PLACED);
            lm_pending_settle(pager, space, at, at + placed.bytes);
            *done += counted(pager, how->purpose, whole);
            break;
        case LM_ANSWER_PRESENT:
            if (how->purpose == LM_FOR_PUSH)
                error = write_pages(space, true, at, data + *done * LM_PAGE_SIZE, 1);
            if (!error)
                error = note(range, first + *done, 1, LM_PAGE_PLACED);
            lm_pending_settle(pager, space, at, at + LM_PAGE_SIZE);
            lm_userfault_wake(space->userfault, at, LM_PAGE_SIZE);
            *done += 1;
            break;
        case LM_ANSWER_NOWHERE:
            /* Two mappings side by side, which one copy must not span; or, for a single page, none. */
            if (count > 1) {
                step = 1;
                break;
            }
            error = note(range, first + *done, 1, LM_PAGE_DISCARDED);
            lm_pending_drop(pager, space, at, at + LM_PAGE_SIZE);
            *done += 1;
            break;
        case LM_ANSWER_RETRY:
            return -EAGAIN;
        case LM_ANSWER_GONE:
            return -ESRCH;
        case LM_ANSWER_FAILED:
            return placed.error;
        }
    }
    return error;
}

/* How many zero pages to place at once: a program that touches fresh memory goes on with what comes next.
 * In private memory they cost nothing, in shared memory each is a page of its own. */
static uint64_t zero_pages_from(const struct lm_range *range, uint64_t address) {
    if (!range || !range->table || range->kind != LM_RANGE_ANONYMOUS)
        return 1;
    uint64_t page = lm_range_page(range, address), end = lm_range_page(range, range->end - LM_PAGE_SIZE) + 1,
             count;
    uint64_t found =
        lm_page_table_find(range->table, page, end, LM_STATES(LM_PAGE_ZERO), LM_PLACE_PAGES, &count);
    return found == page && count ? count : 1;
}

int lm_place_zero(struct lm_pager *pager, struct lm_space *space, uint64_t address) {
    struct lm_range *range = lm_space_at(space, address);
    uint64_t pages = zero_pages_from(range, address);
    struct lm_placed placed = lm_userfault_zero(space->userfault, address, pages * LM_PAGE_SIZE);
    if (placed.answer == LM_ANSWER_NOWHERE && pages > 1)
        placed = lm_userfault_zero(space->userfault, address, LM_PAGE_SIZE);
    switch (placed.answer) {
    case LM_ANSWER_PLACED:
    case LM_ANSWER_SHORT:
        lm_count(&pager->statistics->local_faults, 1);
        if (range && range->table)
            return note(range, lm_range_page(range, address), placed.bytes / LM_PAGE_SIZE, LM_PAGE_PLACED);
        return 0;
    case LM_ANSWER_PRESENT:
    case LM_ANSWER_NOWHERE:
        /* It was placed between the fault and its message, or its mapping has gone: the thread tries again by
         * itself. */
        lm_userfault_wake(space->userfault, address, LM_PAGE_SIZE);
        return 0;
    case LM_ANSWER_GONE:
        lm_pager_space_gone(pager, space);
        return 0;
    case LM_ANSWER_RETRY:
        return -EAGAIN;
    case LM_ANSWER_FAILED:
        break;
    }
    lm_status_set(&pager->status, LM_PAGER_FAILED, "a zero page at %#llx cannot be placed: %s",
                  (unsigned long long)address, strerror(-placed.error));
    return -EAGAIN;
}

/* The pages of [start, end) are zero: answer whoever waits there. */
static void answer_with_zeros(struct lm_pager *pager, struct lm_space *space, uint64_t start, uint64_t end) {
    for (size_t i = pager->pending_count; i-- > 0;) {
        if (!lm_pending_within(&pager->pending[i], space, start, end))
            continue;
        struct lm_pending waiting = pager->pending[i];
        pager->pending[i].local = true;
        /* When the kernel wants an event read first, the fault loop tries again. */
        if (lm_place_zero(pager, space, waiting.address))
            continue;
        if (space->gone)
            return;
        lm_histogram_add(&pager->statistics->latency, lm_now_ns() - waiting.since_ns);
        lm_pending_remove(pager, i);
    }
}

/* A stretch of pages in one state. */
static int place_stretch(struct lm_pager *pager, const struct how *how, struct lm_space *space,
                         struct lm_range *range, uint64_t address, const char *data, uint64_t pages,
                         enum lm_page_state state) {
    uint64_t first = lm_range_page(range, address), done = 0;
    bool wanted = LM_STATES(state) & LM_STATES_WANTED;
    if (!wanted && how->purpose != LM_FOR_PUSH) {
        lm_count(&pager->statistics->late_pages, data ? pages : 0);
        return 0;
    }
    if (!data && !how->poison && state != LM_PAGE_PLACED) {
        int error = note(range, first, pages, LM_PAGE_ZERO);
        lm_count(how->empty, wanted ? pages : 0);
        if (!error)
            answer_with_zeros(pager, space, address, address + pages * LM_PAGE_SIZE);
        return error;
    }
    if (state == LM_PAGE_PLACED) {
        int error = write_pages(space, true, address, data, pages);
        if (error != -EIO && error != -EFAULT) {
            lm_count(&pager->statistics->rewritten_pages, error ? 0 : pages);
            return error;
        }
        /* Shared memory that the process itself may not write to cannot be written over from outside either
         * (ptrace's access is for private copies): it is dropped in the end and requested again. */
        if (range->kind == LM_RANGE_SHARED && data)
            return lm_discarded_add(pager, range->source + (address - range->start), pages,
                                    range->source_space);
        /* The process has given it back since: for the kernel it is missing. */
        error = note(range, first, pages, data ? LM_PAGE_MISSING : LM_PAGE_ZERO);
        if (error || !data)
            return error;
    }
    return copy_pages(pager, how, space, range, address, data, pages, &done);
}

/* The part of a range that the pages fall into. */
static int place_in_range(struct lm_pager *pager, const struct how *how, struct lm_space *space,
                          struct lm_range *range, uint64_t address, const char *data, uint64_t pages) {
    if (!range->table) {
        if (how->purpose != LM_FOR_PUSH)
            return -EPROTO;
        counted(pager, how->purpose, pages);
        return write_pages(space, false, address, data, pages);
    }
    uint64_t page = lm_range_page(range, address), end = page + pages;
    int error = 0;
    while (!error && page < end) {
        enum lm_page_state state = lm_page_table_get(range->table, page);
        uint64_t count;
        lm_page_table_find(range->table, page, end, LM_STATES(state), end - page, &count);
        error = place_stretch(pager, how, space, range, address, data, count, state);
        address += count * LM_PAGE_SIZE;
        page += count;
        if (data)
            data += count * LM_PAGE_SIZE;
    }
    return error;
}

static int write_object(struct lm_pager *pager, const struct lm_object *object, uint64_t address,
                        uint32_t pages, const char *data) {
    uint64_t end = (object->size + LM_PAGE_SIZE - 1) / LM_PAGE_SIZE * LM_PAGE_SIZE;
    if (address >= end || (uint64_t)pages * LM_PAGE_SIZE > end - address)
        return -EPROTO;
    uint64_t length = (uint64_t)pages * LM_PAGE_SIZE;
    if (length > object->size - address)
        length = object->size - address;
    if (!data)
        return fallocate(object->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)address,
                         (off_t)length)
                   ? -errno
                   : 0;
    counted(pager, LM_FOR_PUSH, pages);
    while (length) {
        ssize_t done = pwrite(object->fd, data, length, (off_t)address);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done ? -errno : -EIO;
        data += done;
        address += (uint64_t)done;
        length -= (uint64_t)done;
    }
    return 0;
}

static int place(struct lm_pager *pager, const struct how *how, uint32_t source_space, uint64_t address,
                 uint32_t pages, const void *data) {
    if (source_space >= LM_FIRST_OBJECT) {
        for (size_t i = 0; i < pager->object_count; i++)
            if (how->purpose == LM_FOR_PUSH && pager->objects[i].number == source_space)
                return write_object(pager, &pager->objects[i], address, pages, data);
        return -EPROTO;
    }
    uint64_t end = address + (uint64_t)pages * LM_PAGE_SIZE, covered = 0;
    for (size_t i = 0; i < pager->space_count; i++) {
        struct lm_space *space = pager->spaces[i];
        for (uint64_t at = address; at < end && !space->gone;) {
            struct lm_range *range = lm_space_by_source(space, source_space, at, end);
            if (!range)
                break;
            uint64_t low = at > range->source ? at : range->source;
            uint64_t range_end = range->source + (range->end - range->start);
            uint64_t high = end < range_end ? end : range_end;
            const char *from = data ? (const char *)data + (low - address) : NULL;
            uint64_t destination = range->start + (low - range->source);
            int error =
                place_in_range(pager, how, space, range, destination, from, (high - low) / LM_PAGE_SIZE);
            if (error == -ESRCH)
                lm_pager_space_gone(pager, space);
            else if (error)
                return error;
            covered += high - low;
            at = high;
        }
    }
    return how->purpose == LM_FOR_PUSH && covered < end - address ? -EPROTO : 0;
}

int lm_place_some(struct lm_pager *pager, enum lm_purpose purpose, const struct lm_frame *frame,
                  const void *data, uint32_t *placed) {
    struct lm_pager_statistics *statistics = pager->statistics;
    struct how how = {.purpose = purpose,
                      .empty = frame->kind == LM_FRAME_ABSENT ? &statistics->absent_pages
                                                              : &statistics->zero_pages,
                      .poison = frame->kind == LM_FRAME_POISON};
    uint32_t step = frame->pages - *placed;
    uint64_t offset = (uint64_t)*placed * LM_PAGE_SIZE;
    if ((data || how.poison) && step > LM_PLACE_PAGES)
        step = LM_PLACE_PAGES;
    if (purpose == LM_FOR_FAULT)
        lm_pager_lock_urgent(pager);
    else
        lm_pager_lock_patient(pager);
    int error = place(pager, &how, frame->space, frame->address + offset, step,
                      data ? (const char *)data + offset : NULL);
    lm_pager_unlock(pager);
    if (!error)
        *placed += step;
    return error;
}

int lm_place_frame(struct lm_pager *pager, enum lm_purpose purpose, const struct lm_frame *frame,
                   const void *data) {
    const struct timespec moment = {0, 30000};
    int error = 0;
    for (uint32_t placed = 0; !error && placed < frame->pages;) {
        error = lm_place_some(pager, purpose, frame, data, &placed);
        if (error != -EAGAIN)
            continue;
        if (atomic_load(&pager->stop))
            return -ECANCELED;
        nanosleep(&moment, NULL);
        error = 0;
    }
    return error;
}

int lm_pager_place(struct lm_pager *pager, uint32_t source_space, uint64_t address, const void *data,
                   size_t length) {
    if (address % LM_PAGE_SIZE || length % LM_PAGE_SIZE || address >= LM_ADDRESS_END)
        return -EINVAL;
    struct lm_frame frame = {
        .space = source_space, .address = address, .pages = (uint32_t)(length / LM_PAGE_SIZE)};
    return lm_place_frame(pager, LM_FOR_PUSH, &frame, data);
}

/* The first stretch of pages that are wanted, as a frame that poisons them. */
static bool next_wanted(struct lm_pager *pager, struct lm_frame *frame) {
    for (size_t i = 0; i < pager->space_count; i++)
        for (size_t j = 0; j < pager->spaces[i]->count; j++) {
            const struct lm_range *range = &pager->spaces[i]->ranges[j];
            if (!range->table)
                continue;
            uint64_t end = range->first + (range->end - range->start) / LM_PAGE_SIZE, count;
            uint64_t page =
                lm_page_table_find(range->table, range->first, end, LM_STATES_WANTED, MOST_POISONED, &count);
            *frame = (struct lm_frame){.kind = LM_FRAME_POISON,
                                       .space = range->source_space,
                                       .address = range->source + (page - range->first) * LM_PAGE_SIZE,
                                       .pages = (uint32_t)count};
            if (count)
                return true;
        }
    return false;
}

int lm_pager_poison(struct lm_pager *pager) {
    struct lm_frame frame;
    for (int error = 0;;) {
        lm_pager_lock_patient(pager);
        bool wanted = next_wanted(pager, &frame);
        lm_pager_unlock(pager);
        if (!wanted)
            break;
        error = lm_place_frame(pager, LM_FOR_BULK, &frame, NULL);
        if (error)
            return error;
    }
    lm_pager_note_progress(pager);
    return 0;
}
