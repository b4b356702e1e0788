#define _GNU_SOURCE
#include "pager/pager.h"

#include "pager/bulk.h"
#include "pager/fault_loop.h"
#include "pager/ranges.h"
#include "pager/record.h"
#include "pager/recovery.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* What has failed stays failed, what is complete does not stall, and the first cause counts. */
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
    pager->keeper = LM_NO_KEEPER;
    pager->ledger = lm_ledger_create();
    atomic_init(&pager->fault_pages, 16);
    pthread_mutex_init(&pager->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&pager->work, &clock);
    pthread_condattr_destroy(&clock);
    pager->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = lm_status_init(&pager->status, entered_from, LM_PAGER_STAGED);
    if (error || pager->wake < 0 || !pager->ledger) {
        lm_pager_destroy(pager);
        return NULL;
    }
    return pager;
}

/* End the threads; leave the descriptors of userfaultfds as they are. */
static void stop_threads(struct lm_pager *pager) {
    uint64_t one = 1;
    pthread_mutex_lock(&pager->lock);
    atomic_store(&pager->stop, true);
    pthread_cond_broadcast(&pager->work);
    lm_page_source_shutdown(pager->bulk);
    lm_page_source_shutdown(pager->fault);
    pthread_mutex_unlock(&pager->lock);
    if (write(pager->wake, &one, sizeof one) < 0)
        atomic_store(&pager->stop, true); /* full means readable, which is what is wanted */
    if (pager->fault_running)
        pthread_join(pager->fault_thread, NULL);
    if (pager->bulk_running)
        pthread_join(pager->bulk_thread, NULL);
    pager->fault_running = pager->bulk_running = false;
}

static void close_sources(struct lm_pager *pager) {
    struct lm_page_source **sources[] = {&pager->fault, &pager->bulk, &pager->next_fault};
    for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++) {
        lm_page_source_close(*sources[i]);
        *sources[i] = NULL;
    }
}

int lm_pager_let_go(struct lm_pager *pager) {
    lm_pager_lock_patient(pager);
    bool missing = pager->wanted != 0;
    lm_pager_unlock(pager);
    if (missing)
        return -EBUSY;
    stop_threads(pager);
    __atomic_store_n(&lm_ledger_head(pager->ledger)->complete, 1, __ATOMIC_SEQ_CST);
    for (size_t i = 0; i < pager->space_count; i++)
        lm_space_deinit(pager->spaces[i]);
    close_sources(pager);
    lm_status_set(&pager->status, LM_PAGER_FINISHED, "%s", "");
    return 0;
}

int lm_pager_finish(struct lm_pager *pager) {
    int error = lm_pager_let_go(pager);
    if (!error)
        lm_keeper_finish(&pager->keeper);
    return error;
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
    close_sources(pager);
    free(pager->prefetch.hot);
    free(pager->discarded.runs);
    free(pager->spaces);
    free(pager->objects);
    free(pager->pending);
    if (pager->wake >= 0)
        close(pager->wake);
    lm_ledger_destroy(pager->ledger, needed);
    lm_status_deinit(&pager->status);
    pthread_cond_destroy(&pager->work);
    pthread_mutex_destroy(&pager->lock);
    free(pager);
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

int lm_pager_add_space(struct lm_pager *pager, uint32_t number, int userfaultfd, int pid) {
    if (number >= LM_CHILD_SPACE || pager->fault_running)
        return -EINVAL;
    if (lm_pager_find_space(pager, number))
        return -EEXIST;
    /* poll(2) says nothing of a userfaultfd that blocks. */
    int flags = fcntl(userfaultfd, F_GETFL);
    if (flags < 0 || fcntl(userfaultfd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    return lm_pager_open_space(pager, number, userfaultfd, pid) ? 0 : -errno;
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
    lm_pager_lock_patient(pager);
    lm_ledger_head(pager->ledger)->worker = getpid();
    lm_ledger_head(pager->ledger)->pid = pager->space_count ? pager->spaces[0]->pid : 0;
    int error = lm_record(pager, 0);
    lm_pager_unlock(pager);
    if (!error)
        error = lm_keeper_start(&pager->keeper, pager->ledger);
    if (!error)
        lm_recovery_settle(pager);
    if (!error)
        error = start_thread(&pager->fault_thread, lm_fault_main, pager, "lm-fault");
    pager->fault_running = !error;
    if (!error)
        lm_pager_note_progress(pager);
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
    if (!pager->bulk)
        return -ENOTCONN;
    lm_pager_lock_patient(pager);
    pager->prefetching = true;
    lm_pager_unlock(pager);
    lm_status_set(&pager->status, LM_PAGER_RUNNING, "%s", "");
    return start_bulk(pager);
}

int lm_pager_connect(struct lm_pager *pager, struct lm_page_source *fault, struct lm_page_source *bulk) {
    uint64_t one = 1;
    lm_page_source_shutdown(pager->bulk);
    if (pager->bulk_running)
        pthread_join(pager->bulk_thread, NULL);
    pager->bulk_running = false;
    /* From here on it does not matter when the old fault source ends. */
    lm_pager_lock_patient(pager);
    struct lm_page_source *old_bulk = pager->bulk, *old_fault = pager->next_fault;
    bool again = pager->prefetching;
    pager->bulk = bulk;
    pager->next_fault = fault;
    int error = lm_pager_discard_requests(pager);
    if (!error)
        lm_status_set(&pager->status, again ? LM_PAGER_RUNNING : LM_PAGER_STAGED, "%s", "");
    lm_pager_unlock(pager);
    lm_page_source_close(old_bulk);
    lm_page_source_close(old_fault);
    if (!error && write(pager->wake, &one, sizeof one) < 0 && errno != EAGAIN)
        error = -errno;
    if (!error && again)
        error = start_bulk(pager);
    return error;
}

void lm_pager_limit(struct lm_pager *pager, uint64_t bytes_per_second) {
    atomic_store(&pager->bucket.rate, bytes_per_second);
}

void lm_pager_fault_pages(struct lm_pager *pager, uint32_t pages) {
    atomic_store(&pager->fault_pages, pages < 1 ? 1 : pages > LM_FAULT_PAGES ? LM_FAULT_PAGES : pages);
}

struct lm_status *lm_pager_status(struct lm_pager *pager) {
    return &pager->status;
}

int lm_pager_keeper(struct lm_pager *pager) {
    return pager->keeper.pid;
}
