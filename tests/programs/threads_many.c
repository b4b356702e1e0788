/*
 * feature: a hundred threads, with their ids, names, alternate stacks and restartable sequences
 */
#include "check.h"
#include <sched.h>
#include <semaphore.h>

#define THREADS 100

static sem_t wake, awake;
static char stacks[THREADS][16384];

/* Every third one has no alternate stack. */
static bool has_stack(long number) {
    return number % 3 != 0;
}

static void *wait_for_wake(void *argument) {
    const long number = (long)argument;
    const pid_t id = gettid();
    const stack_t stack = {.ss_sp = stacks[number], .ss_size = sizeof stacks[number]};
    char name[16], found[16];
    stack_t now;

    snprintf(name, sizeof name, "number %ld", number);
    PTHREAD(pthread_setname_np(pthread_self(), name));
    if (has_stack(number))
        SYS(sigaltstack(&stack, NULL));
    sem_post(&awake);
    while (sem_wait(&wake) != 0)
        CHECK(errno == EINTR, "sem_wait: %s", strerror(errno));
    CHECK(gettid() == id, "thread %d is %d now", id, gettid());
    PTHREAD(pthread_getname_np(pthread_self(), found, sizeof found));
    CHECK(strcmp(name, found) == 0, "thread \"%s\" is named \"%s\"", name, found);
    SYS(sigaltstack(NULL, &now));
    if (has_stack(number))
        CHECK(now.ss_sp == stack.ss_sp && now.ss_size == stack.ss_size, "thread %ld has another stack",
              number);
    else
        CHECK(now.ss_flags == SS_DISABLE, "thread %ld has got an alternate stack", number);
    CHECK(sched_getcpu() >= 0, "sched_getcpu: %s", strerror(errno));
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];

    check_start(argc, argv);
    sem_init(&wake, 0, 0);
    sem_init(&awake, 0, 0);
    for (long i = 0; i < THREADS; i++)
        threads[i] = check_thread(wait_for_wake, (void *)i);
    for (int i = 0; i < THREADS; i++)
        sem_wait(&awake);
    check_move();
    for (int i = 0; i < THREADS; i++)
        sem_post(&wake);
    for (int i = 0; i < THREADS; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
