/*
 * feature: nanosleep and clock_nanosleep across the move: they end on time, not after the full time again
 */
#include "check.h"

#define SECONDS 3

static volatile pid_t ids[3];
static double ended[3];

static void *relative(void *argument) {
    struct timespec time = {SECONDS, 0};
    ids[0] = gettid();
    CHECK(nanosleep(&time, NULL) == 0, "nanosleep: %s", strerror(errno));
    ended[0] = check_now(CLOCK_MONOTONIC);
    return argument;
}

static void *absolute(void *argument) {
    struct timespec time;
    SYS(clock_gettime(CLOCK_MONOTONIC, &time));
    time.tv_sec += SECONDS;
    ids[1] = gettid();
    int answer = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
    CHECK(answer == 0, "clock_nanosleep: %s", strerror(answer));
    ended[1] = check_now(CLOCK_MONOTONIC);
    return argument;
}

static void *relative_to_clock(void *argument) {
    struct timespec time = {SECONDS, 0};
    ids[2] = gettid();
    int answer = clock_nanosleep(CLOCK_BOOTTIME, 0, &time, NULL);
    CHECK(answer == 0, "clock_nanosleep: %s", strerror(answer));
    ended[2] = check_now(CLOCK_MONOTONIC);
    return argument;
}

int main(int argc, char **argv) {
    static void *(*const bodies[])(void *) = {relative, absolute, relative_to_clock};
    pthread_t threads[3];
    check_start(argc, argv);
    double begun = check_now(CLOCK_MONOTONIC);
    for (int i = 0; i < 3; i++) {
        threads[i] = check_thread(bodies[i], NULL);
        while (!ids[i])
            check_sleep(1);
    }
    check_sleep(1000);
    check_move();
    double resumed = check_now(CLOCK_MONOTONIC);
    for (int i = 0; i < 3; i++) {
        PTHREAD(pthread_join(threads[i], NULL));
        double due = begun + SECONDS > resumed ? begun + SECONDS : resumed;
        CHECK(ended[i] >= begun + SECONDS - 0.01, "sleeper %d ended %.3f s early", i,
              begun + SECONDS - ended[i]);
        CHECK(ended[i] <= due + 1.0, "sleeper %d ended %.3f s late", i, ended[i] - due);
    }
    return check_passed();
}
