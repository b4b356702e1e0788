/*
 * feature: a directory of /proc that is one process's
 * refused: belongs to one process
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    int directory = SYS(open("/proc/self/task", O_RDONLY | O_DIRECTORY));
    check_move();
    SYS(faccessat(directory, ".", R_OK, 0));
    return check_passed();
}
