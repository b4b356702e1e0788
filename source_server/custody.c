#define _GNU_SOURCE
#include "source_server/custody.h"

#include "linux/own_memory.h"
#include "wire/written.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { DRAIN_CHUNK = 4096, POLL_US = 10000, DELIVERY_POLLS = 60000, WATCH_MS = 200, DRAIN_MS = 5000 };

int lm_park_decide(int pid, uint64_t flag_address, uint32_t word) {
    struct iovec here = {&word, sizeof word};
    struct iovec there = {(void *)(uintptr_t)flag_address, sizeof word};

    return process_vm_writev(pid, &here, 1, &there, 1, 0) == sizeof word ? 0 : -errno;
}

/* After the FIN that says no: what still comes, READY perhaps, is read until the peer has heard. A socket
 * closed with unread bytes, or a byte that finds it closed, brings a reset, which says nothing and leaves the
 * peer in doubt. */
static void drain(int socket) {
    char bytes[DRAIN_CHUNK];
    struct pollfd arrived = {.fd = socket, .events = POLLIN};

    while (poll(&arrived, 1, DRAIN_MS) == 1 && recv(socket, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

/* Keep the socket until the peer has COMMIT: closed, it would be sent again only while the kernel cares to.
 */
static void see_delivered(int socket) {
    int queued = 1;

    for (int polls = 0; polls < DELIVERY_POLLS && queued > 0; polls++) {
        if (ioctl(socket, SIOCOUTQ, &queued) != 0)
            return;
        if (queued > 0)
            usleep(POLL_US);
    }
}

static uint64_t now_ns(void) {
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Wait for the end of lm-serve; when a freeze lasts beyond its deadline, bring that end about. */
static void watch(const struct lm_custody *custody, int lifeline) {
    struct pollfd end = {.fd = lifeline};

    while (poll(&end, 1, WATCH_MS) <= 0) {
        uint64_t deadline = __atomic_load_n(&custody->deadline_ns, __ATOMIC_SEQ_CST);

        if (deadline != 0 && now_ns() > deadline)
            kill(custody->serve, SIGKILL);
    }
}

/* What lm-serve's end has left to do. 0 or -errno. */
static int take_over(const struct lm_custody *custody, int control_socket) {
    uint64_t written = 0;
    int error = 0;

    uint32_t state = __atomic_load_n(&custody->state, __ATOMIC_SEQ_CST);
    if (state == LM_CUSTODY_DECIDED)
        return 0;
    if (state == LM_CUSTODY_AT_HOME) {
        shutdown(control_socket, SHUT_WR);
        drain(control_socket);
        return 0;
    }
    /* A socket that cannot be asked had a connection: what is not known to be unsent counts as sent. */
    if (lm_bytes_written(control_socket, &written) != 0 || written > custody->bytes_before_commit) {
        error = lm_park_decide(custody->pid, custody->flag_address, LM_PARK_STAY);
        see_delivered(control_socket);
        return error;
    }
    shutdown(control_socket, SHUT_WR);
    error = lm_park_decide(custody->pid, custody->flag_address, LM_PARK_GO_HOME);
    drain(control_socket);
    return error;
}

__attribute__((noreturn)) void lm_custodian_run(struct lm_custody *custody, int control_socket,
                                                int lifeline) {
    char here;
    const void *const kept[] = {&here, __builtin_thread_pointer()};

    /* lm-serve's memory is no business of the custodian's, and what follows looks at no other than these. */
    lm_own_memory_drop(kept, 2);
    watch(custody, lifeline);
    _exit(take_over(custody, control_socket) == 0 ? 0 : 1);
}
