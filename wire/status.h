/*
 * The status of a part that works by itself, in threads of its own: its state, the cause, and an eventfd that tells of
 * the next state. The pager has one, and so has each client of a page store. Their counters stand beside it, in memory
 * that others may map: 64-bit numbers that any thread writes and anybody reads.
 */
#ifndef LM_WIRE_STATUS_H
#define LM_WIRE_STATUS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct lm_status {
    pthread_mutex_t lock; /* may be taken with any other held; guards the state and the cause */
    pthread_cond_t changed;
    const uint32_t *entered_from; /* for each state the set (1 << state) of those that it may follow */
    int state;
    int event;
    char cause[200];
};

/* `entered_from` must outlive it. Returns 0 or -errno. */
int lm_status_init(struct lm_status *status, const uint32_t *entered_from, int state);
void lm_status_deinit(struct lm_status *status);

/* Enter a state, with its cause as the end of a sentence. Nothing happens if it may not follow the present one: so the
 * first cause stays. */
void lm_status_set(struct lm_status *status, int state, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

void lm_count(uint64_t *counter, uint64_t amount);

/* cffi: begin */
struct lm_status;

int lm_status_state(struct lm_status *status);
/* Wait until the state is no longer `state`, at most `timeout_ms` (-1: for ever). Returns the state. */
int lm_status_wait(struct lm_status *status, int state, int timeout_ms);
/* An eventfd, its own, that becomes readable when the state changes; read it to arm it again. */
int lm_status_event(const struct lm_status *status);
/* Why the state is what it is, "" when there is nothing to say. Returns the length. */
int lm_status_cause(struct lm_status *status, char *buffer, size_t size);
/* cffi: end */

#endif
