/*
 * feature: guard regions (MADV_GUARD_INSTALL) made in memory that is being moved, before the freeze and after the resume
 * limits: a touch of one that was made between the last snapshot and the freeze ends with SIGBUS, not SIGSEGV, and it cannot be
 * limits: removed (MADV_GUARD_REMOVE); after the resume no event tells of guards: one that is made at the instant at which the
 * limits: page comes that was missing there is no guard, and memory that was missing holds what it held, not zeros, if it is made
 * limits: a guard and none again before its page comes; those that are there before the move are refused by name
 */
#include "check.h"
#include <setjmp.h>

enum { REGIONS = 4096, REGION = 16384, INSTALL = 102, REMOVE = 103 };

static sigjmp_buf past;

static void on_fault(int number) {
    (void)number;
    siglongjmp(past, 1);
}

static int faults(volatile char *at) {
    if (sigsetjmp(past, 1))
        return 1;
    (void)*at;
    return 0;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    int made = 0, readable = 0, wrong = 0;

    check_start(argc, argv);
    SYS(sigaction(SIGSEGV, &action, NULL));
    SYS(sigaction(SIGBUS, &action, NULL));
    char *memory =
        mmap(NULL, (size_t)REGIONS * REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SYS(memory == MAP_FAILED ? -1 : 0);
    memset(memory, 1, (size_t)REGIONS * REGION);
    check_ready();
    for (int i = 0; !check_is_moved(); i++) {
        /* Made by the test after the snapshot of the process: what has guards before is refused. */
        if (made < REGIONS && check_exists("begin")) {
            SYS(madvise(memory + (size_t)made * REGION, PAGE, INSTALL));
            made++;
        }
        memory[(size_t)(i * 7919 % REGIONS) * REGION + 2 * PAGE] = 1;
        usleep(500);
    }
    for (int i = 0; i < made; i++)
        readable += !faults(memory + (size_t)i * REGION);
    CHECK(readable == 0, "%d of %d guards can be read", readable, made);
    for (size_t at = PAGE; at < (size_t)REGIONS * REGION; at += REGION)
        wrong += memory[at] != 1;
    CHECK(wrong == 0, "%d pages beside guards are wrong", wrong);
    SYS(madvise(memory, PAGE, INSTALL));
    SYS(madvise(memory, PAGE, REMOVE));
    return check_passed();
}
