#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "process/descriptors/socket_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void close_descriptor(const int *number) {
    if (*number >= 0)
        close(*number);
}

#define CLOSED_AT_END __attribute__((cleanup(close_descriptor)))

static void read_attributes(struct unix_diag_msg *message, unsigned int length,
                            struct lm_unix_socket *found) {
    struct rtattr *attribute = (struct rtattr *)(message + 1);

    for (; RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
        if (attribute->rta_type == UNIX_DIAG_PEER) {
            memcpy(&found->peer, RTA_DATA(attribute), sizeof(found->peer));
            found->has_peer = 1;
        } else if (attribute->rta_type == UNIX_DIAG_RQLEN) {
            struct unix_diag_rqlen lengths;

            memcpy(&lengths, RTA_DATA(attribute), sizeof(lengths));
            found->queued = lengths.udiag_rqueue;
            found->backlog = lengths.udiag_wqueue;
        } else if (attribute->rta_type == UNIX_DIAG_SHUTDOWN) {
            found->shutdown = *(unsigned char *)RTA_DATA(attribute);
        }
    }
}

int lm_diag_unix(int diag, unsigned int inode, struct lm_unix_socket *found) {
    struct {
        struct nlmsghdr header;
        struct unix_diag_req request;
    } question = {
        .header = {.nlmsg_len = sizeof(question),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .request = {.sdiag_family = AF_UNIX,
                    .udiag_states = UINT32_MAX,
                    .udiag_ino = inode,
                    .udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN,
                    .udiag_cookie = {UINT32_MAX, UINT32_MAX}},
    };
    union {
        struct nlmsghdr header;
        char room[4096];
    } answer;
    ssize_t length;

    if (send(diag, &question, sizeof(question), 0) < 0)
        return -errno;
    length = recv(diag, &answer, sizeof(answer), 0);
    if (length < 0)
        return -errno;
    if (!NLMSG_OK(&answer.header, length))
        return -EPROTO;
    if (answer.header.nlmsg_type == NLMSG_ERROR)
        return ((struct nlmsgerr *)NLMSG_DATA(&answer.header))->error;
    struct unix_diag_msg *message = NLMSG_DATA(&answer.header);
    *found = (struct lm_unix_socket){.state = message->udiag_state};
    read_attributes(message, (unsigned int)NLMSG_PAYLOAD(&answer.header, sizeof(*message)), found);
    return 0;
}

/* A connection that has ended was shut in both directions by that. */
static int how_it_ended(int number) {
    struct pollfd polled = {.fd = number, .events = POLLRDHUP};
    int unread = 0;

    if (poll(&polled, 1, 0) < 0 || ioctl(number, SIOCINQ, &unread) != 0)
        return -errno;
    if (polled.revents & POLLERR || unread > 0)
        return LM_TCP_HAS_UNREAD;
    return polled.revents & POLLRDHUP ? LM_TCP_HAS_ENDED : 0;
}

int lm_tcp_state(int number, struct lm_tcp_state *state) {
    struct tcp_info info = {0};
    socklen_t length = sizeof(info);
    int ended = 0;

    if (getsockopt(number, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
        return -errno;
    if (info.tcpi_state == TCP_CLOSE && (ended = how_it_ended(number)) < 0)
        return ended;
    /* tcp_get_info() of net/ipv4/tcp.c: for a listener these two are its queue. */
    *state = (struct lm_tcp_state){
        .state = info.tcpi_state, .waiting = info.tcpi_unacked, .backlog = info.tcpi_sacked, .ended = ended};
    return 0;
}

static int bring_loopback_up(void) {
    CLOSED_AT_END int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};

    if (control < 0 || ioctl(control, SIOCSIFFLAGS, &request) < 0)
        return -errno;
    return 0;
}

static int connect_and_close(int family) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in address4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr *where = family == AF_INET ? (struct sockaddr *)&address4 : (struct sockaddr *)&address;
    socklen_t length = family == AF_INET ? sizeof(address4) : sizeof(address);
    CLOSED_AT_END int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CLOSED_AT_END int accepted = -1;
    int kept = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (listener < 0 || kept < 0 || bind(listener, where, length) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, where, &length) < 0 || connect(kept, where, length) < 0) {
        int error = -errno;

        close_descriptor(&kept);
        return error;
    }
    accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (accepted >= 0)
        shutdown(accepted, SHUT_RDWR);
    shutdown(kept, SHUT_RDWR);
    return kept;
}

int lm_closed_tcp_socket(int family) {
    CLOSED_AT_END int own = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    int result;

    if (own < 0 || unshare(CLONE_NEWNET) < 0)
        return -errno;
    result = bring_loopback_up();
    if (result == 0)
        result = connect_and_close(family);
    if (setns(own, CLONE_NEWNET) < 0) {
        int error = -errno;

        close_descriptor(&result);
        return error;
    }
    return result;
}

int lm_interface_name(int number, unsigned int interface, char *name) {
    struct ifreq request = {.ifr_ifindex = (int)interface};

    if (ioctl(number, SIOCGIFNAME, &request) != 0)
        return -errno;
    memcpy(name, request.ifr_name, IFNAMSIZ);
    name[IFNAMSIZ - 1] = 0;
    return 0;
}

int lm_unsent(int number) {
    int bytes = 0;

    return ioctl(number, SIOCOUTQ, &bytes) == 0 ? bytes : -errno;
}
