/*
 * feature: thread-local storage, FS and GS bases
 */
#include "check.h"
#include <asm/prctl.h>

static __thread uint64_t local = 7;
static __thread char large[10000];
static pthread_key_t key;
static pthread_barrier_t ready, moved;

static void check_locals(uint64_t number, void *fs, uint64_t *area) {
    unsigned long base = 0, through_gs;
    SYS(syscall(SYS_arch_prctl, ARCH_GET_FS, &base));
    CHECK((void *)base == fs, "thread %lu: FS base %#lx, was %p", number, base, fs);
    SYS(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
    CHECK((void *)base == area, "thread %lu: GS base %#lx, was %p", number, base, (void *)area);
    __asm__ volatile("mov %%gs:8, %0" : "=r"(through_gs));
    CHECK(through_gs == number * 3, "thread %lu: through GS %#lx", number, through_gs);
    CHECK(local == number && large[9999] == (char)number, "thread %lu: its locals changed", number);
    CHECK(pthread_getspecific(key) == (void *)(number * 2), "thread %lu: its key changed", number);
}

static void *body(void *argument) {
    uint64_t number = (uintptr_t)argument, area[2] = {0, number * 3};
    unsigned long fs = 0;
    local = number;
    large[9999] = (char)number;
    PTHREAD(pthread_setspecific(key, (void *)(number * 2)));
    SYS(syscall(SYS_arch_prctl, ARCH_SET_GS, area));
    SYS(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
    check_locals(number, (void *)fs, area);
    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&moved);
    check_locals(number, (void *)fs, area);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[3];
    check_start(argc, argv);
    PTHREAD(pthread_key_create(&key, NULL));
    pthread_barrier_init(&ready, NULL, 4);
    pthread_barrier_init(&moved, NULL, 4);
    for (uintptr_t i = 0; i < 3; i++)
        threads[i] = check_thread(body, (void *)(i + 100));
    pthread_barrier_wait(&ready);
    check_move();
    pthread_barrier_wait(&moved);
    for (int i = 0; i < 3; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    CHECK(local == 7, "the first thread's local changed");
    return check_passed();
}
