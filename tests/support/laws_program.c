/*
 * A program that shows whether a law of the handover was broken.
 *
 * Usage: laws_program FOLDER WARM COLD (pages). Every thread appends records {thread, number} to FOLDER/log,
 * whose numbers only grow: two copies that both run, or one that ran and was thrown away, leave a number
 * twice or out. The warm pages are checked and counted up for ever; the cold ones are checked when SIGUSR2
 * comes. What must not be is told by a record of BROKEN and the end.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)

enum thread { WALKER, SLEEPER, VECTOR, READER, SIGNALS, COLD, ALL_COLD, BROKEN };

struct record {
    uint64_t thread;
    uint64_t number;
};

struct shared {
    int log;
    int pipe[2];
    uint64_t numbers[BROKEN + 1];
    _Atomic int cold_wanted;
    uint64_t warm_pages, cold_pages;
};

/* One record; only its own thread may write it. */
static void say(struct shared *shared, enum thread thread) {
    struct record record = {thread, ++shared->numbers[thread]};
    if (write(shared->log, &record, sizeof record) != sizeof record)
        _exit(98);
}

static void broken(struct shared *shared, uint64_t what) {
    struct record record = {BROKEN, what};
    if (write(shared->log, &record, sizeof record) != sizeof record)
        _exit(98);
    _exit(99);
}

static void rest(long microseconds) {
    struct timespec left = {0, microseconds * 1000};
    while (nanosleep(&left, &left) != 0)
        ;
}

static uint64_t tag(uint64_t place) {
    uint64_t x = place * 0x9e3779b97f4a7c15u + 0x1234567;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 27);
}

static struct shared *shared_for_handler;

static void on_usr1(int number) {
    (void)number;
    say(shared_for_handler, SIGNALS);
}

static void on_usr2(int number) {
    (void)number;
    shared_for_handler->cold_wanted = 1;
}

__attribute__((noreturn)) static void *sleep_on(void *argument) {
    for (;;) {
        rest(3000);
        say(argument, SLEEPER);
    }
}

__attribute__((noreturn)) static void *read_on(void *argument) {
    struct shared *shared = argument;
    char byte;
    for (uint8_t wanted = 0;; wanted++) {
        if (read(shared->pipe[0], &byte, 1) != 1 || (uint8_t)byte != wanted)
            broken(shared, 1);
        say(shared, READER);
    }
}

/* Keeps a value in vector registers for a while, without a call in between; what came back. */
static uint64_t through_vectors(uint64_t value, uint64_t turns) {
    uint64_t low, high;
    __asm__ volatile("movq %3, %%xmm7\n\t"
                     "pshufd $0x44, %%xmm7, %%xmm15\n\t"
                     "pxor %%xmm7, %%xmm7\n"
                     "1:\n\t"
                     "paddq %%xmm15, %%xmm7\n\t"
                     "psubq %%xmm15, %%xmm7\n\t"
                     "dec %2\n\t"
                     "jnz 1b\n\t"
                     "paddq %%xmm7, %%xmm15\n\t"
                     "movq %%xmm15, %0\n\t"
                     "psrldq $8, %%xmm15\n\t"
                     "movq %%xmm15, %1\n\t"
                     : "=&r"(low), "=&r"(high), "+r"(turns)
                     : "r"(value)
                     : "xmm7", "xmm15", "cc");
    return low == high ? low : ~value;
}

__attribute__((noreturn)) static void *compute_on(void *argument) {
    struct shared *shared = argument;
    for (;;) {
        uint64_t value = tag(shared->numbers[VECTOR]);
        if (through_vectors(value, 100000) != value)
            broken(shared, 2);
        say(shared, VECTOR);
        rest(500);
    }
}

static void check_cold(struct shared *shared, const uint64_t *cold) {
    for (uint64_t page = 0; page < shared->cold_pages; page++) {
        for (uint64_t word = 0; word < WORDS; word++)
            if (cold[page * WORDS + word] != tag(page * WORDS + word))
                broken(shared, 1000 + page);
        say(shared, COLD);
    }
    say(shared, ALL_COLD);
}

static void begin(struct shared *shared, void *(*body)(void *)) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, body, shared) != 0)
        _exit(97);
}

static uint64_t *pages(uint64_t count) {
    uint64_t *memory =
        mmap(NULL, (count + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        _exit(97);
    return memory;
}

int main(int argc, char **argv) {
    static struct shared shared;
    char path[1000];
    struct sigaction usr1 = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    struct sigaction usr2 = {.sa_handler = on_usr2, .sa_flags = SA_RESTART};
    sigset_t blocked;

    if (argc < 4)
        return 96;
    snprintf(path, sizeof path, "%s/log", argv[1]);
    shared.log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    shared.warm_pages = strtoull(argv[2], NULL, 10);
    shared.cold_pages = strtoull(argv[3], NULL, 10);
    if (shared.log < 0 || pipe(shared.pipe) != 0)
        return 97;
    shared_for_handler = &shared;
    uint64_t *warm = pages(shared.warm_pages), *cold = pages(shared.cold_pages);
    for (uint64_t word = 0; word < shared.cold_pages * WORDS; word++)
        cold[word] = tag(word);
    for (uint64_t page = 0; page < shared.warm_pages; page++)
        warm[page * WORDS] = tag(page);
    /* The other threads take neither signal, so that the walker takes them. */
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGUSR2);
    sigaddset(&blocked, SIGWINCH);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    sigaction(SIGUSR1, &usr1, NULL);
    sigaction(SIGUSR2, &usr2, NULL);
    signal(SIGPIPE, SIG_IGN);
    begin(&shared, sleep_on);
    begin(&shared, read_on);
    begin(&shared, compute_on);
    sigdelset(&blocked, SIGUSR1);
    sigdelset(&blocked, SIGUSR2);
    pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    for (uint64_t walk = 0;; walk++) {
        char byte = (char)walk;
        for (uint64_t page = 0; page < shared.warm_pages; page++) {
            uint64_t *words = warm + page * WORDS;
            if (words[0] != tag(page) || words[WORDS - 1] != walk)
                broken(&shared, 100 + page);
            words[WORDS - 1]++;
        }
        if (write(shared.pipe[1], &byte, 1) != 1)
            broken(&shared, 3);
        say(&shared, WALKER);
        if (atomic_exchange(&shared.cold_wanted, 0))
            check_cold(&shared, cold);
        rest(500);
    }
}
