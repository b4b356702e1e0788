/*
 * feature: timerfds that go off thousands of times a second, or at the moment of the move: no expiration is lost or doubled
 */
#include "check.h"
#include <poll.h>
#include <sys/timerfd.h>

struct ticking {
    clockid_t clock;
    bool absolute;
    long interval;
    int descriptor;
    double start;
    volatile uint64_t total, reads;
};

static struct ticking timers[] = {
    {.clock = CLOCK_MONOTONIC, .absolute = false, .interval = 50000},
    {.clock = CLOCK_MONOTONIC, .absolute = false, .interval = 200000},
    {.clock = CLOCK_MONOTONIC, .absolute = true, .interval = 1000000},
    {.clock = CLOCK_BOOTTIME, .absolute = false, .interval = 3000000},
    {.clock = CLOCK_REALTIME, .absolute = true, .interval = 900000},
    {.clock = CLOCK_MONOTONIC, .absolute = false, .interval = 77000000},
};
static volatile bool stop;

static void *reader(void *argument) {
    struct ticking *timer = argument;
    while (!stop) {
        struct pollfd wait = {.fd = timer->descriptor, .events = POLLIN};
        uint64_t count = 0;
        CHECK(SYS(poll(&wait, 1, 10000)) == 1, "the timer of %ld ns on clock %d stands still",
              timer->interval, timer->clock);
        SYS(read(timer->descriptor, &count, sizeof(count)));
        timer->total += count;
        timer->reads++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[COUNT(timers)];
    check_start(argc, argv);
    for (size_t i = 0; i < COUNT(timers); i++) {
        struct ticking *timer = timers + i;
        struct itimerspec times = {{0, timer->interval}, {0, timer->interval}};
        timer->descriptor = SYS(timerfd_create(timer->clock, TFD_CLOEXEC));
        if (timer->absolute) {
            SYS(clock_gettime(timer->clock, &times.it_value));
            times.it_value.tv_nsec += timer->interval;
            times.it_value.tv_sec += times.it_value.tv_nsec / 1000000000;
            times.it_value.tv_nsec %= 1000000000;
        }
        timer->start = check_now(CLOCK_MONOTONIC);
        SYS(timerfd_settime(timer->descriptor, timer->absolute ? TFD_TIMER_ABSTIME : 0, &times, NULL));
        /* Nobody reads the last one before the end. */
        if (i + 1 < COUNT(timers))
            threads[i] = check_thread(reader, timer);
    }
    check_move();
    uint64_t before[COUNT(timers)];
    for (size_t i = 0; i < COUNT(timers); i++)
        before[i] = timers[i].reads;
    check_sleep(1000);
    stop = true;
    for (size_t i = 0; i < COUNT(timers); i++) {
        struct ticking *timer = timers + i;
        uint64_t more = 0;
        if (i + 1 < COUNT(timers)) {
            PTHREAD(pthread_join(threads[i], NULL));
            CHECK(timer->reads > before[i] + 5,
                  "the timer of %ld ns on clock %d was read %lu times in a second", timer->interval,
                  timer->clock, (unsigned long)(timer->reads - before[i]));
        }
        /* What is missing now can only have been lost. */
        SYS(fcntl(timer->descriptor, F_SETFL, O_NONBLOCK));
        double expected = (check_now(CLOCK_MONOTONIC) - timer->start) * 1e9 / (double)timer->interval;
        if (read(timer->descriptor, &more, sizeof(more)) == sizeof(more))
            timer->total += more;
        double later = (check_now(CLOCK_MONOTONIC) - timer->start) * 1e9 / (double)timer->interval;
        /* The clocks of two hosts are as near to each other as the handshake's round trip. */
        double inexact = 3 + 0.02 * 1e9 / (double)timer->interval;
        CHECK((double)timer->total > expected - inexact && (double)timer->total < later + inexact,
              "the timer of %ld ns on clock %d went off %lu times, %.0f intervals have passed",
              timer->interval, timer->clock, (unsigned long)timer->total, expected);
    }
    return check_passed();
}
