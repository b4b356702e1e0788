/*
 * feature: a descriptor on its way through a socket (SCM_RIGHTS)
 * refused: descriptor
 */
#include "check.h"
#include <sys/socket.h>

int main(int argc, char **argv) {
    int pair[2], file;
    char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    check_start(argc, argv);
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    file = SYS(open("/dev/null", O_RDWR));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &file, sizeof(int));
    CHECK(SYS(sendmsg(pair[0], &message, 0)) == 1, "sendmsg");
    check_move();
    message.msg_controllen = sizeof(control);
    CHECK(SYS(recvmsg(pair[1], &message, 0)) == 1, "recvmsg");
    memcpy(&file, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    CHECK(SYS(write(file, "x", 1)) == 1, "the descriptor does not work");
    return check_passed();
}
