/*
 * feature: interval timers (ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF)
 */
#include "check.h"
#include <sys/time.h>

static volatile int ticks;

static void on_alarm(int number) {
    ticks += number == SIGALRM;
}

int main(int argc, char **argv) {
    struct itimerval tick = {{0, 50000}, {0, 50000}}, slow = {{2000, 0}, {1000, 0}}, found;
    check_start(argc, argv);
    SYS(signal(SIGALRM, on_alarm) == SIG_ERR ? -1 : 0);
    SYS(setitimer(ITIMER_REAL, &tick, NULL));
    SYS(setitimer(ITIMER_VIRTUAL, &slow, NULL));
    SYS(setitimer(ITIMER_PROF, &slow, NULL));
    check_move();
    int before = ticks;
    for (int wait = 0; ticks < before + 3 && wait < 500; wait++)
        check_sleep(10);
    CHECK(ticks >= before + 3, "the real timer no longer ticks");
    SYS(getitimer(ITIMER_REAL, &found));
    CHECK(found.it_interval.tv_sec == 0 && found.it_interval.tv_usec == 50000,
          "the real timer's interval changed");
    for (int which = ITIMER_VIRTUAL; which <= ITIMER_PROF; which++) {
        SYS(getitimer(which, &found));
        CHECK(found.it_interval.tv_sec == 2000 && found.it_value.tv_sec >= 900 &&
                  found.it_value.tv_sec <= 1000,
              "timer %d: %ld s left, interval %ld s", which, (long)found.it_value.tv_sec,
              (long)found.it_interval.tv_sec);
    }
    return check_passed();
}
