#include "wire/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

int lm_status_init(struct lm_status *status, const uint32_t *entered_from, int state) {
    pthread_condattr_t clock;
    memset(status, 0, sizeof *status);
    status->entered_from = entered_from;
    status->state = state;
    pthread_mutex_init(&status->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&status->changed, &clock);
    pthread_condattr_destroy(&clock);
    status->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return status->event < 0 ? -errno : 0;
}

void lm_status_deinit(struct lm_status *status) {
    if (status->event >= 0)
        close(status->event);
    status->event = -1;
    pthread_cond_destroy(&status->changed);
    pthread_mutex_destroy(&status->lock);
}

void lm_status_set(struct lm_status *status, int state, const char *format, ...) {
    uint64_t one = 1;
    va_list arguments;
    pthread_mutex_lock(&status->lock);
    if (status->entered_from[state] >> status->state & 1) {
        status->state = state;
        va_start(arguments, format);
        vsnprintf(status->cause, sizeof status->cause, format, arguments);
        va_end(arguments);
        pthread_cond_broadcast(&status->changed);
        if (write(status->event, &one, sizeof one) < 0)
            status->state = state; /* full means readable, which is what is wanted */
    }
    pthread_mutex_unlock(&status->lock);
}

void lm_count(uint64_t *counter, uint64_t amount) {
    __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED);
}

int lm_status_state(struct lm_status *status) {
    return lm_status_wait(status, -1, 0);
}

int lm_status_wait(struct lm_status *status, int state, int timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&status->lock);
    int error = 0;
    while (status->state == state && !error)
        error = timeout_ms < 0 ? pthread_cond_wait(&status->changed, &status->lock)
                               : pthread_cond_timedwait(&status->changed, &status->lock, &until);
    int now = status->state;
    pthread_mutex_unlock(&status->lock);
    return now;
}

int lm_status_event(const struct lm_status *status) {
    return status->event;
}

int lm_status_cause(struct lm_status *status, char *buffer, size_t size) {
    pthread_mutex_lock(&status->lock);
    int length = snprintf(buffer, size, "%s", status->cause);
    pthread_mutex_unlock(&status->lock);
    return length;
}
