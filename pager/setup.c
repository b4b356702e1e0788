/* Telling the pager what it serves, and starting its threads. */
#define _GNU_SOURCE
#include "pager/paging.h"
#include "pager/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct lm_space *lm_pager_new_space(struct lm_pager *pager, uint32_t number, int userfault, int pid,
                                    int memory) {
    if (pager->space_count == pager->space_capacity) {
        size_t capacity = pager->space_capacity ? 2 * pager->space_capacity : 16;
        struct lm_space **spaces = realloc(pager->spaces, capacity * sizeof(struct lm_space *));
        if (!spaces)
            return NULL;
        pager->spaces = spaces;
        pager->space_capacity = capacity;
    }
    struct lm_space *space = malloc(sizeof *space);
    if (!space)
        return NULL;
    lm_space_init(space, number, userfault, pid, memory);
    pager->spaces[pager->space_count] = space;
    __atomic_store_n(&pager->space_count, pager->space_count + 1, __ATOMIC_RELEASE);
    lm_count(&pager->statistics->spaces, 1);
    return space;
}

void lm_pager_space_gone(struct lm_pager *pager, struct lm_space *space) {
    if (space->gone)
        return;
    for (size_t i = pager->pending_count; i-- > 0;)
        if (pager->pending[i].space == space)
            pager->pending[i] = pager->pending[--pager->pending_count];
    for (size_t i = 0; i < LM_RECENT_FAULTS; i++)
        if (pager->prefetch.recent[i].space == space)
            pager->prefetch.recent[i].space = NULL;
    /* Its descriptor stays open until the end: the fault loop may be waiting on it. */
    for (size_t i = 0; i < space->count; i++)
        lm_page_table_release(space->ranges[i].table);
    space->count = 0;
    space->sorted = false;
    __atomic_store_n(&space->gone, true, __ATOMIC_RELAXED);
}

static struct lm_space *find_space(const struct lm_pager *pager, uint32_t number) {
    for (size_t i = 0; i < pager->space_count; i++)
        if (pager->spaces[i]->number == number)
            return pager->spaces[i];
    return NULL;
}

