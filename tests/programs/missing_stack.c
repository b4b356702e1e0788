/*
 * feature: stacks whose pages are missing: returning through deep frames, and growing
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

static pthread_barrier_t ready, moved;

static uint64_t descend(int depth, bool first) {
    volatile uint64_t frame[600];
    for (size_t i = 0; i < COUNT(frame); i++)
        frame[i] = check_tag(i, (uint64_t)depth);
    uint64_t sum = 0;
    if (depth > 0)
        sum = descend(depth - 1, first);
    else if (first)
        check_move();
    else {
        pthread_barrier_wait(&ready);
        pthread_barrier_wait(&moved);
    }
    for (size_t i = 0; i < COUNT(frame); i++)
        CHECK(frame[i] == check_tag(i, (uint64_t)depth), "the frame at depth %d changed", depth);
    return sum + (uint64_t)depth;
}

static void *body(void *argument) {
    CHECK(descend(1000, false) == 1000 * 1001 / 2, "a wrong sum");
    return argument;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    pthread_barrier_init(&ready, NULL, 2);
    pthread_barrier_init(&moved, NULL, 2);
    missing_map(1);
    pthread_t thread = check_thread(body, NULL);
    pthread_barrier_wait(&ready);
    CHECK(descend(500, true) == 500 * 501 / 2, "a wrong sum");
    pthread_barrier_wait(&moved);
    PTHREAD(pthread_join(thread, NULL));
    return check_passed();
}
