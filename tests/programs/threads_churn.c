/*
 * feature: threads that are born and die all the time, also while lm-serve reads and freezes the process
 */
#include "check.h"

static volatile bool stop;
static uint64_t finished[2], started[2];

static void *short_life(void *argument) {
    char fill[2000];
    memset(fill, (int)(uintptr_t)argument, sizeof(fill));
    return (void *)(uintptr_t)fill[1000];
}

static void *give_birth(void *argument) {
    uintptr_t which = (uintptr_t)argument;
    while (!stop) {
        pthread_t thread = check_thread(short_life, (void *)(which + 1));
        void *answer;
        started[which]++;
        PTHREAD(pthread_join(thread, &answer));
        CHECK(answer == (void *)(which + 1), "a thread answered %p", answer);
        finished[which]++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    check_start(argc, argv);
    for (uintptr_t i = 0; i < 2; i++)
        threads[i] = check_thread(give_birth, (void *)i);
    check_sleep(50);
    check_move();
    uint64_t before = __atomic_load_n(&finished[0], __ATOMIC_RELAXED);
    for (int wait = 0; __atomic_load_n(&finished[0], __ATOMIC_RELAXED) == before && wait < 1000; wait++)
        check_sleep(10);
    CHECK(__atomic_load_n(&finished[0], __ATOMIC_RELAXED) > before, "no thread was born after the move");
    stop = true;
    for (int i = 0; i < 2; i++) {
        PTHREAD(pthread_join(threads[i], NULL));
        CHECK(started[i] == finished[i], "a thread got lost");
    }
    return check_passed();
}
