/*
 * feature: POSIX AIO of the kernel (io_setup)
 * refused: AIO
 */
#include "check.h"
#include <linux/aio_abi.h>

int main(int argc, char **argv) {
    aio_context_t context = 0;
    check_start(argc, argv);
    SYS(syscall(SYS_io_setup, 4, &context));
    check_move();
    SYS(syscall(SYS_io_destroy, context));
    return check_passed();
}
