/*
 * feature: a process that has as many descriptors open as it may (RLIMIT_NOFILE)
 * limits: its writes are not tracked, for that takes a descriptor for a moment: rounds copy nothing
 * untracked: one descriptor more would be needed
 */
#include "check.h"
#include <sys/eventfd.h>
#include <sys/resource.h>

int main(int argc, char **argv) {
    struct rlimit before, limit;
    uint64_t count = 0;
    int made = -1, last = -1;

    check_start(argc, argv);
    SYS(getrlimit(RLIMIT_NOFILE, &before));
    check_ready();
    limit = before;
    limit.rlim_cur = 64;
    SYS(setrlimit(RLIMIT_NOFILE, &limit));
    while ((made = eventfd(7, 0)) >= 0)
        last = made;
    CHECK(errno == EMFILE && last >= 0, "the last descriptor is %d: %s", last, strerror(errno));
    check_wait_moved();
    CHECK(eventfd(0, 0) == -1 && errno == EMFILE, "there is room for another descriptor");
    SYS(read(last, &count, sizeof count));
    CHECK(count == 7, "the last descriptor counts %llu", (unsigned long long)count);
    SYS(setrlimit(RLIMIT_NOFILE, &before));
    return check_passed();
}
