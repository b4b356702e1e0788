/*
 * feature: POSIX and interval timers that run out thousands of times a second, or at the moment of the move: each goes on
 * limits: expirations of a POSIX timer whose signal waits at the freeze are one expiration, without overruns
 */
#include "check.h"
#include <sys/time.h>

enum { TIMERS = 12 };
static long counts[TIMERS], after[TIMERS], alarms;
static double began[TIMERS];

static long nanoseconds(int timer) {
    return 100000 + 90000 * timer;
}

static void on_alarm(int number) {
    alarms += number == SIGALRM;
}

static void arm(timer_t timer, int index) {
    struct itimerspec setting = {{0, nanoseconds(index)}, {0, nanoseconds(index)}};
    /* Every third one goes off once, and is set again. */
    if (index % 3 == 2)
        setting.it_interval.tv_nsec = 0;
    SYS(timer_settime(timer, 0, &setting, NULL));
}

int main(int argc, char **argv) {
    static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_REALTIME};
    struct itimerval tick = {{0, 1000}, {0, 1000}};
    timer_t timers[TIMERS];
    sigset_t signals;
    long alarms_before = -1;
    check_start(argc, argv);
    sigemptyset(&signals);
    sigaddset(&signals, SIGRTMIN + 1);
    SYS(sigprocmask(SIG_BLOCK, &signals, NULL));
    SYS(signal(SIGALRM, on_alarm) == SIG_ERR ? -1 : 0);
    SYS(setitimer(ITIMER_REAL, &tick, NULL));
    for (int i = 0; i < TIMERS; i++) {
        struct sigevent event = {
            .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = i};
        SYS(timer_create(clocks[i % COUNT(clocks)], &event, &timers[i]));
        began[i] = check_now(CLOCK_MONOTONIC);
        arm(timers[i], i);
    }
    check_ready();
    for (int left = TIMERS; left > 0;) {
        siginfo_t information;
        struct timespec timeout = {2, 0};
        if (sigtimedwait(&signals, &information, &timeout) < 0) {
            CHECK(errno == EINTR, "%d of the timers stand still", left);
            continue;
        }
        int timer = information.si_value.sival_int;
        counts[timer] += 1 + information.si_overrun;
        if (timer % 3 == 2)
            arm(timers[timer], timer);
        if (alarms_before < 0 && check_is_moved())
            alarms_before = alarms;
        if (alarms_before >= 0 && ++after[timer] == 20) {
            double most = (check_now(CLOCK_MONOTONIC) - began[timer]) * 1e9 / (double)nanoseconds(timer);
            CHECK((double)counts[timer] <= most + 1, "timer %d ran out %ld times, not %.0f", timer,
                  counts[timer], most);
            left--;
        }
    }
    CHECK(alarms > alarms_before, "the interval timer stands still");
    return check_passed();
}
