/*
 * feature: a hundred threads, with their ids
 */
#include "check.h"
#include <semaphore.h>

#define THREADS 100

static sem_t wake, awake;

static void *wait_for_wake(void *argument) {
    pid_t *id = argument;
    *id = gettid();
    sem_post(&awake);
    while (sem_wait(&wake) != 0)
        CHECK(errno == EINTR, "sem_wait: %s", strerror(errno));
    CHECK(gettid() == *id, "thread %d is %d now", *id, gettid());
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];
    pid_t ids[THREADS];
    check_start(argc, argv);
    sem_init(&wake, 0, 0);
    sem_init(&awake, 0, 0);
    for (int i = 0; i < THREADS; i++)
        threads[i] = check_thread(wait_for_wake, &ids[i]);
    for (int i = 0; i < THREADS; i++)
        sem_wait(&awake);
    check_move();
    for (int i = 0; i < THREADS; i++)
        sem_post(&wake);
    for (int i = 0; i < THREADS; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
