/*
 * feature: a pseudoterminal, also one whose both ends the process has
 * refused: ptmx
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    int master = SYS(posix_openpt(O_RDWR | O_NOCTTY));
    SYS(grantpt(master));
    SYS(unlockpt(master));
    int slave = SYS(open(ptsname(master), O_RDWR | O_NOCTTY));
    check_move();
    check_write(slave, "hello", 5);
    check_expect(master, "hello", 5);
    return check_passed();
}
