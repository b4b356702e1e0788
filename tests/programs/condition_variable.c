/*
 * feature: threads waiting for a condition variable, a barrier and a semaphore
 */
#include "check.h"
#include <semaphore.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static volatile pid_t ids[3];
static volatile int value;

static void *on_condition(void *argument) {
    PTHREAD(pthread_mutex_lock(&mutex));
    ids[0] = gettid();
    while (value != 42)
        PTHREAD(pthread_cond_wait(&changed, &mutex));
    PTHREAD(pthread_mutex_unlock(&mutex));
    return argument;
}

static void *on_barrier(void *argument) {
    ids[1] = gettid();
    pthread_barrier_wait(&barrier);
    return argument;
}

static void *on_semaphore(void *argument) {
    ids[2] = gettid();
    while (sem_wait(&semaphore) != 0)
        CHECK(errno == EINTR, "sem_wait: %s", strerror(errno));
    return argument;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    pthread_barrier_init(&barrier, NULL, 2);
    sem_init(&semaphore, 0, 0);
    pthread_t threads[] = {check_thread(on_condition, NULL), check_thread(on_barrier, NULL),
                           check_thread(on_semaphore, NULL)};
    for (int i = 0; i < 3; i++) {
        while (!ids[i])
            check_sleep(1);
        check_wait_asleep(ids[i]);
    }
    check_move();
    PTHREAD(pthread_mutex_lock(&mutex));
    value = 42;
    PTHREAD(pthread_cond_broadcast(&changed));
    PTHREAD(pthread_mutex_unlock(&mutex));
    pthread_barrier_wait(&barrier);
    sem_post(&semaphore);
    for (int i = 0; i < 3; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
