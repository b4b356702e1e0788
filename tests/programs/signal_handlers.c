/*
 * feature: signal handlers with their flags, masks and restorers; ignored signals
 */
#include "check.h"

/* As the kernel has it; the C library hides the restorer. */
struct action {
    uintptr_t handler;
    unsigned long flags;
    uintptr_t restorer;
    uint64_t mask;
};

static volatile int handled, value;

static void on_signal(int number) {
    handled += number;
}

static void on_information(int number, siginfo_t *information, void *context) {
    handled += number;
    value = information->si_value.sival_int;
    CHECK(context != NULL, "a handler without a context");
}

static void read_actions(struct action actions[65]) {
    memset(actions, 0, 65 * sizeof(actions[0]));
    for (int number = 1; number <= 64; number++)
        SYS(syscall(SYS_rt_sigaction, number, NULL, &actions[number], 8));
}

int main(int argc, char **argv) {
    struct action before[65], after[65];
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_NODEFER};
    check_start(argc, argv);
    SYS(sigaction(SIGUSR1, &action, NULL));
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    action.sa_sigaction = on_information;
    sigfillset(&action.sa_mask);
    SYS(sigaction(SIGRTMIN + 3, &action, NULL));
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGHUP);
    action.sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NOCLDSTOP | SA_NOCLDWAIT;
    SYS(sigaction(SIGCHLD, &action, NULL));
    SYS(signal(SIGPIPE, SIG_IGN) == SIG_ERR ? -1 : 0);
    SYS(signal(SIGTERM, SIG_IGN) == SIG_ERR ? -1 : 0);
    read_actions(before);
    check_move();
    read_actions(after);
    for (int number = 1; number <= 64; number++)
        CHECK(memcmp(&before[number], &after[number], sizeof(before[0])) == 0,
              "signal %d: handler %#lx flags %#lx mask %#lx, was %#lx %#lx %#lx", number,
              after[number].handler, after[number].flags, after[number].mask, before[number].handler,
              before[number].flags, before[number].mask);
    SYS(raise(SIGUSR1));
    CHECK(handled == SIGUSR1, "the handler of SIGUSR1 did not run");
    SYS(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 77}));
    CHECK(handled == SIGUSR1 + SIGRTMIN + 3 && value == 77, "the handler of SIGRTMIN+3 did not run");
    SYS(raise(SIGTERM));
    return check_passed();
}
