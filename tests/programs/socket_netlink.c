/*
 * feature: sockets of netlink(7) for routes, sock_diag(7) and events of the kernel (udev): port, groups, options and filter
 * limits: what happens in the freeze is not told to a socket that listens to groups, and after it the destination's kernel tells; other protocols are refused, and a message that waits
 */
#include "check.h"
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#define GROUP 33 /* RTNLGRP_BRVLAN, to which nothing comes here, and which no mask has room for */
#define UDEV 2   /* what udevd sends, and the kernel does not */

static int open_netlink(int type, int protocol, unsigned mask) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = mask};
    int made = SYS(socket(AF_NETLINK, type | SOCK_CLOEXEC, protocol));
    SYS(bind(made, (struct sockaddr *)&address, sizeof(address)));
    return made;
}

static unsigned port_of(int one) {
    struct sockaddr_nl address;
    socklen_t length = sizeof(address);
    SYS(getsockname(one, (struct sockaddr *)&address, &length));
    return address.nl_pid;
}

static bool listens_to(int one, int group) {
    unsigned words[8] = {0};
    socklen_t length = sizeof(words);
    SYS(getsockopt(one, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &length));
    return words[(group - 1) / 32] >> (group - 1) % 32 & 1;
}

/* All interfaces: the answer ends with NLMSG_DONE. */
static void ask(int one) {
    static char answer[1 << 16];
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } question = {{sizeof(question), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0}, {0}};
    unsigned links = 0;
    CHECK(SYS(send(one, &question, sizeof(question), 0)) == sizeof(question), "send");
    for (bool done = false; !done;) {
        ssize_t length = SYS(recv(one, answer, sizeof(answer), 0));
        for (struct nlmsghdr *at = (struct nlmsghdr *)answer; NLMSG_OK(at, length);
             at = NLMSG_NEXT(at, length)) {
            links += at->nlmsg_type == RTM_NEWLINK;
            done = at->nlmsg_type == NLMSG_DONE || at->nlmsg_type == NLMSG_ERROR;
        }
    }
    CHECK(links > 0, "no interface was told");
}

int main(int argc, char **argv) {
    /* What is as long as "yes" passes; udevd's messages are longer. */
    struct sock_filter code[] = {{BPF_LD | BPF_W | BPF_LEN, 0, 0, 0},
                                 {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 3},
                                 {BPF_RET | BPF_K, 0, 0, 0xffff},
                                 {BPF_RET | BPF_K, 0, 0, 0}};
    struct sock_fprog filter = {4, code};
    struct sockaddr_nl everybody = {.nl_family = AF_NETLINK, .nl_groups = 1 << (UDEV - 1)};
    check_start(argc, argv);
    int route = open_netlink(SOCK_RAW, NETLINK_ROUTE, 0), fresh = SYS(socket(AF_NETLINK, SOCK_DGRAM, 0)),
        events = open_netlink(SOCK_DGRAM, NETLINK_KOBJECT_UEVENT, 1 << (UDEV - 1)),
        sockets = open_netlink(SOCK_RAW, NETLINK_SOCK_DIAG, 0);
    SYS(setsockopt(route, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &(int){GROUP}, sizeof(int)));
    SYS(setsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &(int){1}, sizeof(int)));
    SYS(setsockopt(events, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)));
    SYS(setsockopt(events, SOL_SOCKET, SO_RCVBUF, &(int){100000}, sizeof(int)));
    ask(route);
    unsigned port = port_of(route), other = port_of(sockets);
    CHECK(port != 0 && port_of(fresh) == 0, "ports %u, %u", port, port_of(fresh));
    check_move();
    CHECK(port_of(route) == port && port_of(sockets) == other && port_of(fresh) == 0, "ports %u, %u and %u",
          port_of(route), port_of(sockets), port_of(fresh));
    CHECK(listens_to(route, GROUP) && !listens_to(route, GROUP + 1) && !listens_to(route, 1), "its groups");
    int value = 0;
    socklen_t length = sizeof(value);
    SYS(getsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &value, &length));
    CHECK(value == 1, "NETLINK_EXT_ACK is lost");
    ask(route);
    ask(fresh);
    int sender = open_netlink(SOCK_RAW, NETLINK_KOBJECT_UEVENT, 0);
    /* Nothing listens at the kernel's own port, and the group has it before that is found out. */
    for (int i = 0; i < 2; i++)
        sendto(sender, i ? "yes" : "no", i ? 3 : 2, 0, (struct sockaddr *)&everybody, sizeof(everybody));
    char text[16] = "";
    CHECK(SYS(recv(events, text, sizeof(text), 0)) == 3 && memcmp(text, "yes", 3) == 0, "it got %s", text);
    return check_passed();
}
