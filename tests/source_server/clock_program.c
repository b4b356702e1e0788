/*
 * clock_program FILE: three threads that do nothing but call a function of the vdso each, and see whether its
 * result and their registers are right. FILE becomes an array of counters: how often each thread has been round,
 * then the signals of the first one's handler. Ends with status 1 and a word when anything is wrong. It is built
 * without a red zone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 3, CALLS = 2000, PAGE = 4096 };

static const char *const NAMES[THREADS] = {"__vdso_clock_gettime", "__vdso_time", "__vdso_gettimeofday"};
static _Atomic uint64_t *counters;

static void fail(const char *what, long number) {
    fprintf(stderr, "%s: %ld\n", what, number);
    _exit(1);
}

static void on_signal(int number) {
    (void)number;
    counters[THREADS]++;
}

/* Call it CALLS times with `first` and `second`; the registers that it has to keep hold numbers meanwhile. The
 * result of the last call, or of the first one that is less than `least`. */
static __attribute__((noinline)) int64_t call(void *function, uint64_t first, void *second, int64_t least) {
    uint64_t table[6] = {(uint64_t)function, first, (uint64_t)second, (uint64_t)least, 0, 0};
    uint64_t *place = table;

    __asm__ volatile("push %%rbp\n push %%rbx\n mov %%rsp, %%rbx\n"
                     "sub $128, %%rsp\n and $-16, %%rsp\n"
                     "mov %%rdi, %%r15\n mov $101, %%r12\n mov $102, %%r13\n mov $103, %%rbp\n"
                     "mov %[calls], %%r14d\n"
                     "1: mov 8(%%r15), %%rdi\n mov 16(%%r15), %%rsi\n"
                     "call *(%%r15)\n"
                     "cmp 24(%%r15), %%rax\n jl 2f\n"
                     "dec %%r14\n jnz 1b\n"
                     "2: mov %%r12, 32(%%r15)\n add %%r13, 32(%%r15)\n add %%rbp, 32(%%r15)\n"
                     "mov %%rax, 40(%%r15)\n"
                     "mov %%rbx, %%rsp\n pop %%rbx\n pop %%rbp\n"
                     : "+D"(place)
                     : [calls] "i"(CALLS)
                     : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc",
                       "memory");
    if (table[4] != 101 + 102 + 103)
        fail("a register was lost", (long)table[4]);
    return (int64_t)table[5];
}

static void *go_round(void *argument) {
    intptr_t number = (intptr_t)argument;
    void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
    void *function = vdso == NULL ? NULL : dlsym(vdso, NAMES[number]);
    struct timespec now = {0}, last = {0};

    if (function == NULL)
        fail("no such function", number);
    for (;;) {
        int64_t result = 0;

        if (number == 0) {
            result = call(function, CLOCK_MONOTONIC, &now, 0);
            if (result != 0 || now.tv_sec < last.tv_sec ||
                (now.tv_sec == last.tv_sec && now.tv_nsec < last.tv_nsec))
                fail("clock_gettime", (long)result);
            last = now;
        } else if (number == 1) {
            result = call(function, 0, NULL, 1600000000);
            if (result < 1600000000 || result > (int64_t)1 << 40)
                fail("time", (long)result);
        } else {
            struct timeval day = {0};

            result = call(function, (uint64_t)(uintptr_t)&day, NULL, 0);
            if (result != 0 || day.tv_sec < 1600000000)
                fail("gettimeofday", (long)result);
        }
        counters[number]++;
    }
    return NULL;
}

int main(int count, char **words) {
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t other;
    int file = count == 2 ? open(words[1], O_RDWR | O_CREAT, 0600) : -1;

    if (file < 0 || ftruncate(file, PAGE) != 0 || sigaction(SIGRTMIN, &action, NULL) != 0)
        return 2;
    counters = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (intptr_t number = 1; number < THREADS; number++) {
        sigset_t all, before;

        /* Signals are the first thread's. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        if (pthread_create(&other, NULL, go_round, (void *)number) != 0)
            return 2;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    go_round((void *)0);
    return 0;
}
