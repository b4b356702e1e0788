/*
 * feature: signalfd, with its mask and a signal waiting in it
 */
#include "check.h"
#include <sys/signalfd.h>

int main(int argc, char **argv) {
    sigset_t set;
    struct signalfd_siginfo information;
    check_start(argc, argv);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 5);
    SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    int file = SYS(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
    SYS(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 12}));
    check_move();
    CHECK(SYS(fcntl(file, F_GETFD)) == FD_CLOEXEC && SYS(fcntl(file, F_GETFL)) & O_NONBLOCK,
          "its flags changed");
    CHECK(SYS(read(file, &information, sizeof(information))) == sizeof(information), "a short read");
    CHECK((int)information.ssi_signo == SIGRTMIN + 5 && information.ssi_int == 12, "signal %u with %d",
          information.ssi_signo, information.ssi_int);
    SYS(raise(SIGUSR1));
    CHECK(SYS(read(file, &information, sizeof(information))) == sizeof(information), "a short read");
    CHECK(information.ssi_signo == SIGUSR1, "signal %u", information.ssi_signo);
    CHECK(read(file, &information, sizeof(information)) == -1 && errno == EAGAIN, "a signal too many");
    return check_passed();
}