int lm_pager_add_space(struct lm_pager *pager, uint32_t number, int userfaultfd, int pid) {
    char path[64];
    if (number >= LM_CHILD_SPACE || pager->fault_running)
        return -EINVAL;
    if (find_space(pager, number))
        return -EEXIST;
    /* poll(2) says nothing of a userfaultfd that blocks. */
    int flags = fcntl(userfaultfd, F_GETFL);
    if (flags < 0 || fcntl(userfaultfd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    if (memory < 0)
        return -errno;
    if (!lm_pager_new_space(pager, number, userfaultfd, pid, memory)) {
        close(memory);
        return -ENOMEM;
    }
    return 0;
}

int lm_pager_add_object(struct lm_pager *pager, uint32_t number, int fd, uint64_t size) {
    if (number < LM_FIRST_OBJECT)
        return -EINVAL;
    struct lm_object *objects = realloc(pager->objects, (pager->object_count + 1) * sizeof *objects);
    if (!objects)
        return -ENOMEM;
    pager->objects = objects;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (own < 0)
        return -errno;
    objects[pager->object_count++] = (struct lm_object){.number = number, .fd = own, .size = size};
    return 0;
}

/* The range that is exactly what is described, so that it is registered already and its table can stay; or
 * NULL. */
static struct lm_range *unchanged(const struct lm_space *old, const struct lm_range_description *what) {
    struct lm_range *before = lm_space_at(old, what->start);
    bool same = before && before->table && before->start == what->start && before->end == what->end &&
                before->kind == what->kind && before->source_space == what->source_space &&
                before->source == what->source && before->table->references == 1;
    return same ? before : NULL;
}

/* What stays known of a page when the ranges are told anew: what was empty then may be so no more, unless the
 * source follows what changes. */
static uint32_t kept_states(const struct lm_pager *pager) {
    return LM_STATES(LM_PAGE_PLACED) | (pager->followed ? LM_STATES(LM_PAGE_ZERO) : 0);
}

/* Go on with the table of a range that is as it was. */
static int keep_range(const struct lm_pager *pager, const struct lm_range *before, struct lm_range *range) {
    *range = *before;
    lm_page_table_hold(range->table);
    return lm_page_table_set(range->table, range->first, (range->end - range->start) / LM_PAGE_SIZE,
                             ~kept_states(pager), LM_PAGE_MISSING);
}

/* A range as described, with what is known of its pages from the ranges before. */
static int make_range(struct lm_pager *pager, const struct lm_space *old,
                      const struct lm_range_description *what, struct lm_range *range) {
    uint64_t pages = (what->end - what->start) / LM_PAGE_SIZE;
    *range = (struct lm_range){.start = what->start,
                               .end = what->end,
                               .source = what->source,
                               .source_space = what->source_space,
                               .kind = what->kind};
    if (what->kind == LM_RANGE_WRITTEN)
        return 0;
    range->table = lm_page_table_create(pages, &pager->wanted);
    if (!range->table)
        return -ENOMEM;
    int error = 0;
    for (size_t i = lm_space_find(old, what->start); !error && i < old->count; i++) {
        const struct lm_range *before = &old->ranges[i];
        if (before->start >= what->end)
            break;
        if (!before->table || before->source_space != what->source_space || before->kind != what->kind ||
            before->source - before->start != what->source - what->start)
            continue;
        uint64_t low = before->start > what->start ? before->start : what->start;
        uint64_t high = before->end < what->end ? before->end : what->end;
        error =
            lm_page_table_take(range->table, (low - what->start) / LM_PAGE_SIZE, before->table,
                               lm_range_page(before, low), (high - low) / LM_PAGE_SIZE, kept_states(pager));
    }
    return error;
}

static int check_range(const struct lm_range_description *range) {
    bool sane = range->start % LM_PAGE_SIZE == 0 && range->end % LM_PAGE_SIZE == 0 &&
                range->start < range->end && range->source % LM_PAGE_SIZE == 0 &&
                range->source < LM_ADDRESS_END && range->end < LM_ADDRESS_END &&
                range->kind >= LM_RANGE_ANONYMOUS && range->kind <= LM_RANGE_WRITTEN;
    return sane ? 0 : -EINVAL;
}

static int replace_ranges(struct lm_pager *pager, struct lm_space *space,
                          const struct lm_range_description *ranges, size_t count, size_t *failed) {
    struct lm_space fresh;
    lm_space_init(&fresh, 0, -1, 0, -1);
    int error = 0;
    for (size_t i = 0; !error && i < count; i++) {
        struct lm_range range = {.table = NULL};
        *failed = i;
        error = check_range(&ranges[i]);
        const struct lm_range *before = error ? NULL : unchanged(space, &ranges[i]);
        if (!error && !before && ranges[i].kind != LM_RANGE_WRITTEN)
            error = lm_userfault_register(space->userfault, ranges[i].start, ranges[i].end);
        if (!error)
            error = before ? keep_range(pager, before, &range) : make_range(pager, space, &ranges[i], &range);
        if (!error)
            error = lm_space_insert(&fresh, &range);
        if (error)
            lm_page_table_release(range.table);
    }
    if (!error) {
        struct lm_space before = *space;
        space->ranges = fresh.ranges;
        space->by_source = fresh.by_source;
        space->count = fresh.count;
        space->capacity = fresh.capacity;
        space->sorted = false;
        fresh = before;
        fresh.userfault = fresh.memory = -1;
    }
    lm_space_deinit(&fresh);
    return error;
}

int lm_pager_set_ranges(struct lm_pager *pager, uint32_t number, const struct lm_range_description *ranges,
                        size_t count, size_t *failed) {
    *failed = 0;
    lm_pager_lock_patient(pager);
    struct lm_space *space = find_space(pager, number);
    int error = !space || space->gone ? -ESRCH : replace_ranges(pager, space, ranges, count, failed);
    lm_pager_unlock(pager);
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

/* For the part of each range that holds pages of [start, end) of the source. */
static int for_source(struct lm_pager *pager, uint32_t source_space, uint64_t start, uint64_t end,
                      uint32_t from) {
    int error = 0;
    for (size_t i = 0; i < pager->space_count; i++) {
        struct lm_space *space = pager->spaces[i];
        for (uint64_t at = start; at < end && !error;) {
            struct lm_range *range = lm_space_by_source(space, source_space, at, end);
            if (!range)
                break;
            uint64_t low = at > range->source ? at - range->source : 0, length = range->end - range->start;
            uint64_t high = end - range->source < length ? end - range->source : length;
            if (range->table)
                error = lm_page_table_set(range->table, range->first + low / LM_PAGE_SIZE,
                                          (high - low) / LM_PAGE_SIZE, from, LM_PAGE_MISSING);
            at = range->source + high;
        }
    }
    return error;
}

int lm_pager_discard(struct lm_pager *pager, uint32_t source_space, uint64_t start, uint64_t end) {
    if (start % LM_PAGE_SIZE || end % LM_PAGE_SIZE || start > end || end > LM_ADDRESS_END)
        return -EINVAL;
    lm_pager_lock_patient(pager);
    int error = for_source(pager, source_space, start, end, ~LM_STATES(LM_PAGE_ASKED));
    lm_pager_unlock(pager);
    return error;
}

int lm_pager_unask(struct lm_pager *pager) {
    int error = 0;
    for (size_t i = 0; i < pager->space_count; i++)
        for (size_t j = 0; j < pager->spaces[i]->count && !error; j++) {
            struct lm_range *range = &pager->spaces[i]->ranges[j];
            if (range->table)
                error =
                    lm_page_table_set(range->table, range->first, (range->end - range->start) / LM_PAGE_SIZE,
                                      LM_STATES(LM_PAGE_ASKED), LM_PAGE_MISSING);
        }
    return error;
}

static int start_thread(pthread_t *thread, void *(*body)(void *), struct lm_pager *pager, const char *name) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, body, pager);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        pthread_setname_np(*thread, name);
    return -error;
}

int lm_pager_start(struct lm_pager *pager) {
    if (pager->fault_running)
        return -EBUSY;
    int error = lm_keeper_start(&pager->keeper);
    if (!error)
        error = start_thread(&pager->fault_thread, lm_fault_main, pager, "lm-fault");
    pager->fault_running = !error;
    return error;
}

static int start_bulk(struct lm_pager *pager) {
    memset(pager->flights, 0, sizeof pager->flights);
    int error = start_thread(&pager->bulk_thread, lm_bulk_main, pager, "lm-bulk");
    pager->bulk_running = !error;
    return error;
}

int lm_pager_prefetch_start(struct lm_pager *pager) {
    if (pager->bulk_running)
        return -EBUSY;
    if (lm_channel_descriptor(&pager->bulk) < 0)
        return -ENOTCONN;
    lm_pager_lock_patient(pager);
    pager->prefetching = true;
    lm_pager_unlock(pager);
    lm_status_set(&pager->status, LM_PAGER_RUNNING, "%s", "");
    return start_bulk(pager);
}

int lm_pager_connect(struct lm_pager *pager, int fault_fd, int bulk_fd, const uint8_t *session,
                     uint32_t attempt) {
    uint64_t one = 1;
    int fault = fcntl(fault_fd, F_DUPFD_CLOEXEC, 3);
    if (fault < 0)
        return -errno;
    lm_channel_shutdown(&pager->bulk);
    bool again = pager->bulk_running;
    if (again)
        pthread_join(pager->bulk_thread, NULL);
    pager->bulk_running = false;
    /* From here on the end of the old fault connection is nobody's loss. */
    lm_pager_lock_patient(pager);
    lm_channel_deinit(&pager->bulk);
    int error = lm_channel_init(&pager->bulk, bulk_fd, LM_ROLE_BULK, session, attempt);
    if (!error)
        error = lm_pager_unask(pager);
    if (!error) {
        pager->bulk_inbox.begin = pager->bulk_inbox.end = 0;
        if (session)
            memcpy(pager->session, session, sizeof pager->session);
        if (pager->next_fault_fd >= 0)
            close(pager->next_fault_fd);
        pager->next_fault_fd = fault;
        pager->next_attempt = attempt;
        lm_status_set(&pager->status, again ? LM_PAGER_RUNNING : LM_PAGER_STAGED, "%s", "");
    } else {
        close(fault);
    }
    lm_pager_unlock(pager);
    if (!error && write(pager->wake, &one, sizeof one) < 0 && errno != EAGAIN)
        error = -errno;
    if (!error && again)
        error = start_bulk(pager);
    return error;
}

int lm_pager_prefetch_first(struct lm_pager *pager, const struct lm_hot_run *runs, size_t count) {
    struct lm_hot_run *copy = malloc(count ? count * sizeof *copy : 1);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, runs, count * sizeof *copy);
    for (size_t i = 0; i < count; i++)
        if (copy[i].start % LM_PAGE_SIZE || copy[i].end % LM_PAGE_SIZE || copy[i].end > LM_ADDRESS_END) {
            free(copy);
            return -EINVAL;
        }
    lm_pager_lock_patient(pager);
    free(pager->prefetch.hot);
    pager->prefetch.hot = copy;
    pager->prefetch.hot_count = count;
    pager->prefetch.hot_at = 0;
    lm_pager_unlock(pager);
    return 0;
}

void lm_pager_follow(struct lm_pager *pager) {
    lm_pager_lock_patient(pager);
    pager->followed = true;
    lm_pager_unlock(pager);
}

void lm_pager_limit(struct lm_pager *pager, uint64_t bytes_per_second) {
    atomic_store(&pager->bucket.rate, bytes_per_second);
}

void lm_pager_fault_pages(struct lm_pager *pager, uint32_t pages) {
    atomic_store(&pager->fault_pages, pages < 1 ? 1 : pages > LM_FAULT_PAGES ? LM_FAULT_PAGES : pages);
}
