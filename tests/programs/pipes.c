/*
 * feature: pipes inside the process, with the data in them, their sizes and modes
 */
#include "check.h"
#include <sys/ioctl.h>

int main(int argc, char **argv) {
    static char block[40000], found[40000];
    int full[2], packets[2], empty[2], half[2];
    check_start(argc, argv);
    SYS(pipe2(full, O_NONBLOCK | O_CLOEXEC));
    SYS(pipe2(packets, O_DIRECT));
    SYS(pipe(empty));
    SYS(pipe(half));
    int size = SYS(fcntl(full[1], F_SETPIPE_SZ, 131072));
    for (size_t i = 0; i < sizeof(block); i++)
        block[i] = (char)check_tag(i, 1);
    check_write(full[1], block, sizeof(block));
    check_write(packets[1], "one", 3);
    check_write(packets[1], "three", 5);
    check_write(half[1], "left over", 9);
    close(half[1]);
    int copy = SYS(dup(empty[1]));
    check_move();
    CHECK(SYS(fcntl(full[0], F_GETPIPE_SZ)) == size, "its size is %d, was %d", fcntl(full[0], F_GETPIPE_SZ),
          size);
    CHECK(SYS(fcntl(full[0], F_GETFL)) & O_NONBLOCK && SYS(fcntl(full[0], F_GETFD)) == FD_CLOEXEC,
          "flags changed");
    size_t used = 0;
    for (ssize_t got; used < sizeof(found) && (got = read(full[0], found + used, sizeof(found) - used)) > 0;)
        used += (size_t)got;
    CHECK(used == sizeof(block) && memcmp(found, block, used) == 0, "its data changed, %zu bytes", used);
    CHECK(read(full[0], found, 1) == -1 && errno == EAGAIN, "there is more data than was written");
    CHECK(SYS(read(packets[0], found, 100)) == 3 && memcmp(found, "one", 3) == 0, "a packet changed");
    CHECK(SYS(read(packets[0], found, 100)) == 5 && memcmp(found, "three", 5) == 0, "a packet changed");
    check_write(copy, "x", 1);
    close(copy);
    close(empty[1]);
    check_expect(empty[0], "x", 1);
    CHECK(SYS(read(empty[0], found, 1)) == 0, "no end of file: somebody else holds the pipe");
    check_expect(half[0], "left over", 9);
    CHECK(SYS(read(half[0], found, 1)) == 0, "no end of file");
    SYS(signal(SIGPIPE, SIG_IGN) == SIG_ERR ? -1 : 0);
    close(packets[0]);
    CHECK(write(packets[1], "x", 1) == -1 && errno == EPIPE, "somebody else holds the pipe's reading end");
    return check_passed();
}
