/*
 * Blocks in one system call and says afterwards how it ended: "result errno". argv[1] names the call.
 *
 * Descriptor 0 is a stream socket, whose other end the test holds. Every socket has a timeout, far away, with
 * which the kernel restarts no call on it. SIGUSR2 has a handler.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { TIMEOUT_SECONDS = 100, ONE_KIB = 1024 };

static char byte[1] = "x";
static struct iovec piece = {byte, 1};
static struct mmsghdr message = {.msg_hdr = {.msg_iov = &piece, .msg_iovlen = 1}};
static struct timespec later = {TIMEOUT_SECONDS, 0};
static int given;

static void set_timeouts(int descriptor) {
    struct timeval time = {TIMEOUT_SECONDS, 0};

    if (setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) != 0 ||
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time) != 0)
        abort();
}

/* A listener of room for one connection on the path that the test gives: "accept" takes one that the test
 * makes, "connect" is one too many until the test takes the first. */
static int make_socket(const char *path, int listens) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int made = socket(AF_UNIX, SOCK_STREAM, 0);

    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (made < 0 || (listens && (bind(made, (struct sockaddr *)&address, sizeof address) || listen(made, 0))))
        abort();
    set_timeouts(made);
    return made;
}

static void fill(void) {
    static const char room[ONE_KIB];

    while (send(0, room, sizeof room, MSG_DONTWAIT) > 0)
        ;
    while (send(0, room, 1, MSG_DONTWAIT) > 0)
        ;
}

static long wait_for_semaphore(int with_time) {
    int set = semget(IPC_PRIVATE, 1, 0600);
    struct sembuf take = {0, -1, 0};
    char said[32];
    long result = 0;

    snprintf(said, sizeof said, "%d\n", set);
    if (send(0, said, strlen(said), 0) < 0)
        return -1;
    result = with_time ? syscall(SYS_semtimedop, set, &take, 1, &later) : syscall(SYS_semop, set, &take, 1);
    given = errno;
    semctl(set, 0, IPC_RMID);
    errno = given;
    return result;
}

static long wait_for_signal(void) {
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return syscall(SYS_rt_sigtimedwait, &set, NULL, &later, 8);
}

static long wait_for_event(const char *name) {
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(0);

    if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event) != 0)
        return -1;
    if (strcmp(name, "epoll_wait") == 0)
        return syscall(SYS_epoll_wait, epoll, &event, 1, TIMEOUT_SECONDS * 1000);
    if (strcmp(name, "epoll_pwait") == 0)
        return syscall(SYS_epoll_pwait, epoll, &event, 1, TIMEOUT_SECONDS * 1000, NULL, 8);
    return syscall(SYS_epoll_pwait2, epoll, &event, 1, &later, NULL, 8);
}

static long wait_for_io(int with_mask) {
    aio_context_t context = 0;
    struct iocb request = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = 1 /* POLLIN */}, *list = &request;
    struct io_event event;

    if (syscall(SYS_io_setup, 1, &context) != 0 || syscall(SYS_io_submit, context, 1, &list) != 1)
        return -1;
    return with_mask ? syscall(SYS_io_pgetevents, context, 1, 1, &event, &later, NULL)
                     : syscall(SYS_io_getevents, context, 1, 1, &event, &later);
}

static long receive(const char *name, const int *ends) {
    if (strcmp(name, "read") == 0)
        return syscall(SYS_read, 0, byte, 1);
    if (strcmp(name, "readv") == 0)
        return syscall(SYS_readv, 0, &piece, 1);
    if (strcmp(name, "preadv2") == 0)
        return syscall(SYS_preadv2, 0, &piece, 1, -1L, -1L, 0);
    if (strcmp(name, "recvfrom") == 0)
        return syscall(SYS_recvfrom, 0, byte, 1, 0, NULL, NULL);
    if (strcmp(name, "recvmsg") == 0)
        return syscall(SYS_recvmsg, 0, &message.msg_hdr, 0);
    if (strcmp(name, "recvmmsg") == 0)
        return syscall(SYS_recvmmsg, 0, &message, 1, 0, NULL);
    return syscall(SYS_splice, 0, NULL, ends[1], NULL, 1, 0);
}

static long transmit(const char *name, const int *ends) {
    if (strcmp(name, "write") == 0)
        return syscall(SYS_write, 0, byte, 1);
    if (strcmp(name, "writev") == 0)
        return syscall(SYS_writev, 0, &piece, 1);
    if (strcmp(name, "pwritev2") == 0)
        return syscall(SYS_pwritev2, 0, &piece, 1, -1L, -1L, 0);
    if (strcmp(name, "sendto") == 0)
        return syscall(SYS_sendto, 0, byte, 1, 0, NULL, 0);
    if (strcmp(name, "sendmsg") == 0)
        return syscall(SYS_sendmsg, 0, &message.msg_hdr, 0);
    if (strcmp(name, "sendmmsg") == 0)
        return syscall(SYS_sendmmsg, 0, &message, 1, 0);
    if (strcmp(name, "sendfile") == 0)
        return syscall(SYS_sendfile, 0, open("/proc/self/exe", O_RDONLY), NULL, 1);
    if (write(ends[1], byte, 1) != 1)
        return -1;
    return syscall(SYS_splice, ends[0], NULL, 0, NULL, 1, 0);
}

static long call(const char *name, const char *path) {
    static const char *const receiving[] = {"read",    "readv",    "preadv2",   "recvfrom",
                                            "recvmsg", "recvmmsg", "splice_in", NULL};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int ends[2];

    if (pipe(ends) != 0)
        return -1;
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    for (size_t i = 0; receiving[i] != NULL; i++) {
        if (strcmp(name, receiving[i]) == 0)
            return receive(name, ends);
    }
    if (strncmp(name, "epoll", 5) == 0)
        return wait_for_event(name);
    if (strncmp(name, "sem", 3) == 0)
        return wait_for_semaphore(strcmp(name, "semtimedop") == 0);
    if (strncmp(name, "io_", 3) == 0)
        return wait_for_io(strcmp(name, "io_pgetevents") == 0);
    if (strcmp(name, "rt_sigtimedwait") == 0)
        return wait_for_signal();
    if (strcmp(name, "connect") == 0)
        return syscall(SYS_connect, make_socket(path, 0), &address, sizeof address);
    if (strcmp(name, "accept") == 0)
        return syscall(SYS_accept, make_socket(path, 1), NULL, NULL);
    if (strcmp(name, "accept4") == 0)
        return syscall(SYS_accept4, make_socket(path, 1), NULL, NULL, 0);
    fill();
    return transmit(name, ends);
}

static void handle(int number) {
    (void)number;
}

int main(int count, char **words) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    long result = 0;

    if (count != 3 || sigaction(SIGUSR2, &action, NULL) != 0)
        return 2;
    set_timeouts(0);
    result = call(words[1], words[2]);
    printf("%ld %d\n", result, result < 0 ? errno : 0);
    return 0;
}
