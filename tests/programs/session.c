/*
 * feature: process group and session, for a process that leads its session
 * limits: for one that does not lead its session, group and session are the destination's
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    if (getsid(0) != getpid())
        SYS(setsid());
    pid_t id = getpid();
    check_move();
    CHECK(getpid() == id, "process %d, was %d", getpid(), id);
    CHECK(getsid(0) == id && getpgrp() == id, "session %d, group %d, was %d", getsid(0), getpgrp(), id);
    return check_passed();
}
