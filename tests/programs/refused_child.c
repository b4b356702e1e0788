/*
 * feature: a living child
 * refused: child
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    pid_t child = SYS(fork());
    if (child == 0)
        for (;;)
            pause();
    check_move();
    SYS(kill(child, SIGKILL));
    CHECK(waitpid(child, NULL, 0) == child, "the child is gone");
    return check_passed();
}
