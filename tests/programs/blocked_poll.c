/*
 * feature: poll, ppoll, select and epoll_wait across the move, with and without a timeout, never a spurious
 * EINTR
 * limits: before rounds epoll_wait begins anew with its whole timeout: it is late by that at most, never early
 */
#include "check.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

#define SECONDS 3
#define WAYS 7

static int pipes[WAYS][2], poller[2];
static volatile pid_t ids[WAYS];
static double ended[WAYS];
/* Every other way has a timeout, and ends by it. */
static const bool limited[WAYS] = {false, true, false, true, false, true, false};

static void *wait_by(void *argument) {
    uintptr_t way = (uintptr_t)argument;
    int file = pipes[way][0], answer = -1;
    struct pollfd wait = {.fd = file, .events = POLLIN};
    struct timespec limit = {SECONDS, 0};
    struct timeval tick = {SECONDS, 0};
    struct epoll_event event;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(file, &set);
    ids[way] = gettid();
    switch (way) {
    case 0:
        answer = poll(&wait, 1, -1);
        break;
    case 1:
        answer = poll(&wait, 1, SECONDS * 1000);
        break;
    case 2:
        answer = ppoll(&wait, 1, NULL, NULL);
        break;
    case 3:
        answer = ppoll(&wait, 1, &limit, NULL);
        break;
    case 4:
        answer = epoll_wait(poller[0], &event, 1, -1);
        break;
    case 5:
        answer = epoll_wait(poller[1], &event, 1, SECONDS * 1000);
        break;
    default:
        answer = select(file + 1, &set, NULL, NULL, limited[way] ? &tick : NULL);
    }
    int error = errno;
    ended[way] = check_now(CLOCK_MONOTONIC);
    CHECK(answer == (limited[way] ? 0 : 1), "way %lu answers %d: %s", way, answer, strerror(error));
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[WAYS];
    check_start(argc, argv);
    double begun = check_now(CLOCK_MONOTONIC);
    for (int i = 0; i < 2; i++)
        poller[i] = SYS(epoll_create1(0));
    for (uintptr_t way = 0; way < WAYS; way++) {
        SYS(pipe(pipes[way]));
        if (way == 4 || way == 5)
            SYS(epoll_ctl(poller[way - 4], EPOLL_CTL_ADD, pipes[way][0],
                          &(struct epoll_event){.events = EPOLLIN}));
        threads[way] = check_thread(wait_by, (void *)way);
        while (!ids[way])
            check_sleep(1);
        check_wait_asleep(ids[way]);
    }
    check_sleep(1000);
    check_move();
    double resumed = check_now(CLOCK_MONOTONIC);
    for (int way = 0; way < WAYS; way++) {
        if (!limited[way])
            check_write(pipes[way][1], "x", 1);
        PTHREAD(pthread_join(threads[way], NULL));
        if (!limited[way])
            continue;
        double due = begun + SECONDS > resumed ? begun + SECONDS : resumed;
        /* The kernel has no way to go on with it when the tracking of writes begins: see limits. */
        if (way == 5)
            due += SECONDS - 1;
        CHECK(ended[way] >= begun + SECONDS - 0.05, "way %d ended %.3f s early", way,
              begun + SECONDS - ended[way]);
        CHECK(ended[way] <= due + 1.5, "way %d ended %.3f s late", way, ended[way] - due);
    }
    return check_passed();
}
