/*
 * feature: every thread's signal mask
 */
#include "check.h"

static pthread_barrier_t ready, moved;

static uint64_t mask_of_thread(void) {
    uint64_t mask = 0;
    SYS(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8));
    return mask;
}

static void *body(void *argument) {
    uint64_t mask = (uint64_t)(uintptr_t)argument;
    SYS(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8));
    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&moved);
    CHECK(mask_of_thread() == mask, "the mask is %#lx, was %#lx", mask_of_thread(), mask);
    return NULL;
}

int main(int argc, char **argv) {
    static const uint64_t masks[] = {0, 0x8000000000000000u, 0x7ffffffffffbfeffu & ~(1ul << 18),
                                     0x5500000000000003u};
    pthread_t threads[COUNT(masks)];
    check_start(argc, argv);
    pthread_barrier_init(&ready, NULL, COUNT(masks) + 1);
    pthread_barrier_init(&moved, NULL, COUNT(masks) + 1);
    for (size_t i = 0; i < COUNT(masks); i++)
        threads[i] = check_thread(body, (void *)(uintptr_t)masks[i]);
    pthread_barrier_wait(&ready);
    uint64_t mask = mask_of_thread();
    check_move();
    CHECK(mask_of_thread() == mask, "the first thread's mask is %#lx, was %#lx", mask_of_thread(), mask);
    pthread_barrier_wait(&moved);
    for (size_t i = 0; i < COUNT(masks); i++)
        PTHREAD(pthread_join(threads[i], NULL));
    return check_passed();
}
