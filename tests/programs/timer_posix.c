/*
 * feature: POSIX timers with their ids, clocks, signals and remaining times
 */
#include "check.h"

static volatile int ticks, value;

static void on_tick(int number, siginfo_t *information, void *context) {
    ticks++;
    value = information->si_value.sival_int;
    (void)number;
    (void)context;
}

/* Straight from the kernel: the C library wraps the ids. */
static int create(clockid_t clock, int notify, int number, int carried) {
    int id = -1;
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = number, .sigev_value.sival_int = carried};
    if (notify == SIGEV_THREAD_ID)
        event._sigev_un._tid = gettid();
    SYS(syscall(SYS_timer_create, clock, &event, &id));
    return id;
}

static struct itimerspec left(int id) {
    struct itimerspec found;
    SYS(syscall(SYS_timer_gettime, id, &found));
    return found;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO};
    struct itimerspec fast = {{0, 50000000}, {0, 50000000}}, slow = {{70, 0}, {5000, 0}},
                      at = {{0, 0}, {0, 0}};
    check_start(argc, argv);
    SYS(sigaction(SIGRTMIN + 2, &action, NULL));
    int first = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 2, 1);
    int second = create(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 2, 2);
    int third = create(CLOCK_REALTIME, SIGEV_NONE, 0, 3);
    int fourth = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGUSR1, 4);
    SYS(syscall(SYS_timer_delete, first));
    SYS(syscall(SYS_timer_settime, second, 0, &fast, NULL));
    SYS(clock_gettime(CLOCK_REALTIME, &at.it_value));
    at.it_value.tv_sec += 3000;
    SYS(syscall(SYS_timer_settime, third, TIMER_ABSTIME, &at, NULL));
    SYS(syscall(SYS_timer_settime, fourth, 0, &slow, NULL));
    check_move();
    struct itimerspec found;
    CHECK(syscall(SYS_timer_gettime, first, &found) == -1 && errno == EINVAL, "a deleted timer came back");
    int before = ticks;
    for (int wait = 0; ticks < before + 3 && wait < 500; wait++)
        check_sleep(10);
    CHECK(ticks >= before + 3 && value == 2, "the fast timer does not tick");
    CHECK(left(second).it_interval.tv_nsec == 50000000, "the fast timer's interval changed");
    long seconds = left(third).it_value.tv_sec;
    CHECK(seconds > 2900 && seconds <= 3000, "the absolute timer has %ld s left", seconds);
    seconds = left(fourth).it_value.tv_sec;
    CHECK(seconds > 4900 && seconds <= 5000 && left(fourth).it_interval.tv_sec == 70,
          "the slow timer has %ld s left", seconds);
    SYS(syscall(SYS_timer_delete, second));
    int fifth = create(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
    CHECK(fifth != third && fifth != fourth, "a new timer has the id of an old one");
    return check_passed();
}
