/*
 * feature: a process moved while it is in a signal handler, on an alternate stack; it returns from it
 */
#include "check.h"

static volatile double result;
static volatile int depth;

static void inner(int number) {
    depth = number == SIGUSR2 ? 2 : 0;
    check_move();
}

static void outer(int number) {
    depth = number == SIGUSR1 ? 1 : 0;
    SYS(raise(SIGUSR2));
    CHECK(depth == 2, "the inner handler did not run");
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = outer};
    stack_t stack = {.ss_size = 262144};
    sigset_t before, after;
    check_start(argc, argv);
    stack.ss_sp = malloc(stack.ss_size);
    SYS(sigaltstack(&stack, NULL));
    SYS(sigaction(SIGUSR1, &action, NULL));
    action.sa_flags = SA_ONSTACK;
    action.sa_handler = inner;
    SYS(sigaction(SIGUSR2, &action, NULL));
    SYS(sigprocmask(SIG_BLOCK, NULL, &before));
    volatile double half = 0.5;
    double kept = half * 3;
    SYS(raise(SIGUSR1));
    result = kept + half;
    SYS(sigprocmask(SIG_BLOCK, NULL, &after));
    CHECK(memcmp(&before, &after, 8) == 0, "the mask did not come back");
    CHECK(result == 2.0, "a floating-point register did not come back: %f", result);
    return check_passed();
}
