#define _GNU_SOURCE
#include "pager/paging.h"
#include "pager/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { FAULT_INBOX = 512 * 1024, BULK_INBOX = 1024 * 1024, UNPACKED = LM_FRAME_PAGES * LM_PAGE_SIZE };

struct lm_pager *lm_pager_create(struct lm_pager_statistics *statistics) {
    struct lm_pager *pager = calloc(1, sizeof *pager);
    pthread_condattr_t clock;
    if (!pager)
        return NULL;
    pager->statistics = statistics ? statistics : &pager->own_statistics;
    pager->fault.fd = pager->bulk.fd = pager->next_fault_fd = -1;
    pager->keeper = (struct lm_keeper){.finished = -1, .pager = -1};
    pager->prefetch.run_pages = LM_FRAME_PAGES;
    atomic_init(&pager->fault_pages, 16);
    pthread_mutex_init(&pager->lock, NULL);
    pthread_mutex_init(&pager->state_lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&pager->work, &clock);
    pthread_cond_init(&pager->changed, &clock);
    pager->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pager->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pager->fault_unpacked = aligned_alloc(LM_PAGE_SIZE, UNPACKED);
    pager->bulk_unpacked = aligned_alloc(LM_PAGE_SIZE, UNPACKED);
    pager->fault_decompressor = ZSTD_createDCtx();
    pager->bulk_decompressor = ZSTD_createDCtx();
    int error = pager->event < 0 || pager->wake < 0 || !pager->fault_unpacked || !pager->bulk_unpacked ||
                !pager->fault_decompressor || !pager->bulk_decompressor;
    error |= lm_inbox_init(&pager->fault_inbox, FAULT_INBOX);
    error |= lm_inbox_init(&pager->bulk_inbox, BULK_INBOX);
    if (error) {
        lm_pager_destroy(pager);
        return NULL;
    }
    return pager;
}

/* End what runs; the descriptors of userfaultfds are untouched. */
static void stop_threads(struct lm_pager *pager) {
    uint64_t one = 1;
    pthread_mutex_lock(&pager->lock);
    atomic_store(&pager->stop, true);
    pthread_cond_broadcast(&pager->work);
    pthread_mutex_unlock(&pager->lock);
    lm_channel_shutdown(&pager->bulk);
    lm_channel_shutdown(&pager->fault);
    if (write(pager->wake, &one, sizeof one) < 0)
        atomic_store(&pager->stop, true); /* full means readable, which is what is wanted */
    if (pager->fault_running)
        pthread_join(pager->fault_thread, NULL);
    if (pager->bulk_running)
        pthread_join(pager->bulk_thread, NULL);
    pager->fault_running = pager->bulk_running = false;
}

int lm_pager_finish(struct lm_pager *pager) {
    lm_pager_lock_patient(pager);
    bool missing = pager->wanted != 0;
    lm_pager_unlock(pager);
    if (missing)
        return -EBUSY;
    stop_threads(pager);
    for (size_t i = 0; i < pager->space_count; i++)
        lm_space_deinit(pager->spaces[i]);
    lm_keeper_finish(&pager->keeper);
    lm_channel_deinit(&pager->fault);
    lm_channel_deinit(&pager->bulk);
    lm_pager_set_state(pager, LM_PAGER_FINISHED, "%s", "");
    return 0;
}

void lm_pager_destroy(struct lm_pager *pager) {
    if (!pager)
        return;
    stop_threads(pager);
    bool needed = false;
    for (size_t i = 0; i < pager->space_count; i++)
        needed |= pager->keeper.pid && pager->spaces[i]->userfault >= 0 &&
                  lm_keeper_is_alive(pager->spaces[i]->userfault);
    if (needed)
        lm_keeper_leave(&pager->keeper);
    else
        lm_keeper_finish(&pager->keeper);
    for (size_t i = 0; i < pager->space_count; i++) {
        if (needed)
            pager->spaces[i]->userfault = -1;
        lm_space_deinit(pager->spaces[i]);
        free(pager->spaces[i]);
    }
    for (size_t i = 0; i < pager->object_count; i++)
        close(pager->objects[i].fd);
    lm_channel_deinit(&pager->fault);
    lm_channel_deinit(&pager->bulk);
    lm_inbox_deinit(&pager->fault_inbox);
    lm_inbox_deinit(&pager->bulk_inbox);
    ZSTD_freeDCtx(pager->fault_decompressor);
    ZSTD_freeDCtx(pager->bulk_decompressor);
    free(pager->fault_unpacked);
    free(pager->bulk_unpacked);
    free(pager->prefetch.hot);
    free(pager->discarded.runs);
    free(pager->spaces);
    free(pager->objects);
    free(pager->pending);
    int fds[] = {pager->event, pager->wake, pager->next_fault_fd};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_cond_destroy(&pager->changed);
    pthread_cond_destroy(&pager->work);
    pthread_mutex_destroy(&pager->state_lock);
    pthread_mutex_destroy(&pager->lock);
    free(pager);
}

