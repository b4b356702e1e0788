/*
 * feature: a process whose first thread has ended while others live
 * limits: refused before the freeze: a thread that has ended but must stay as a zombie cannot be rebuilt
 * refused: leader
 */
#include "check.h"

static void *go_on(void *argument) {
    pthread_t main_thread = (pthread_t)argument;
    PTHREAD(pthread_join(main_thread, NULL));
    check_move();
    _exit(check_passed());
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    check_thread(go_on, (void *)pthread_self());
    pthread_exit(NULL);
}
