/* Timers: of the process (POSIX, interval) and by descriptor. */
#include "observer.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>

#define SECOND 1000000000ll
#define TIMERS 6
#define EARLY (SECOND / 20)
#define LATE (SECOND / 5)
#define TICK (SECOND / 100)
#define TRIES 50

static struct {
    bool made;
    int number, clock;
} posix[TIMERS];

/* Far away, so that it does not run out while it is observed. */
static int64_t draw_far(struct draw *from) {
    return (int64_t)(3000 + draw(from, 100000)) * SECOND + (int64_t)draw(from, SECOND);
}

/* A busy machine lets time pass between reading a clock and a timer: both are read again then. */
static bool was_busy(int64_t now, int clock, unsigned *tries) {
    return (int64_t)now_of(clock) - now > EARLY / 2 && ++*tries < TRIES;
}

static struct timespec time_of(int64_t nanoseconds) {
    return (struct timespec){nanoseconds / SECOND, nanoseconds % SECOND};
}

static int64_t of_time(struct timespec time) {
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void change_posix(struct draw *from) {
    static const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI,
                                 CLOCK_PROCESS_CPUTIME_ID};
    size_t slot = draw(from, TIMERS);
    if (!posix[slot].made) {
        struct sigevent event = {.sigev_notify = draw(from, 2) ? SIGEV_NONE : SIGEV_SIGNAL};
        event.sigev_signo = FIRST_QUEUED;
        event.sigev_value.sival_int = (int)draw(from, 1000);
        posix[slot].clock = DRAW_OF(from, clocks);
        long result = syscall(SYS_timer_create, posix[slot].clock, &event, &posix[slot].number);
        posix[slot].made = result == 0;
        did("timer_create(%d, notify %d) = %ld, timer %d", posix[slot].clock, event.sigev_notify, result,
            posix[slot].number);
        return;
    }
    if (draw(from, 4) == 0) {
        did("timer_delete(%d) = %ld", posix[slot].number, syscall(SYS_timer_delete, posix[slot].number));
        posix[slot].made = false;
        return;
    }
    struct itimerspec wanted = {.it_value = time_of(draw(from, 5) ? draw_far(from) : 0)};
    int flags = draw(from, 3) == 0 ? TIMER_ABSTIME : 0;
    if (draw(from, 2))
        wanted.it_interval = time_of(draw_far(from));
    if (flags && of_time(wanted.it_value))
        wanted.it_value = time_of(of_time(wanted.it_value) + (int64_t)now_of(posix[slot].clock));
    did("timer_settime(%d, %#x, %lld, %lld) = %ld", posix[slot].number, (unsigned)flags,
        (long long)of_time(wanted.it_value), (long long)of_time(wanted.it_interval),
        syscall(SYS_timer_settime, posix[slot].number, flags, &wanted, NULL));
}

/* Signal, value and clock of each timer, in whatever order the kernel lists them (proc_pid_timers(5)). */
static void observe_listed(struct report *report) {
    FILE *file = fopen("/proc/self/timers", "re");
    char line[200], key[128];
    int number = -1;
    while (file && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "ID: %d", &number) == 1 || !strchr(line, ':'))
            continue;
        snprintf(key, sizeof(key), "timer %d %.*s", number, (int)strcspn(line, ":"), line);
        say(report, key, "%s", strchr(line, ':') + 1);
    }
    if (file)
        fclose(file);
}

static void observe_posix(struct report *report) {
    observe_listed(report);
    for (size_t i = 0; i < TIMERS; i++) {
        char key[64];
        struct itimerspec seen;
        if (!posix[i].made)
            continue;
        snprintf(key, sizeof(key), "timer %d", posix[i].number);
        int64_t now;
        long result;
        unsigned tries = 0;
        do {
            now = (int64_t)now_of(posix[i].clock);
            result = syscall(SYS_timer_gettime, posix[i].number, &seen);
        } while (was_busy(now, posix[i].clock, &tries));
        if (result != 0) {
            say(report, key, "%s", strerror(errno));
            continue;
        }
        say(report, key, "every %lld overrun %ld", (long long)of_time(seen.it_interval),
            syscall(SYS_timer_getoverrun, posix[i].number));
        snprintf(key, sizeof(key), "timer %d due", posix[i].number);
        if (of_time(seen.it_value) == 0)
            say(report, key, "never");
        else if (posix[i].clock == CLOCK_PROCESS_CPUTIME_ID) /* of which observing takes some */
            say_near(report, key, of_time(seen.it_value), SECOND, TICK);
        else
            say_near(report, key, now + of_time(seen.it_value), EARLY, LATE);
    }
}

static void change_interval(struct draw *from) {
    int kind = (int)draw(from, 3);
    int64_t value = draw_far(from), interval = draw(from, 2) ? draw_far(from) : 0;
    struct itimerval wanted = {{interval / SECOND, interval % SECOND / 1000},
                               {value / SECOND, value % SECOND / 1000}};
    if (draw(from, 4) == 0)
        memset(&wanted, 0, sizeof(wanted));
    did("setitimer(%d, %ld, %ld) = %d", kind, (long)wanted.it_value.tv_sec, (long)wanted.it_interval.tv_sec,
        setitimer((__itimer_which_t)kind, &wanted, NULL));
}

