/*
 * feature: io_uring
 * refused: io_uring
 */
#include "check.h"
#include <linux/io_uring.h>

int main(int argc, char **argv) {
    struct io_uring_params parameters = {0};
    check_start(argc, argv);
    int ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
    CHECK(ring >= 0 || errno == ENOSYS || errno == EPERM, "io_uring_setup: %s", strerror(errno));
    check_move();
    return check_passed();
}
