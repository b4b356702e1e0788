/*
 * Touches its memory at random and times what it waits for: MIB of memory, written once, then left alone
 * until SIGUSR1. From then on it reads random pages that are missing, one after the other, until COUNT of
 * them had to be waited for or SIGUSR1 comes again, writes the nanoseconds that each took to FILE, and sleeps
 * on. What took less than 5 us was there already, and is left out here as in the floor. When it is ready it
 * writes an empty FILE.ready. A page that is not what it was ends it with status 3.
 *
 *     toucher MIB COUNT FILE
 */
#define _GNU_SOURCE
#include "workload.h"

#include <signal.h>

enum { LEAST_NS = 5000, LOOKS = 100 };

static volatile sig_atomic_t asked;

static void on_signal(int number) {
    (void)number;
    asked++;
}

/* A random page that is not there, so that each touch is a fault; any page where a hundred looks found none.
 */
static uint64_t missing_page(char *memory, uint64_t pages, uint64_t *seed) {
    struct timespec moment = {0, 100000};
    unsigned char present = 1;
    uint64_t page = 0;
    for (int looks = 0; looks < LOOKS && present & 1; looks++) {
        page = next_random(seed) % pages;
        if (mincore(memory + page * PAGE, PAGE, &present))
            fail("mincore");
    }
    /* Nearly all of it is there: what is left to find is not worth a processor. */
    if (present & 1)
        nanosleep(&moment, NULL);
    return page;
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    char ready[4096];
    uint64_t size = strtoull(argv[1], NULL, 0) << 20, most = strtoull(argv[2], NULL, 0), count = 0, seed = 7;
    uint64_t *times = calloc(most, sizeof *times);
    struct sigaction action = {.sa_handler = on_signal};
    if (!times || sigaction(SIGUSR1, &action, NULL))
        fail("toucher");
    char *memory = touched_memory(size);
    /* Each page begins with its own number, and the table of results is there. */
    for (uint64_t i = 0; i < size / PAGE; i++)
        *(uint64_t *)(memory + i * PAGE) = i;
    for (uint64_t i = 0; i < most; i++)
        times[i] = 1;
    snprintf(ready, sizeof ready, "%s.ready", argv[3]);
    write_numbers(ready, times, 0);
    struct timespec moment = {0, 1000000};
    while (!asked)
        nanosleep(&moment, NULL);
    /* The table itself first: it has moved too, and is not what is measured. */
    for (uint64_t i = 0; i < most; i += PAGE / sizeof *times)
        ((volatile uint64_t *)times)[i] = 1;
    while (count < most && asked == 1) {
        uint64_t page = missing_page(memory, size / PAGE, &seed), begin = now_ns();
        uint64_t found = *(volatile uint64_t *)(memory + page * PAGE);
        uint64_t took = now_ns() - begin;
        if (found != page)
            return 3;
        if (took >= LEAST_NS)
            times[count++] = took;
    }
    write_numbers(argv[3], times, count);
    for (;;)
        pause();
}
