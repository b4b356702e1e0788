/*
 * feature: a pipe that another process holds too
 * refused: pipe
 */
#include "check.h"

int main(int argc, char **argv) {
    int ends[2];
    check_start(argc, argv);
    SYS(pipe(ends));
    /* A grandchild, so that it is not our child; it ends when it sees that we were moved. */
    pid_t child = SYS(fork());
    if (child == 0) {
        if (fork() == 0) {
            check_wait_moved();
            check_write(ends[1], "from outside", 12);
        }
        _exit(0);
    }
    SYS(waitpid(child, NULL, 0));
    check_move();
    check_expect(ends[0], "from outside", 12);
    return check_passed();
}
