/*
 * feature: filters of sockets (SO_ATTACH_FILTER), locked ones too (SO_LOCK_FILTER)
 */
#include "check.h"
#include <linux/filter.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    /* Messages whose first byte is 'a' pass. */
    struct sock_filter instructions[] = {{BPF_LD | BPF_B | BPF_ABS, 0, 0, 0},
                                         {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 'a'},
                                         {BPF_RET | BPF_K, 0, 0, 0xffff},
                                         {BPF_RET | BPF_K, 0, 0, 0}};
    struct sock_fprog program = {.len = COUNT(instructions), .filter = instructions};
    struct sock_filter found[COUNT(instructions)];
    int pair[2], locked = 0;
    char text[8] = "";
    socklen_t count = COUNT(found), length = sizeof(locked);
    check_start(argc, argv);
    SYS(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair));
    check_write(pair[0], "before", 6);
    SYS(setsockopt(pair[1], SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)));
    SYS(setsockopt(pair[1], SOL_SOCKET, SO_LOCK_FILTER, &(int){1}, sizeof(int)));
    check_move();
    CHECK(recv(pair[1], text, 8, 0) == 6 && memcmp(text, "before", 6) == 0, "what waited is gone");
    SYS(getsockopt(pair[1], SOL_SOCKET, SO_GET_FILTER, found, &count));
    CHECK(count == COUNT(found) && memcmp(found, instructions, sizeof(found)) == 0, "another filter");
    SYS(getsockopt(pair[1], SOL_SOCKET, SO_LOCK_FILTER, &locked, &length));
    CHECK(locked == 1, "the filter is not locked");
    SYS(write(pair[0], "bad", 3));
    check_write(pair[0], "all", 3);
    CHECK(recv(pair[1], text, 8, 0) == 3 && memcmp(text, "all", 3) == 0, "it does not filter");
    return check_passed();
}
