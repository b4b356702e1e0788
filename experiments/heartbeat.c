/*
 * Keeps the moments in which it ran: a CLOCK_MONOTONIC timestamp about every 50 us, beside MIB of memory that
 * it has written and leaves alone. On SIGUSR1 it writes them to FILE and ends. When it is ready it writes an
 * empty FILE.ready.
 *
 *     heartbeat MIB FILE
 */
#define _GNU_SOURCE
#include "workload.h"

#include <signal.h>
#include <sys/prctl.h>

enum { BEATS = 1 << 20, PERIOD_NS = 50000 };

static volatile sig_atomic_t asked;

static void on_signal(int number) {
    (void)number;
    asked = 1;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    char ready[4096];
    uint64_t count = 0, *beats = malloc(BEATS * sizeof *beats);
    struct sigaction action = {.sa_handler = on_signal};
    if (!beats || sigaction(SIGUSR1, &action, NULL) || prctl(PR_SET_TIMERSLACK, 1))
        fail("heartbeat");
    touched_memory(strtoull(argv[1], NULL, 0) << 20);
    snprintf(ready, sizeof ready, "%s.ready", argv[2]);
    write_numbers(ready, beats, 0);
    while (!asked) {
        struct timespec period = {0, PERIOD_NS};
        beats[count++ % BEATS] = now_ns();
        clock_nanosleep(CLOCK_MONOTONIC, 0, &period, NULL);
    }
    write_numbers(argv[2], beats, count < BEATS ? count : BEATS);
    return 0;
}