static void observe_interval(struct report *report) {
    for (int kind = 0; kind < 3; kind++) {
        char key[64];
        struct itimerval seen;
        int64_t now;
        unsigned tries = 0;
        do {
            now = (int64_t)now_of(CLOCK_MONOTONIC);
            getitimer((__itimer_which_t)kind, &seen);
        } while (was_busy(now, CLOCK_MONOTONIC, &tries));
        snprintf(key, sizeof(key), "itimer %d", kind);
        say(report, key, "every %ld.%06ld", (long)seen.it_interval.tv_sec, (long)seen.it_interval.tv_usec);
        snprintf(key, sizeof(key), "itimer %d due", kind);
        int64_t left = seen.it_value.tv_sec * SECOND + seen.it_value.tv_usec * 1000;
        if (left == 0)
            say(report, key, "never");
        else /* the others count processor time, of which observing takes some */
            say_near(report, key, kind == 0 ? now + left : left, kind == 0 ? EARLY : SECOND,
                     kind == 0 ? LATE : TICK);
    }
}

/* --- timerfds: in a model, for those that are due soon --- */

static struct {
    int descriptor, clock;
    int64_t due, interval;
    bool armed, soon;
} by_descriptor[TIMERS];

static void change_timerfd(struct draw *from) {
    static const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    size_t slot = draw(from, TIMERS);
    int number = FIRST_DESCRIPTOR + DESCRIPTORS + (int)slot;
    if (!by_descriptor[slot].descriptor || draw(from, 6) == 0) {
        by_descriptor[slot].clock = DRAW_OF(from, clocks);
        int flags = TFD_NONBLOCK | (draw(from, 2) ? TFD_CLOEXEC : 0);
        put_descriptor(timerfd_create(by_descriptor[slot].clock, flags), number);
        by_descriptor[slot].descriptor = number;
        by_descriptor[slot].armed = false;
        did("timerfd_create(%d) = %d", by_descriptor[slot].clock, number);
        return;
    }
    bool soon = draw(from, 2);
    int64_t left = soon ? (int64_t)draw(from, SECOND) : draw_far(from), interval = 0;
    if (!soon && draw(from, 2))
        interval = draw_far(from);
    bool absolute = draw(from, 3) == 0;
    int64_t now = (int64_t)now_of(by_descriptor[slot].clock);
    struct itimerspec wanted = {.it_value = time_of(absolute ? now + left : left),
                                .it_interval = time_of(interval)};
    int flags = absolute ? TFD_TIMER_ABSTIME | (draw(from, 2) ? TFD_TIMER_CANCEL_ON_SET : 0) : 0;
    int result = timerfd_settime(number, flags, &wanted, NULL);
    did("timerfd_settime(%d, %#x, %lld, %lld) = %d", number, (unsigned)flags, (long long)left,
        (long long)interval, result);
    by_descriptor[slot].armed = left != 0;
    by_descriptor[slot].soon = soon;
    by_descriptor[slot].due = now + left;
    by_descriptor[slot].interval = interval;
}

/* What must be true of a one-shot timer that may have run out: after its time there is one expiration, before it none. */
static void observe_soon(struct report *report, size_t slot, const char *key) {
    struct itimerspec seen = {0};
    char path[64], text[512] = {0};
    int64_t before = (int64_t)now_of(by_descriptor[slot].clock);
    timerfd_gettime(by_descriptor[slot].descriptor, &seen);
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", by_descriptor[slot].descriptor);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = read(file, text, sizeof(text) - 1);
    close(file);
    int64_t after = (int64_t)now_of(by_descriptor[slot].clock), due = by_descriptor[slot].due;
    const char *ticks = length > 0 ? strstr(text, "ticks: ") : NULL;
    bool expired = ticks && strncmp(ticks, "ticks: 1\n", 9) == 0;
    bool none = ticks && strncmp(ticks, "ticks: 0\n", 9) == 0;
    bool right = before > due + LATE   ? expired && of_time(seen.it_value) == 0
                 : after < due - EARLY ? none && of_time(seen.it_value) > 0
                                       : expired || none;
    if (right)
        say(report, key, "as it must be");
    else
        say(report, key, "due %lld, now %lld, left %lld, %.*s", (long long)due, (long long)before,
            (long long)of_time(seen.it_value), ticks ? (int)strcspn(ticks, "\n") : 0, ticks ? ticks : "");
}

static void observe_timerfd(struct report *report) {
    static const char *const words[] = {"flags:", "clockid:", "it_interval:", NULL};
    for (size_t i = 0; i < TIMERS; i++) {
        char key[64], path[64];
        struct itimerspec seen = {0};
        if (!by_descriptor[i].descriptor)
            continue;
        snprintf(key, sizeof(key), "timerfd %zu", i);
        snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", by_descriptor[i].descriptor);
        say_lines(report, key, path, words);
        snprintf(key, sizeof(key), "timerfd %zu due", i);
        if (by_descriptor[i].armed && by_descriptor[i].soon) {
            observe_soon(report, i, key);
            continue;
        }
        int64_t now;
        unsigned tries = 0;
        do {
            now = (int64_t)now_of(by_descriptor[i].clock);
            timerfd_gettime(by_descriptor[i].descriptor, &seen);
        } while (was_busy(now, by_descriptor[i].clock, &tries));
        if (of_time(seen.it_value) == 0)
            say(report, key, "never");
        else
            say_near(report, key, now + of_time(seen.it_value), EARLY, LATE);
    }
}

static const struct aspect posix_timers = {"timer", false, change_posix, observe_posix};
static const struct aspect interval_timers = {"itimer", false, change_interval, observe_interval};
static const struct aspect timer_descriptors = {"timerfd", false, change_timerfd, observe_timerfd};

const struct aspect *const timer_aspects[] = {&posix_timers, &interval_timers, &timer_descriptors, NULL};
