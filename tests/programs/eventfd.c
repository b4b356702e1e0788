/*
 * feature: eventfd, its counter and modes
 */
#include "check.h"
#include <sys/eventfd.h>

int main(int argc, char **argv) {
    uint64_t value;
    check_start(argc, argv);
    int counter = SYS(eventfd(1000000, EFD_CLOEXEC)),
        semaphore = SYS(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK)), zero = SYS(eventfd(0, EFD_NONBLOCK)),
        large = SYS(eventfd(0, 0));
    check_write(large, &(uint64_t){UINT64_MAX - 2}, 8);
    int copy = SYS(dup(counter));
    check_move();
    CHECK(SYS(read(copy, &value, 8)) == 8 && value == 1000000, "the counter is %lu", value);
    for (int i = 0; i < 3; i++)
        CHECK(SYS(read(semaphore, &value, 8)) == 8 && value == 1, "the semaphore gives %lu", value);
    CHECK(read(semaphore, &value, 8) == -1 && errno == EAGAIN, "the semaphore gives too much");
    CHECK(read(zero, &value, 8) == -1 && errno == EAGAIN, "zero can be read");
    CHECK(SYS(read(large, &value, 8)) == 8 && value == UINT64_MAX - 2, "the large one is %lu", value);
    CHECK(SYS(fcntl(counter, F_GETFD)) == FD_CLOEXEC, "close-on-exec changed");
    check_write(counter, &(uint64_t){7}, 8);
    CHECK(SYS(read(copy, &value, 8)) == 8 && value == 7, "duplicates are two counters");
    return check_passed();
}
