/*
 * feature: named pipes that only this process holds, with the data in them
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    SYS(mkfifo(check_path("fifo"), 0600));
    int both = SYS(open(check_path("fifo"), O_RDWR)),
        reading = SYS(open(check_path("fifo"), O_RDONLY | O_NONBLOCK));
    check_write(both, "through a name", 14);
    check_move();
    check_expect(reading, "through a name", 14);
    int writing = SYS(open(check_path("fifo"), O_WRONLY | O_NONBLOCK));
    check_write(writing, "again", 5);
    check_expect(both, "again", 5);
    return check_passed();
}
