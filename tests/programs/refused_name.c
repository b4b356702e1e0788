/*
 * feature: an open file whose name is not UTF-8
 * refused: is not UTF-8
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    int file = SYS(open(check_path("name \xff"), O_RDWR | O_CREAT, 0600));
    check_write(file, "content", 7);
    check_move();
    SYS(lseek(file, 0, SEEK_SET));
    check_expect(file, "content", 7);
    return check_passed();
}
