/*
 * feature: seccomp filters that would kill the process for what the move asks of it
 * refused: its filters may kill it for what the move makes in it: capget
 */
#include "filter.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    filter_call(SYS_capget, SECCOMP_RET_KILL_PROCESS, 0);
    check_move();
    return check_passed();
}
