/*
 * feature: robust mutexes: a thread that dies after the move passes its mutex on
 */
#include "check.h"

static pthread_mutex_t mutex;
static volatile bool locked, die;

static void *lock_and_die(void *argument) {
    PTHREAD(pthread_mutex_lock(&mutex));
    locked = true;
    while (!die)
        check_sleep(5);
    return argument;
}

int main(int argc, char **argv) {
    pthread_mutexattr_t attributes;
    check_start(argc, argv);
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&mutex, &attributes);
    pthread_t thread = check_thread(lock_and_die, NULL);
    while (!locked)
        check_sleep(1);
    check_move();
    CHECK(pthread_mutex_trylock(&mutex) == EBUSY, "the mutex is no longer locked");
    die = true;
    PTHREAD(pthread_join(thread, NULL));
    int answer = pthread_mutex_lock(&mutex);
    CHECK(answer == EOWNERDEAD, "locking answers %s", strerror(answer));
    PTHREAD(pthread_mutex_consistent(&mutex));
    PTHREAD(pthread_mutex_unlock(&mutex));
    return check_passed();
}
