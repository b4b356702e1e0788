/*
 * feature: restartable sequences: the registration of every thread
 */
#include "check.h"
#include <sched.h>
#include <sys/rseq.h>

static pthread_barrier_t ready, moved;

static struct rseq *area(void) {
    return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void check_registered(void) {
    cpu_set_t before, one;
    CHECK((int32_t)area()->cpu_id >= 0, "cpu_id is %d", (int32_t)area()->cpu_id);
    SYS(sched_getaffinity(0, sizeof(before), &before));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &before))
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        SYS(sched_setaffinity(0, sizeof(one), &one));
        CHECK(area()->cpu_id == (uint32_t)cpu, "on processor %d the kernel writes %u", cpu, area()->cpu_id);
    }
    SYS(sched_setaffinity(0, sizeof(before), &before));
}

static void *body(void *argument) {
    check_registered();
    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&moved);
    check_registered();
    return argument;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    CHECK(__rseq_size > 0, "the C library registers none");
    pthread_barrier_init(&ready, NULL, 2);
    pthread_barrier_init(&moved, NULL, 2);
    pthread_t thread = check_thread(body, NULL);
    check_registered();
    pthread_barrier_wait(&ready);
    check_move();
    check_registered();
    pthread_barrier_wait(&moved);
    PTHREAD(pthread_join(thread, NULL));
    return check_passed();
}
