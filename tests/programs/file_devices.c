/*
 * feature: character devices: /dev/null, /dev/zero, /dev/full, /dev/urandom
 */
#include "check.h"

int main(int argc, char **argv) {
    char buffer[16];
    check_start(argc, argv);
    int null = SYS(open("/dev/null", O_RDWR)), zero = SYS(open("/dev/zero", O_RDONLY | O_CLOEXEC)),
        full = SYS(open("/dev/full", O_WRONLY)), random = SYS(open("/dev/urandom", O_RDONLY));
    char *zeros = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
    CHECK(zeros != MAP_FAILED, "mmap: %s", strerror(errno));
    check_fill(zeros, PAGE, 1);
    check_move();
    CHECK(SYS(read(null, buffer, 16)) == 0 && SYS(write(null, buffer, 16)) == 16, "/dev/null");
    memset(buffer, 1, sizeof(buffer));
    CHECK(SYS(read(zero, buffer, 16)) == 16 && buffer[0] == 0 && buffer[15] == 0, "/dev/zero");
    CHECK(write(full, buffer, 16) == -1 && errno == ENOSPC, "/dev/full");
    CHECK(SYS(read(random, buffer, 16)) == 16, "/dev/urandom");
    CHECK(SYS(fcntl(zero, F_GETFD)) == FD_CLOEXEC, "close-on-exec changed");
    check_filled("/dev/zero, mapped and written", zeros, PAGE, 1);
    check_zero("/dev/zero, mapped", zeros + PAGE, 3 * PAGE);
    return check_passed();
}
