/*
 * feature: the word that the kernel clears and wakes when a thread ends
 */
#include "check.h"

static volatile bool end;

static void *wait_for_end(void *argument) {
    while (!end)
        check_sleep(5);
    return argument;
}

static void *join_it(void *argument) {
    pthread_t *threads = argument;
    PTHREAD(pthread_join(threads[0], NULL));
    return argument;
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    check_start(argc, argv);
    threads[0] = check_thread(wait_for_end, NULL);
    threads[1] = check_thread(join_it, threads);
    check_sleep(20);
    check_move();
    CHECK(pthread_tryjoin_np(threads[1], NULL) == EBUSY, "a join returned early");
    end = true;
    PTHREAD(pthread_join(threads[1], NULL));
    return check_passed();
}
