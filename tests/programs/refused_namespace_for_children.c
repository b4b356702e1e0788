/*
 * feature: a process whose children are to live in another namespace than it does (unshare(2) with CLONE_NEWPID or CLONE_NEWTIME)
 * refused: pid namespace
 */
#include "check.h"
#include <sched.h>

int main(int argc, char **argv) {
    int status;

    check_start(argc, argv);
    SYS(unshare(CLONE_NEWPID));
    check_move();
    pid_t child = SYS(fork());
    if (child == 0)
        _exit(getpid() == 1 ? 0 : 1);
    SYS(waitpid(child, &status, 0));
    CHECK(status == 0, "the child is not the first of its namespace: %#x", status);
    return check_passed();
}
