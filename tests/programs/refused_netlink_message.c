/*
 * feature: a netlink socket in which a message of the kernel's waits
 * refused: message
 */
#include "check.h"
#include <linux/netlink.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    struct nlmsghdr wrong = {sizeof(wrong), 0x7ff, NLM_F_REQUEST | NLM_F_ACK, 1, 0};
    char answer[4096];
    check_start(argc, argv);
    int route = SYS(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    CHECK(SYS(send(route, &wrong, sizeof(wrong), 0)) == sizeof(wrong), "send");
    check_move();
    CHECK(SYS(recv(route, answer, sizeof(answer), 0)) > 0, "the answer is gone");
    return check_passed();
}
