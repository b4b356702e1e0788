/*
 * feature: resource limits
 * limits: a limit above the destination's own needs CAP_SYS_RESOURCE there
 */
#include "check.h"
#include <sys/resource.h>

int main(int argc, char **argv) {
    struct rlimit before[RLIM_NLIMITS], now;
    check_start(argc, argv);
    for (int i = 0; i < (int)RLIM_NLIMITS; i++)
        SYS(getrlimit(i, &before[i]));
    before[RLIMIT_NOFILE] = (struct rlimit){200, 300};
    before[RLIMIT_CORE] = (struct rlimit){0, 1 << 20};
    before[RLIMIT_STACK].rlim_cur = 4 << 20;
    before[RLIMIT_MSGQUEUE].rlim_cur = 1000;
    before[RLIMIT_FSIZE].rlim_cur = 1 << 30;
    for (int i = 0; i < (int)RLIM_NLIMITS; i++)
        SYS(setrlimit(i, &before[i]));
    check_move();
    for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
        SYS(getrlimit(i, &now));
        CHECK(memcmp(&now, &before[i], sizeof(now)) == 0, "limit %d is %ld/%ld, was %ld/%ld", i,
              (long)now.rlim_cur, (long)now.rlim_max, (long)before[i].rlim_cur, (long)before[i].rlim_max);
    }
    return check_passed();
}
