#define _GNU_SOURCE
#include "source_server/custody.h"

#include "kernel/arch/arch.h"
#include "kernel/memory/own_memory.h"
#include "source_server/held.h"
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

enum {
    DRAIN_CHUNK = 4096,
    POLL_US = 10000,
    DELIVERY_POLLS = 60000,
    WATCH_MS = 200,
    DRAIN_MS = 5000,
    SAY_MS = 2000,
    SAY_PARTS = 100,
};

int lm_park_decide(int pid, uint64_t flag_address, uint32_t word) {
    struct iovec here = {&word, sizeof word};
    struct iovec there = {(void *)(uintptr_t)flag_address, sizeof word};

    return process_vm_writev(pid, &here, 1, &there, 1, 0) == sizeof word ? 0 : -errno;
}

/* After the no, or where nothing has to be said: what still comes, READY perhaps, is read until the peer has
 * heard and hung up. A socket closed with unread bytes, or a byte that finds it closed, brings a reset, and
 * with it an end to what is still on its way to the peer. */
static void drain(int socket) {
    char bytes[DRAIN_CHUNK];
    struct pollfd arrived = {.fd = socket, .events = POLLIN};

    shutdown(socket, SHUT_WR);
    while (poll(&arrived, 1, DRAIN_MS) == 1 && recv(socket, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

int lm_custody_say_no(const struct lm_custody *custody, int control_socket) {
    for (int parts = 0; parts < SAY_PARTS; parts++) {
        struct pollfd room = {.fd = control_socket, .events = POLLOUT};
        uint64_t written = 0, said = 0;
        int error = lm_bytes_written(control_socket, &written);

        if (error != 0)
            return error;
        said = written - custody->bytes_before_decision;
        if (said >= custody->no_length)
            return 0;
        if (send(control_socket, custody->no + said, custody->no_length - said,
                 MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            continue;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (poll(&room, 1, SAY_MS) == 0)
            return -ETIMEDOUT;
    }
    return -EAGAIN;
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

static void run_held(const struct lm_custody *custody, int table) {
    if (__atomic_load_n(&custody->held, __ATOMIC_SEQ_CST) != 0)
        lm_held_run(custody->held_file, table);
}

/* The threads may wait for the word, and the no may be said in part, or not at all. The threads first, once their
 * descriptors are as they were: a word that is not said leaves the destination in doubt, but one that is not
 * written leaves no process at all. */
static int carry_out_no(const struct lm_custody *custody, int control_socket) {
    uint64_t flag_address = custody->flag_address;
    int error;

    run_held(custody, LM_HELD_UNDO);
    error = flag_address == 0 ? 0 : lm_park_decide(custody->pid, flag_address, LM_PARK_GO_HOME);

    lm_custody_say_no(custody, control_socket);
    drain(control_socket);
    return error;
}

static void record_no(struct lm_custody *custody) {
    __atomic_store_n(&custody->state, LM_CUSTODY_NO, __ATOMIC_SEQ_CST);
}

/* What lm-serve's end has left to do. 0 or -errno. */
static int take_over(struct lm_custody *custody, int control_socket) {
    uint64_t written = 0;
    int unknown = lm_bytes_written(control_socket, &written);
    int error = 0;

    switch (__atomic_load_n(&custody->state, __ATOMIC_SEQ_CST)) {
    case LM_CUSTODY_DECIDED:
        run_held(custody, LM_HELD_COMMIT);
        return 0;
    case LM_CUSTODY_PARKED:
        /* A socket that cannot be asked had a connection: what is not known to be unsent counts as sent. */
        if (unknown || written > custody->bytes_before_decision) {
            error = lm_park_decide(custody->pid, custody->flag_address, LM_PARK_STAY);
            run_held(custody, LM_HELD_COMMIT);
            see_delivered(control_socket);
            return error;
        }
        break;
    case LM_CUSTODY_AT_HOME:
        /* Who does not have the whole final description cannot be ready; and into the middle of a message
         * nothing can be said. */
        if (unknown || custody->bytes_before_decision == 0 || written < custody->bytes_before_decision) {
            run_held(custody, LM_HELD_UNDO);
            drain(control_socket);
            return 0;
        }
        custody->bytes_before_decision = written;
        break;
    }
    record_no(custody);
    return carry_out_no(custody, control_socket);
}

__attribute__((noreturn)) void lm_custodian_run(struct lm_custody *custody, int control_socket,
                                                int lifeline) {
    char here;
    const void *const kept[] = {&here, __builtin_thread_pointer()};

    /* lm-serve's memory is no business of the custodian's, and what follows looks at no other than these. */
    lm_own_memory_drop(kept, 2);
    watch(custody, lifeline);
    int error = take_over(custody, control_socket);
    uint32_t state = __atomic_load_n(&custody->state, __ATOMIC_SEQ_CST);

    if (state == LM_CUSTODY_AT_HOME || state == LM_CUSTODY_NO)
        lm_leftover_take_away(custody->leftover);
    _exit(error == 0 ? 0 : 1);
}
