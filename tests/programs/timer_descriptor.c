/*
 * feature: timerfd: relative, absolute, with expirations not yet read, and disarmed
 */
#include "check.h"
#include <poll.h>
#include <sys/timerfd.h>

int main(int argc, char **argv) {
    struct itimerspec fast = {{0, 50000000}, {0, 50000000}}, once = {{0, 0}, {0, 1000000}},
                      at = {{0, 0}, {0, 0}}, found;
    struct itimerspec slow = {{100, 0}, {4000, 0}};
    uint64_t count = 0;
    check_start(argc, argv);
    int ticking = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)),
        expired = SYS(timerfd_create(CLOCK_MONOTONIC, 0));
    int absolute = SYS(timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC)),
        idle = SYS(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK));
    int slowly = SYS(timerfd_create(CLOCK_BOOTTIME, 0));
    SYS(timerfd_settime(ticking, 0, &fast, NULL));
    SYS(timerfd_settime(expired, 0, &once, NULL));
    SYS(clock_gettime(CLOCK_REALTIME, &at.it_value));
    at.it_value.tv_sec += 2000;
    SYS(timerfd_settime(absolute, TFD_TIMER_ABSTIME, &at, NULL));
    SYS(timerfd_settime(slowly, 0, &slow, NULL));
    check_sleep(20);
    check_move();
    CHECK(SYS(read(expired, &count, 8)) == 8 && count == 1, "the expired timer says %lu", count);
    for (int i = 0; i < 3; i++) {
        struct pollfd wait = {.fd = ticking, .events = POLLIN};
        CHECK(SYS(poll(&wait, 1, 5000)) == 1, "the ticking timer stopped");
        CHECK(SYS(read(ticking, &count, 8)) == 8 && count >= 1, "the ticking timer says %lu", count);
    }
    CHECK(read(idle, &count, 8) == -1 && errno == EAGAIN, "the disarmed timer can be read");
    SYS(timerfd_gettime(idle, &found));
    CHECK(found.it_value.tv_sec == 0 && found.it_value.tv_nsec == 0, "the disarmed timer is armed");
    SYS(timerfd_gettime(absolute, &found));
    CHECK(found.it_value.tv_sec > 1900 && found.it_value.tv_sec <= 2000, "the absolute timer has %ld s left",
          (long)found.it_value.tv_sec);
    SYS(timerfd_gettime(slowly, &found));
    CHECK(found.it_value.tv_sec > 3900 && found.it_interval.tv_sec == 100, "the slow timer has %ld s left",
          (long)found.it_value.tv_sec);
    return check_passed();
}
