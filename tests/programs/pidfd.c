/*
 * feature: pidfds of the process itself, and of processes that have ended
 * limits: others are refused by name. The exit status of one that has ended (PIDFD_GET_INFO) is 0 afterwards
 */
#include "check.h"
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static volatile int received;

static void on_signal(int number) {
    received = number;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    int own = (int)SYS(syscall(SYS_pidfd_open, getpid(), O_NONBLOCK)), again = SYS(dup(own));
    pid_t child = SYS(fork());
    if (child == 0)
        _exit(3);
    int ended = (int)SYS(syscall(SYS_pidfd_open, child, 0));
    SYS(waitpid(child, NULL, 0));
    SYS(signal(SIGUSR1, on_signal) == SIG_ERR ? -1 : 0);
    check_move();
    struct pollfd ready[] = {{own, POLLIN, 0}, {ended, POLLIN, 0}};
    CHECK(SYS(poll(ready, 2, 0)) == 1 && ready[1].revents & POLLIN, "events %#x and %#x", ready[0].revents,
          ready[1].revents);
    SYS((int)syscall(SYS_pidfd_send_signal, again, SIGUSR1, NULL, 0));
    CHECK(received == SIGUSR1, "the signal does not come");
    CHECK(syscall(SYS_pidfd_send_signal, ended, 0, NULL, 0) == -1 && errno == ESRCH, "it has not ended");
    CHECK(SYS(fcntl(own, F_GETFL)) & O_NONBLOCK && SYS(fcntl(own, F_GETFD)) == FD_CLOEXEC,
          "its flags changed");
    return check_passed();
}
