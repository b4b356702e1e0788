/*
 * feature: signals when a descriptor is ready (O_ASYNC, F_SETOWN, F_SETSIG): one for what happens after the move, none for
 *          the move itself
 */
#include "check.h"
#include <sys/socket.h>

static volatile int told;
static volatile int of;

static void on_ready(int number, siginfo_t *information, void *context) {
    (void)context;
    told++;
    of = number == SIGRTMIN + 3 ? information->si_fd : -1;
}

static void tell(int file, int signal) {
    SYS(fcntl(file, F_SETOWN, getpid()));
    SYS(fcntl(file, F_SETSIG, signal));
    SYS(fcntl(file, F_SETFL, fcntl(file, F_GETFL) | O_ASYNC | O_NONBLOCK));
}

int main(int argc, char **argv) {
    int alone[2], dead[2], half[2], pair[2], full[2];
    struct sigaction action = {.sa_sigaction = on_ready, .sa_flags = SA_SIGINFO | SA_RESTART};
    check_start(argc, argv);
    SYS(sigaction(SIGRTMIN + 3, &action, NULL));
    /* Of these the other end is closed, and SIGIO kills. */
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, alone));
    SYS(pipe(dead));
    SYS(pipe(half));
    close(alone[1]);
    close(dead[1]);
    close(half[0]);
    tell(alone[0], 0);
    tell(dead[0], 0);
    tell(half[1], 0);
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    SYS(pipe(full));
    check_write(pair[1], "waits", 5);
    check_write(full[1], "waits", 5);
    tell(pair[0], SIGRTMIN + 3);
    tell(full[0], SIGRTMIN + 3);
    check_move();
    CHECK(told == 0, "%d signals for nothing", told);
    check_write(full[1], "!", 1);
    CHECK(told == 1 && of == full[0], "%d signals, of %d", told, of);
    check_write(pair[1], "!", 1);
    CHECK(told == 2 && of == pair[0], "%d signals, of %d", told, of);
    return check_passed();
}
