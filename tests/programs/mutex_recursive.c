/*
 * feature: mutexes that remember their owner's thread id (recursive, error-checking)
 * limits: with --pid keep or in a PID namespace; ids never change
 */
#include "check.h"

int main(int argc, char **argv) {
    pthread_mutexattr_t attributes;
    pthread_mutex_t recursive, checking;
    check_start(argc, argv);
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&recursive, &attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&checking, &attributes);
    PTHREAD(pthread_mutex_lock(&recursive));
    PTHREAD(pthread_mutex_lock(&recursive));
    PTHREAD(pthread_mutex_lock(&checking));
    pid_t id = getpid();
    check_move();
    CHECK(getpid() == id && gettid() == id, "process %d is %d, thread %d", id, getpid(), gettid());
    PTHREAD(pthread_mutex_lock(&recursive));
    for (int i = 0; i < 3; i++)
        PTHREAD(pthread_mutex_unlock(&recursive));
    CHECK(pthread_mutex_unlock(&recursive) == EPERM, "the recursive mutex is still locked");
    CHECK(pthread_mutex_lock(&checking) == EDEADLK, "the error-checking mutex forgot its owner");
    PTHREAD(pthread_mutex_unlock(&checking));
    PTHREAD(pthread_kill(pthread_self(), 0));
    return check_passed();
}
