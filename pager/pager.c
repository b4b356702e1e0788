#define _GNU_SOURCE
#include "pager/paging.h"
#include "pager/userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { FAULT_INBOX = 512 * 1024, BULK_INBOX = 1024 * 1024, UNPACKED = LM_FRAME_PAGES * LM_PAGE_SIZE };

/* What has failed stays failed, what is complete does not stall, and the first cause is the cause. */
enum {
    STAGED = 1 << LM_PAGER_STAGED,
    RUNNING = 1 << LM_PAGER_RUNNING,
    COMPLETE = 1 << LM_PAGER_COMPLETE,
    STALLED = 1 << LM_PAGER_STALLED,
    ANY = ~0
};
static const uint32_t entered_from[] = {
    [LM_PAGER_STAGED] = RUNNING | COMPLETE | STALLED,
    [LM_PAGER_RUNNING] = STAGED | COMPLETE | STALLED,
    [LM_PAGER_COMPLETE] = RUNNING | STALLED,
    [LM_PAGER_STALLED] = STAGED | RUNNING,
    [LM_PAGER_FAILED] = STAGED | RUNNING | COMPLETE | STALLED,
    [LM_PAGER_FINISHED] = (uint32_t)ANY,
};

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
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&pager->work, &clock);
    pthread_condattr_destroy(&clock);
    pager->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pager->fault_unpacked = aligned_alloc(LM_PAGE_SIZE, UNPACKED);
    pager->bulk_unpacked = aligned_alloc(LM_PAGE_SIZE, UNPACKED);
    pager->fault_decompressor = ZSTD_createDCtx();
    pager->bulk_decompressor = ZSTD_createDCtx();
    int error = pager->wake < 0 || !pager->fault_unpacked || !pager->bulk_unpacked ||
                !pager->fault_decompressor || !pager->bulk_decompressor;
    error |= lm_status_init(&pager->status, entered_from, LM_PAGER_STAGED);
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
    lm_status_set(&pager->status, LM_PAGER_FINISHED, "%s", "");
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
    int fds[] = {pager->wake, pager->next_fault_fd};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    lm_status_deinit(&pager->status);
    pthread_cond_destroy(&pager->work);
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

void lm_pager_note_progress(struct lm_pager *pager) {
    /* Looked at after each piece of work, and nearly always there is more: not worth the lock. Whoever takes
     * the last page away comes here after that. */
    if (__atomic_load_n(&pager->statistics->wanted_pages, __ATOMIC_RELAXED))
        return;
    lm_pager_lock_patient(pager);
    bool complete = !pager->wanted && pager->prefetching;
    lm_pager_unlock(pager);
    if (complete)
        lm_status_set(&pager->status, LM_PAGER_COMPLETE, "%s", "");
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
    lm_status_set(&pager->status, LM_PAGER_STALLED, "the %s connection is lost: %s", which, why);
    lm_channel_shutdown(&pager->fault);
    lm_channel_shutdown(&pager->bulk);
}

struct lm_status *lm_pager_status(struct lm_pager *pager) {
    return &pager->status;
}

int lm_pager_keeper(struct lm_pager *pager) {
    return pager->keeper.pid;
}
