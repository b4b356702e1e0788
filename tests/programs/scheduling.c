/*
 * feature: nice value, scheduling policy, affinity, I/O priority and timer slack of every thread
 */
#include "check.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static volatile pid_t ids[4];
static volatile bool check, end;
static volatile int checked;

struct wanted {
    int nice, policy, priority, io, slack;
    bool one_processor;
};

static const struct wanted wanted[3] = {
    {5, SCHED_OTHER, 0, 2 << 13 | 6, 70000, true},
    {-3, SCHED_BATCH, 0, 3 << 13, 50000, false},
    {4, SCHED_FIFO, 7, 2 << 13 | 1, 60000, false},
};

/* struct sched_attr, which the C library lacks. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static void *deadline_body(void *unused) {
    const struct attributes given = {
        sizeof given, 6 /* SCHED_DEADLINE */, 1 /* SCHED_FLAG_RESET_ON_FORK */, 0, 0, 1000000, 20000000,
        30000000};
    struct attributes found;
    SYS(syscall(SYS_sched_setattr, 0, &given, 0));
    ids[3] = gettid();
    while (!check)
        check_sleep(5);
    SYS(syscall(SYS_sched_getattr, 0, &found, sizeof found, 0));
    CHECK(memcmp(&found, &given, sizeof found) == 0,
          "policy %u, flags %#llx, runtime %llu, deadline %llu, period %llu", found.policy,
          (unsigned long long)found.flags, (unsigned long long)found.runtime,
          (unsigned long long)found.deadline, (unsigned long long)found.period);
    return unused;
}

static void *body(void *argument) {
    const struct wanted *self = argument;
    struct sched_param parameter = {self->priority};
    cpu_set_t all, set;
    SYS(sched_getaffinity(0, sizeof(all), &all));
    set = all;
    if (self->one_processor) {
        int last = CPU_SETSIZE - 1;
        while (!CPU_ISSET(last, &all))
            last--;
        CPU_ZERO(&set);
        CPU_SET(last, &set);
    }
    SYS(sched_setaffinity(0, sizeof(set), &set));
    SYS(sched_setscheduler(0, self->policy, &parameter));
    SYS(setpriority(PRIO_PROCESS, 0, self->nice));
    SYS(syscall(SYS_ioprio_set, 1, 0, self->io));
    SYS(prctl(PR_SET_TIMERSLACK, (unsigned long)self->slack));
    int slack = prctl(PR_GET_TIMERSLACK);
    ids[self - wanted] = gettid();
    while (!check)
        check_sleep(5);
    cpu_set_t now;
    SYS(sched_getaffinity(0, sizeof(now), &now));
    CHECK(CPU_EQUAL(&now, &set), "thread %d: its affinity changed", gettid());
    CHECK(SYS(sched_getscheduler(0)) == self->policy, "its policy is %d", sched_getscheduler(0));
    SYS(sched_getparam(0, &parameter));
    CHECK(parameter.sched_priority == self->priority, "its priority is %d", parameter.sched_priority);
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, 0);
    CHECK(nice == self->nice && errno == 0, "its nice value is %d, was %d", nice, self->nice);
    CHECK(SYS(syscall(SYS_ioprio_get, 1, 0)) == self->io, "its I/O priority is %#lx",
          syscall(SYS_ioprio_get, 1, 0));
    CHECK(prctl(PR_GET_TIMERSLACK) == slack, "its timer slack is %d, was %d", prctl(PR_GET_TIMERSLACK),
          slack);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[4];
    int nice = getpriority(PRIO_PROCESS, 0);
    check_start(argc, argv);
    for (int i = 0; i < 3; i++) {
        threads[i] = check_thread(body, (void *)&wanted[i]);
        while (!ids[i])
            check_sleep(1);
    }
    threads[3] = check_thread(deadline_body, NULL);
    while (!ids[3])
        check_sleep(1);
    check_move();
    check = true;
    for (int i = 0; i < 4; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    CHECK(getpriority(PRIO_PROCESS, 0) == nice, "the first thread's nice value changed");
    return check_passed();
}
