/*
 * A program that sees whatever is done to its threads: registers, red zone, vector state, masks, sleeps,
 * signals.
 *
 * home_program FILE COMPUTING SLEEPING: the leader and COMPUTING threads compute, SLEEPING threads sleep.
 * FILE becomes an array of counters: one for each thread, the leader first, then the signals of the leader's
 * handler. Ends with status 1 and a word when anything is not as it should be.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64, ROUNDS = 20000, NAP_NS = 3000000, REGISTERS = 13, VECTORS = 16 };

struct tables {
    uint64_t rbp;
    uint64_t registers[REGISTERS];
    uint64_t red_zone[2];
    _Alignas(32) unsigned char before[VECTORS][32], after[VECTORS][32];
};

static _Atomic uint64_t *counters;
static int signals_at;

static void fail(const char *what, int number) {
    fprintf(stderr, "thread %d: %s\n", number, what);
    _exit(1);
}

static void on_signal(int number) {
    (void)number;
    counters[signals_at]++;
}

#define EACH_VECTOR(what)                                                                                    \
    what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10) what(11)        \
        what(12) what(13) what(14) what(15)
#define LOAD(n) "vmovdqu 32*" #n "(%%rsi), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", 32*" #n "(%%rsi)\n"

/* Built without a red zone of its own (-mno-red-zone): this one uses it. */
static __attribute__((noinline)) void keep(struct tables *t) {

    void *table = t, *vectors = t->before;

    asm volatile(
        "mov %%rbp, (%%rax)\n"
        "mov %%rax, %%r15\n" EACH_VECTOR(
            LOAD) "mov $101, %%rax\n"
                  "mov %%rax, -8(%%rsp)\n"
                  "mov %%rax, -128(%%rsp)\n"
                  "mov $1, %%rax\n mov $2, %%rbx\n mov $3, %%rdx\n mov $4, %%rsi\n mov $5, %%rdi\n mov $6, "
                  "%%rbp\n"
                  "mov $7, %%r8\n mov $8, %%r9\n mov $9, %%r10\n mov $10, %%r11\n mov $11, %%r12\n mov $12, "
                  "%%r13\n"
                  "mov $13, %%r14\n"
                  "mov %[rounds], %%ecx\n"
                  "1: dec %%ecx\n"
                  "jnz 1b\n"
                  "mov %%rax, 8(%%r15)\n mov %%rbx, 16(%%r15)\n mov %%rdx, 24(%%r15)\n mov %%rsi, 32(%%r15)\n"
                  "mov %%rdi, 40(%%r15)\n mov %%rbp, 48(%%r15)\n mov %%r8, 56(%%r15)\n mov %%r9, 64(%%r15)\n"
                  "mov %%r10, 72(%%r15)\n mov %%r11, 80(%%r15)\n mov %%r12, 88(%%r15)\n mov %%r13, "
                  "96(%%r15)\n"
                  "mov %%r14, 104(%%r15)\n"
                  "mov -8(%%rsp), %%rax\n mov %%rax, 112(%%r15)\n"
                  "mov -128(%%rsp), %%rax\n mov %%rax, 120(%%r15)\n"
                  "lea %c[after](%%r15), %%rsi\n" EACH_VECTOR(STORE) "mov (%%r15), %%rbp\n"
        : "+a"(table), "+S"(vectors)
        : [rounds] "i"(ROUNDS), [after] "i"(offsetof(struct tables, after))
        : "rbx", "rcx", "rdx", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc",
          "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15");
}

static void compute(int number, struct tables *t) {
    for (size_t i = 0; i < sizeof t->before; i++)
        ((unsigned char *)t->before)[i] = (unsigned char)(i * 7 + (size_t)number);
    memset(t->after, 0, sizeof t->after);
    keep(t);
    for (uint64_t i = 0; i < REGISTERS; i++)
        if (t->registers[i] != i + 1)
            fail("a register changed", number);
    if (t->red_zone[0] != 101 || t->red_zone[1] != 101)
        fail("the red zone changed", number);
    if (memcmp(t->before, t->after, sizeof t->before) != 0)
        fail("a vector register changed", number);
}

static void nap(int number) {
    struct timespec begin, end, wanted = {0, NAP_NS};

    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (nanosleep(&wanted, NULL) != 0)
        fail("a sleep was interrupted", number);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if ((end.tv_sec - begin.tv_sec) * 1000000000L + end.tv_nsec - begin.tv_nsec < NAP_NS)
        fail("a sleep was too short", number);
}

/* Each thread has a mask of its own; the handler is the leader's. */
static void own_mask(int number, sigset_t *mask) {
    sigemptyset(mask);
    sigaddset(mask, SIGUSR2);
    if (number != 0)
        sigaddset(mask, SIGRTMIN);
    for (int bit = 0; bit < 6; bit++)
        if (number >> bit & 1)
            sigaddset(mask, SIGRTMIN + 1 + bit);
}

static void live(int number, bool sleeping) {
    struct tables tables;
    sigset_t wanted, now;

    own_mask(number, &wanted);
    pthread_sigmask(SIG_SETMASK, &wanted, NULL);
    for (;;) {
        if (sleeping)
            nap(number);
        else
            compute(number, &tables);
        pthread_sigmask(SIG_BLOCK, NULL, &now);
        for (int signal = 1; signal <= SIGRTMAX; signal++)
            if (sigismember(&wanted, signal) != sigismember(&now, signal))
                fail("the signal mask changed", number);
        counters[number]++;
    }
}

static void *computing(void *number) {
    live((int)(intptr_t)number, false);
    return NULL;
}

static void *sleeping(void *number) {
    live((int)(intptr_t)number, true);
    return NULL;
}

int main(int argc, char **argv) {
    int file = argc == 4 ? open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    int computers = argc == 4 ? atoi(argv[2]) : 0, sleepers = argc == 4 ? atoi(argv[3]) : 0;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    pthread_t thread;
    sigset_t blocked;

    if (file < 0 || computers + sleepers > MOST - 2 || ftruncate(file, 4096) != 0)
        return 2;
    counters = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counters == MAP_FAILED)
        return 2;
    signals_at = 1 + computers + sleepers;
    sigaction(SIGRTMIN, &action, NULL);
    own_mask(0, &blocked);
    sigaddset(&blocked, SIGRTMIN);
    pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    for (int i = 1; i <= computers + sleepers; i++)
        if (pthread_create(&thread, NULL, i <= computers ? computing : sleeping, (void *)(intptr_t)i) != 0)
            return 2;
    live(0, false);
}
