#define _GNU_SOURCE
#include "kernel/socket_in.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <sched.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

static void close_descriptor(const int *number) {
    if (*number >= 0)
        close(*number);
}

#define CLOSED_AT_END __attribute__((cleanup(close_descriptor)))

int lm_socket_in(int network, int family, int type, int protocol) {
    CLOSED_AT_END int own = -1;
    int opened;

    if (network >= 0) {
        own = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
        if (own < 0)
            return -errno;
        if (setns(network, CLONE_NEWNET) < 0)
            return -errno;
    }
    opened = socket(family, type | SOCK_CLOEXEC, protocol);
    if (opened < 0)
        opened = -errno;
    if (network >= 0 && setns(own, CLONE_NEWNET) < 0) {
        int error = -errno;

        close_descriptor(&opened);
        return error;
    }
    return opened;
}

int lm_enter_network(int network) {
    return setns(network, CLONE_NEWNET) < 0 ? -errno : 0;
}

int lm_receive_everywhere(int number, int protocol) {
    struct sockaddr_ll where = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons((uint16_t)protocol),
    };

    return bind(number, (struct sockaddr *)&where, sizeof(where)) < 0 ? -errno : 0;
}
