/*
 * feature: priority-inheritance mutexes, held and waited for
 */
#include "check.h"

static pthread_mutex_t mutex;
static volatile pid_t waiter;
static volatile bool owned;

static void *wait_for_it(void *argument) {
    waiter = gettid();
    PTHREAD(pthread_mutex_lock(&mutex));
    owned = true;
    PTHREAD(pthread_mutex_unlock(&mutex));
    return argument;
}

int main(int argc, char **argv) {
    pthread_mutexattr_t attributes;
    check_start(argc, argv);
    pthread_mutexattr_init(&attributes);
    PTHREAD(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT));
    PTHREAD(pthread_mutex_init(&mutex, &attributes));
    PTHREAD(pthread_mutex_lock(&mutex));
    pthread_t thread = check_thread(wait_for_it, NULL);
    while (!waiter)
        check_sleep(1);
    check_wait_asleep(waiter);
    check_move();
    check_sleep(30);
    CHECK(!owned, "the waiter got a mutex that is held");
    PTHREAD(pthread_mutex_unlock(&mutex));
    PTHREAD(pthread_join(thread, NULL));
    CHECK(owned, "the waiter never got the mutex");
    return check_passed();
}
