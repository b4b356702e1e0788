/*
 * Writes to its memory at random: MIB of memory, written once; then RATE MiB of pages a second (0: as fast as
 * it can), all of them in the first SHARE percent, or in as many pages that lie SPREAD evenly over all of it.
 * It keeps how many pages it wrote in every 10 ms, with CLOCK_MONOTONIC of the first, and on SIGUSR1 writes
 * these numbers to FILE and ends. When it is ready it writes an empty FILE.ready.
 *
 *     writer MIB RATE SHARE SPREAD FILE
 */
#define _GNU_SOURCE
#include "workload.h"

#include <signal.h>
#include <string.h>

enum { STEPS = 1 << 16, STEP_NS = 10000000, BURST = 64 };

static volatile sig_atomic_t asked;
static uint64_t numbers[1 + STEPS];

static void on_signal(int number) {
    (void)number;
    asked = 1;
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 2;
    char ready[4096];
    uint64_t size = strtoull(argv[1], NULL, 0) << 20, rate = strtoull(argv[2], NULL, 0) * 256, seed = 7;
    uint64_t pages = size / PAGE * strtoull(argv[3], NULL, 0) / 100, written = 0;
    uint64_t apart = strtoull(argv[4], NULL, 0) && pages ? size / PAGE / pages : 1;
    struct sigaction action = {.sa_handler = on_signal};
    if (!pages || sigaction(SIGUSR1, &action, NULL))
        fail("writer");
    char *memory = touched_memory(size);
    /* Its pages exist before they are needed. */
    memset(numbers, 1, sizeof numbers);
    memset(numbers, 0, sizeof numbers);
    snprintf(ready, sizeof ready, "%s.ready", argv[5]);
    write_numbers(ready, numbers, 0);
    uint64_t begin = numbers[0] = now_ns(), step = 0;
    while (!asked) {
        uint64_t now = now_ns();
        step = (now - begin) / STEP_NS < STEPS ? (now - begin) / STEP_NS : STEPS - 1;
        /* What a pause has held up is not made up for. */
        uint64_t due = (now - begin) * rate / 1000000000;
        if (rate && written >= due) {
            struct timespec moment = {0, 500000};
            nanosleep(&moment, NULL);
            continue;
        }
        if (rate && due - written > rate / 20)
            written = due - BURST;
        for (int i = 0; i < BURST; i++)
            ++*(uint64_t *)(memory + next_random(&seed) % pages * apart * PAGE);
        written += BURST;
        numbers[1 + step] += BURST;
    }
    write_numbers(argv[5], numbers, 2 + step);
    return 0;
}
