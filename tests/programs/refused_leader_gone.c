/*
 * feature: a process whose first thread has ended while others live
 * refused: ended
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
