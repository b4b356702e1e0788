/*
 * feature: a userfaultfd of its own
 * refused: userfault
 */
#include "check.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

int main(int argc, char **argv) {
    struct uffdio_api api = {.api = UFFD_API};
    check_start(argc, argv);
    int file = SYS((int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
    SYS(ioctl(file, UFFDIO_API, &api));
    check_move();
    return check_passed();
}
