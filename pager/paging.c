#define _GNU_SOURCE
#include "pager/paging.h"

#include "wire/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void note_holder(struct lm_pager *pager) {
    atomic_store_explicit(&pager->holder_processor, sched_getcpu(), memory_order_relaxed);
}

/* Nobody holds the lock for longer than a few pages take, so a short spin of some tens of microseconds is worth it:
 * falling asleep and being woken costs more. But it is not when the holder has lost its processor to us. */
void lm_pager_lock_urgent(struct lm_pager *pager) {
    atomic_fetch_add(&pager->urgent, 1);
    int error = EBUSY;
    for (int i = 0; i < 32 && error; i++) {
        error = pthread_mutex_trylock(&pager->lock);
        if (error && atomic_load_explicit(&pager->holder_processor, memory_order_relaxed) == sched_getcpu())
            break;
        for (int pause = 0; error && pause < 20; pause++)
            __builtin_ia32_pause();
    }
    if (error)
        pthread_mutex_lock(&pager->lock);
    note_holder(pager);
    atomic_fetch_sub(&pager->urgent, 1);
}

/* A mutex is not fair: a thread that unlocks it and locks it again at once would keep a waiter out. */
void lm_pager_lock_patient(struct lm_pager *pager) {
    for (int i = 0; i < 100 && atomic_load_explicit(&pager->urgent, memory_order_relaxed); i++)
        sched_yield();
    pthread_mutex_lock(&pager->lock);
    note_holder(pager);
}

void lm_pager_unlock(struct lm_pager *pager) {
    __atomic_store_n(&pager->statistics->wanted_pages, pager->wanted, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&pager->lock);
}

void lm_pager_note_progress(struct lm_pager *pager) {
    /* This is read after each piece of work, and nearly always there is more: it is not worth the lock. Whoever takes
     * the last page away comes here after that. */
    if (__atomic_load_n(&pager->statistics->wanted_pages, __ATOMIC_RELAXED))
        return;
    lm_pager_lock_patient(pager);
    bool complete = !pager->wanted && pager->prefetching;
    lm_pager_unlock(pager);
    if (complete)
        lm_status_set(&pager->status, LM_PAGER_COMPLETE, "%s", "");
}

void lm_pager_lost(struct lm_pager *pager, const char *which, int error) {
    if (atomic_load(&pager->stop))
        return;
    const char *why = error == -EPIPE             ? "closed by the source"
                      : error == -ETIMEDOUT       ? "the source has said nothing for some seconds"
                      : error == -EPROTO          ? "the source broke the rules of the page stream"
                      : error == -EPROTONOSUPPORT ? "the source speaks another version of the page stream"
                                                  : lm_channel_cause(error);
    lm_status_set(&pager->status, LM_PAGER_STALLED, "the %s connection is lost: %s", which, why);
    lm_page_source_shutdown(pager->fault);
    lm_page_source_shutdown(pager->bulk);
}

struct lm_space *lm_pager_find_space(const struct lm_pager *pager, uint32_t number) {
    for (size_t i = 0; i < pager->space_count; i++)
        if (pager->spaces[i]->number == number)
            return pager->spaces[i];
    return NULL;
}

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

struct lm_space *lm_pager_open_space(struct lm_pager *pager, uint32_t number, int userfault, int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    /* A child that was born meanwhile is never written to. */
    int memory = pid ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (pid && memory < 0)
        return NULL;
    struct lm_space *space = lm_pager_new_space(pager, number, userfault, pid, memory);
    if (!space) {
        if (memory >= 0)
            close(memory);
        errno = ENOMEM;
        return NULL;
    }
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    space->pagemap = pid ? open(path, O_RDONLY | O_CLOEXEC) : -1;
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
    lm_space_changed(space);
    __atomic_store_n(&space->gone, true, __ATOMIC_RELAXED);
}
