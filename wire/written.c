#define _GNU_SOURCE
#include "wire/written.h"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { READS_BOUND = 100 };

static int bytes_acknowledged(int socket, uint64_t *count) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;

    if (getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) != 0)
        return -errno;
    *count = info.tcpi_bytes_acked;
    return 0;
}

int lm_bytes_written(int socket, uint64_t *count) {
    /* Bytes move from queued to acknowledged between the two readings: read until nothing did. */
    for (int reads = 0; reads < READS_BOUND; reads++) {
        uint64_t before = 0, after = 0;
        int queued = 0;
        int error = bytes_acknowledged(socket, &before);

        if (error == 0 && ioctl(socket, SIOCOUTQ, &queued) != 0)
            error = -errno;
        if (error == 0)
            error = bytes_acknowledged(socket, &after);
        if (error != 0)
            return error;
        if (before == after) {
            *count = before + (uint64_t)queued;
            return 0;
        }
    }
    return -EAGAIN;
}
