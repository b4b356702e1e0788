/*
 * feature: CLOCK_MONOTONIC and CLOCK_BOOTTIME go on and never back, by call and by vdso
 */
#include "check.h"

static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW,
                                   CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME};
static volatile bool stop;

static double by_call(clockid_t clock) {
    struct timespec now;
    SYS(syscall(SYS_clock_gettime, clock, &now));
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Lives in the vdso, and so is most likely caught there. */
static void *watch(void *argument) {
    clockid_t clock = *(const clockid_t *)argument;
    double last = check_now(clock);
    while (!stop) {
        double now = check_now(clock);
        CHECK(now >= last, "clock %d went back from %.9f to %.9f", clock, last, now);
        CHECK(now - last < 120, "clock %d jumped from %.9f to %.9f", clock, last, now);
        last = now;
    }
    return NULL;
}

int main(int argc, char **argv) {
    double before[COUNT(clocks)];
    pthread_t threads[2];
    check_start(argc, argv);
    for (int i = 0; i < 2; i++)
        threads[i] = check_thread(watch, (void *)&clocks[i]);
    for (size_t i = 0; i < COUNT(clocks); i++)
        before[i] = by_call(clocks[i]);
    check_move();
    for (size_t i = 0; i < COUNT(clocks); i++) {
        double called = by_call(clocks[i]), seen = check_now(clocks[i]);
        CHECK(called >= before[i] && called < before[i] + 120, "clock %d: %.9f before, %.9f after", clocks[i],
              before[i], called);
        CHECK(seen >= called && seen < called + 10, "clock %d: %.9f by call, %.9f by vdso", clocks[i], called,
              seen);
    }
    stop = true;
    for (int i = 0; i < 2; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
