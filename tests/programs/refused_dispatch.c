/*
 * feature: system calls handed back to the program (PR_SET_SYSCALL_USER_DISPATCH)
 * refused: PR_SET_SYSCALL_USER_DISPATCH
 */
#include "check.h"
#include <pthread.h>
#include <sys/prctl.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

static volatile char selector;
static volatile int armed, ended;

/* Computes with every system call handed back to it: one injected then would end the process (SIGSYS). */
static void *dispatched(void *unused) {
    (void)unused;
    SYS(prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &selector));
    selector = 1;
    armed = 1;
    while (!ended)
        ;
    selector = 0;
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t thread;

    check_start(argc, argv);
    SYS(pthread_create(&thread, NULL, dispatched, NULL) ? -1 : 0);
    while (!armed)
        usleep(1000);
    check_move();
    ended = 1;
    pthread_join(thread, NULL);
    return check_passed();
}
