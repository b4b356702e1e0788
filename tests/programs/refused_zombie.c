/*
 * feature: a child that has ended and was not waited for
 * refused: child
 */
#include "check.h"

int main(int argc, char **argv) {
    int status;
    check_start(argc, argv);
    pid_t child = SYS(fork());
    if (child == 0)
        _exit(9);
    check_sleep(50);
    check_move();
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 9, "the child's status is gone");
    return check_passed();
}
