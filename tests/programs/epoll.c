/*
 * feature: epoll with its registrations: data, level, edge, one-shot, nested; how it polls devices (EPIOCSPARAMS)
 */
#include "check.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

/* struct epoll_params of linux/eventpoll.h, since Linux 6.9 */
struct parameters {
    uint32_t usecs;
    uint16_t budget;
    uint8_t prefer, unused;
};
#ifndef EPIOCSPARAMS
#define EPIOCSPARAMS _IOW(0x8a, 1, struct parameters)
#define EPIOCGPARAMS _IOR(0x8a, 2, struct parameters)
#endif

static void add(int poller, int file, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    SYS(epoll_ctl(poller, EPOLL_CTL_ADD, file, &event));
}

static void expect_event(int poller, uint32_t events, uint64_t data) {
    struct epoll_event event = {0};
    int count = SYS(epoll_wait(poller, &event, 1, 2000));
    CHECK(count == 1 && event.events == events && event.data.u64 == data,
          "%d events: %#x of %#lx, not %#x of %#lx", count, event.events, event.data.u64, events, data);
}

static void expect_nothing(int poller, const char *name) {
    struct epoll_event event = {0};
    int count = SYS(epoll_wait(poller, &event, 1, 30));
    CHECK(count == 0, "%s: an event %#x of %#lx", name, event.events, event.data.u64);
}

int main(int argc, char **argv) {
    int level[2], edge[2], once[2], inner_pipe[2];
    char byte;
    struct parameters polling = {50, 8, 1, 0};
    check_start(argc, argv);
    int poller = SYS(epoll_create1(EPOLL_CLOEXEC)), edges = SYS(epoll_create1(0)),
        outer = SYS(epoll_create1(0)), inner = SYS(epoll_create1(0)), ones = SYS(epoll_create1(0));
    SYS(pipe(level));
    SYS(pipe(edge));
    SYS(pipe(once));
    SYS(pipe(inner_pipe));
    add(poller, level[0], EPOLLIN, 0x1111222233334444);
    add(edges, edge[0], EPOLLIN | EPOLLET, 5);
    add(ones, once[0], EPOLLIN | EPOLLONESHOT, 6);
    add(inner, inner_pipe[0], EPOLLIN, 7);
    add(outer, inner, EPOLLIN, 8);
    /* Registered by a number that is closed since: the registration belongs to the open file, not to the
     * number. */
    int copy = SYS(dup(level[1]));
    add(poller, copy, EPOLLERR, 9);
    check_write(once[1], "x", 1);
    expect_event(ones, EPOLLIN, 6);
    int event = SYS(eventfd(1, 0));
    add(inner, event, 0, 10);
    bool polls = ioctl(poller, EPIOCSPARAMS, &polling) == 0;
    memset(&polling, 0, sizeof(polling));
    check_move();
    CHECK(SYS(fcntl(poller, F_GETFD)) == FD_CLOEXEC, "close-on-exec changed");
    expect_nothing(poller, "level");
    expect_nothing(ones, "a one-shot that has fired");
    expect_nothing(outer, "nested");
    check_write(level[1], "x", 1);
    expect_event(poller, EPOLLIN, 0x1111222233334444);
    expect_event(poller, EPOLLIN, 0x1111222233334444);
    check_expect(level[0], "x", 1);
    expect_nothing(poller, "level, read empty");
    check_write(edge[1], "x", 1);
    expect_event(edges, EPOLLIN, 5);
    expect_nothing(edges, "an edge that was told");
    struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 60};
    SYS(epoll_ctl(ones, EPOLL_CTL_MOD, once[0], &again));
    expect_event(ones, EPOLLIN, 60);
    check_write(inner_pipe[1], "x", 1);
    expect_event(outer, EPOLLIN, 8);
    expect_event(inner, EPOLLIN, 7);
    SYS(read(inner_pipe[0], &byte, 1));
    CHECK(epoll_ctl(inner, EPOLL_CTL_ADD, event, &again) == -1 && errno == EEXIST, "a registration is gone");
    SYS(epoll_ctl(poller, EPOLL_CTL_DEL, copy, NULL));
    CHECK(!polls ||
              (ioctl(poller, EPIOCGPARAMS, &polling) == 0 && polling.usecs == 50 && polling.budget == 8),
          "it polls devices otherwise");
    return check_passed();
}
