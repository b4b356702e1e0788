/*
 * feature: a lease on a file (F_SETLEASE)
 * refused: LEASE
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    close(SYS(open(check_path("leased"), O_WRONLY | O_CREAT, 0600)));
    int file = SYS(open(check_path("leased"), O_RDONLY));
    SYS(fcntl(file, F_SETLEASE, F_RDLCK));
    check_move();
    CHECK(SYS(fcntl(file, F_GETLEASE)) == F_RDLCK, "the lease is gone");
    return check_passed();
}
