/*
 * feature: epoll_wait and epoll_pwait2 without a timeout, and recv with SO_RCVTIMEO
 * limits: a timeout of recv begins anew after the move
 */
#include "check.h"
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>

static int pairs[3][2], poller[2];
static volatile pid_t ids[3];

static void *wait_by(void *argument) {
    uintptr_t way = (uintptr_t)argument;
    struct epoll_event event = {0};
    char byte = 0;
    ids[way] = gettid();
    if (way == 0) {
        int answer = epoll_wait(poller[0], &event, 1, -1);
        CHECK(answer == 1 && event.data.u64 == 100, "epoll_wait: %d %s", answer, strerror(errno));
    } else if (way == 1) {
        struct timespec limit = {100, 0};
        int answer = epoll_pwait2(poller[1], &event, 1, &limit, NULL);
        CHECK(answer == 1 && event.data.u64 == 101, "epoll_pwait2: %d %s", answer, strerror(errno));
    } else {
        ssize_t answer = recv(pairs[2][0], &byte, 1, 0);
        CHECK(answer == 1 && byte == 'x', "recv: %zd %s", answer, strerror(errno));
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[3];
    check_start(argc, argv);
    for (uintptr_t way = 0; way < 3; way++) {
        SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[way]));
        if (way < 2) {
            poller[way] = SYS(epoll_create1(EPOLL_CLOEXEC));
            struct epoll_event event = {.events = EPOLLIN, .data.u64 = 100 + way};
            SYS(epoll_ctl(poller[way], EPOLL_CTL_ADD, pairs[way][0], &event));
        } else {
            struct timeval limit = {100, 0};
            SYS(setsockopt(pairs[way][0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
        }
        threads[way] = check_thread(wait_by, (void *)way);
        while (!ids[way])
            check_sleep(1);
        check_wait_asleep(ids[way]);
    }
    check_move();
    check_sleep(100);
    for (int way = 0; way < 3; way++) {
        check_write(pairs[way][1], "x", 1);
        PTHREAD(pthread_join(threads[way], NULL));
    }
    return check_passed();
}
