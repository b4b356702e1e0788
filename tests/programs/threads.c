/*
 * feature: threads, each with its stack and its place in a computation
 */
#include "check.h"

struct work {
    volatile uint64_t steps;
    volatile bool stop;
    uint64_t value;
    pid_t id;
};

static void *compute(void *argument) {
    struct work *work = argument;
    uint64_t value = 1, on_stack[64];
    work->id = gettid();
    for (size_t i = 0; i < COUNT(on_stack); i++)
        on_stack[i] = check_tag(i, (uint64_t)work->id);
    while (!work->stop) {
        value = value * 6364136223846793005u + 1442695040888963407u;
        work->steps++;
    }
    for (size_t i = 0; i < COUNT(on_stack); i++)
        CHECK(on_stack[i] == check_tag(i, (uint64_t)work->id), "thread %d: its stack changed", work->id);
    CHECK(gettid() == work->id, "thread %d is %d now", work->id, gettid());
    work->value = value;
    return work;
}

int main(int argc, char **argv) {
    struct work work[4] = {0};
    pthread_t threads[4];
    check_start(argc, argv);
    for (int i = 0; i < 4; i++)
        threads[i] = check_thread(compute, &work[i]);
    check_move();
    for (int i = 0; i < 4; i++) {
        uint64_t steps = work[i].steps;
        for (int wait = 0; work[i].steps == steps && wait < 1000; wait++)
            check_sleep(10);
        CHECK(work[i].steps > steps, "thread %d no longer runs", work[i].id);
        work[i].stop = true;
    }
    for (int i = 0; i < 4; i++) {
        void *answer;
        PTHREAD(pthread_join(threads[i], &answer));
        uint64_t value = 1;
        for (uint64_t step = 0; step < work[i].steps; step++)
            value = value * 6364136223846793005u + 1442695040888963407u;
        CHECK(answer == &work[i] && value == work[i].value, "thread %d computed something else", work[i].id);
    }
    return check_passed();
}