static void note_holder(struct lm_pager *pager) {
    atomic_store_explicit(&pager->holder_processor, sched_getcpu(), memory_order_relaxed);
}

/* Nobody ever holds the lock for longer than a few pages take, so it is worth a short spin, some tens of
 * microseconds: falling asleep and being woken costs more. But not when its holder has lost its processor to
 * us. */
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

/* A mutex is not fair: who unlocks and locks again at once would keep a waiter out. */
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

void lm_pager_set_state(struct lm_pager *pager, int state, const char *format, ...) {
    uint64_t one = 1;
    va_list arguments;
    pthread_mutex_lock(&pager->state_lock);
    /* What has failed stays failed, what is complete does not stall, and the first cause is the cause. */
    bool allowed =
        state == LM_PAGER_FINISHED ||
        (pager->state != state && pager->state != LM_PAGER_FAILED && pager->state != LM_PAGER_FINISHED &&
         !(pager->state == LM_PAGER_COMPLETE && state == LM_PAGER_STALLED));
    if (allowed) {
        pager->state = state;
        va_start(arguments, format);
        vsnprintf(pager->cause, sizeof pager->cause, format, arguments);
        va_end(arguments);
        pthread_cond_broadcast(&pager->changed);
        if (write(pager->event, &one, sizeof one) < 0)
            pager->state = state; /* full means readable, which is what is wanted */
    }
    pthread_mutex_unlock(&pager->state_lock);
}

void lm_pager_note_progress(struct lm_pager *pager) {
    /* Looked at after each piece of work, and nearly always there is more: not worth the lock. Whoever takes
     * the last page away comes here after that. */
    if (__atomic_load_n(&pager->statistics->wanted_pages, __ATOMIC_RELAXED))
        return;
    lm_pager_lock_patient(pager);
    bool complete = !pager->wanted;
    lm_pager_unlock(pager);
    if (!complete)
        return;
    pthread_mutex_lock(&pager->state_lock);
    bool running =
        pager->prefetching && (pager->state == LM_PAGER_RUNNING || pager->state == LM_PAGER_STALLED);
    pthread_mutex_unlock(&pager->state_lock);
    if (running)
        lm_pager_set_state(pager, LM_PAGER_COMPLETE, "%s", "");
}

void lm_pager_notice_ends(struct lm_pager *pager) {
    lm_pager_lock_patient(pager);
    for (size_t i = 0; i < pager->space_count; i++) {
        struct lm_space *space = pager->spaces[i];
        if (!space->gone && space->userfault >= 0 && !lm_keeper_is_alive(space->userfault))
            lm_pager_space_gone(pager, space);
    }
    lm_pager_unlock(pager);
    lm_pager_note_progress(pager);
}

void lm_pager_lost(struct lm_pager *pager, const char *which, int error) {
    if (atomic_load(&pager->stop))
        return;
    const char *why = error == -EPIPE             ? "closed by the source"
                      : error == -EPROTO          ? "the source broke the rules of the page stream"
                      : error == -EPROTONOSUPPORT ? "the source speaks another version of the page stream"
                                                  : strerror(-error);
    lm_pager_set_state(pager, LM_PAGER_STALLED, "the %s connection is lost: %s", which, why);
    lm_channel_shutdown(&pager->fault);
    lm_channel_shutdown(&pager->bulk);
}

int lm_pager_state(struct lm_pager *pager) {
    return lm_pager_wait(pager, -1, 0);
}

int lm_pager_wait(struct lm_pager *pager, int state, int timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&pager->state_lock);
    int error = 0;
    while (pager->state == state && !error)
        error = timeout_ms < 0 ? pthread_cond_wait(&pager->changed, &pager->state_lock)
                               : pthread_cond_timedwait(&pager->changed, &pager->state_lock, &until);
    int now = pager->state;
    pthread_mutex_unlock(&pager->state_lock);
    return now;
}

int lm_pager_event(struct lm_pager *pager) {
    return pager->event;
}

int lm_pager_cause(struct lm_pager *pager, char *buffer, size_t size) {
    pthread_mutex_lock(&pager->state_lock);
    int length = snprintf(buffer, size, "%s", pager->cause);
    pthread_mutex_unlock(&pager->state_lock);
    return length;
}

int lm_pager_keeper(struct lm_pager *pager) {
    return pager->keeper.pid;
}
