/*
 * feature: futex waits, without a timeout, with a relative and with an absolute one
 */
#include "check.h"
#include <linux/futex.h>

#define SECONDS 3

static uint32_t words[3];
static volatile pid_t ids[3];
static double ended[3];

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *limit,
                  uint32_t bits) {
    return syscall(SYS_futex, word, operation, value, limit, NULL, bits);
}

static void *wait_on(void *argument) {
    uintptr_t which = (uintptr_t)argument;
    struct timespec limit = {SECONDS, 0};
    long answer;
    if (which == 2) {
        SYS(clock_gettime(CLOCK_MONOTONIC, &limit));
        limit.tv_sec += SECONDS;
    }
    ids[which] = gettid();
    if (which == 0)
        answer = futex(&words[0], FUTEX_WAIT_PRIVATE, 0, NULL, 0);
    else if (which == 1)
        answer = futex(&words[1], FUTEX_WAIT_PRIVATE, 0, &limit, 0);
    else
        answer = futex(&words[2], FUTEX_WAIT_BITSET_PRIVATE, 0, &limit, FUTEX_BITSET_MATCH_ANY);
    int error = errno;
    ended[which] = check_now(CLOCK_MONOTONIC);
    if (which == 0)
        /* A futex may wake for nothing, but must have been woken or found its word changed. */
        CHECK(answer == 0 || error == EAGAIN, "futex without a limit: %s", strerror(error));
    else
        CHECK(answer == -1 && error == ETIMEDOUT, "futex %lu: %ld %s", which, answer, strerror(error));
    CHECK(which != 0 || words[0] == 1, "futex without a limit woke for nothing");
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[3];
    check_start(argc, argv);
    double begun = check_now(CLOCK_MONOTONIC);
    for (uintptr_t i = 0; i < 3; i++) {
        threads[i] = check_thread(wait_on, (void *)i);
        while (!ids[i])
            check_sleep(1);
        check_wait_asleep(ids[i]);
    }
    check_sleep(1000);
    check_move();
    double resumed = check_now(CLOCK_MONOTONIC);
    for (int i = 1; i < 3; i++) {
        PTHREAD(pthread_join(threads[i], NULL));
        double due = begun + SECONDS > resumed ? begun + SECONDS : resumed;
        CHECK(ended[i] >= begun + SECONDS - 0.01, "waiter %d ended %.3f s early", i,
              begun + SECONDS - ended[i]);
        CHECK(ended[i] <= due + 1.0, "waiter %d ended %.3f s late", i, ended[i] - due);
    }
    words[0] = 1;
    CHECK(futex(&words[0], FUTEX_WAKE_PRIVATE, 1, NULL, 0) == 1, "nobody waits any more");
    PTHREAD(pthread_join(threads[0], NULL));
    return check_passed();
}
