#include "kernel/tracing/never_restarted.h"

#include <sys/syscall.h>

int lm_never_restarted(int64_t number) {
    switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_rt_sigtimedwait:
    case SYS_io_getevents:
        return 1;
    /* On a socket with SO_RCVTIMEO or SO_SNDTIMEO (net/core/sock.c, sock_intr_errno): every call that waits in
     * one, those that read and write any file included. With a part of the data done they return its length. */
    case SYS_read:
    case SYS_readv:
    case SYS_preadv2:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_accept:
    case SYS_accept4:
    case SYS_connect:
    case SYS_write:
    case SYS_writev:
    case SYS_pwritev2:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_sendfile:
    case SYS_splice:
        return 1;
    default:
        return 0;
    }
}
