/*
 * feature: a process in a group-stop (SIGSTOP) stays stopped until SIGCONT
 * stopped: yes
 */
#include "check.h"

static volatile int continued;

static void on_continue(int number) {
    continued += number == SIGCONT;
}

static volatile uint64_t steps;

static void *count_steps(void *argument) {
    for (;;)
        steps++;
    return argument;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    SYS(signal(SIGCONT, on_continue) == SIG_ERR ? -1 : 0);
    check_thread(count_steps, NULL);
    check_ready();
    SYS(kill(getpid(), SIGSTOP));
    for (int wait = 0; !continued && wait < 100; wait++)
        check_sleep(10);
    CHECK(continued == 1, "SIGCONT's handler ran %d times", continued);
    CHECK(check_is_moved(), "the process ran before it was continued");
    uint64_t before = steps;
    for (int wait = 0; steps == before && wait < 500; wait++)
        check_sleep(10);
    CHECK(steps > before, "the other thread does not run");
    return check_passed();
}
