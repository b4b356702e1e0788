/*
 * feature: transparent huge pages; a new mapping while the process is being moved
 */
#include "check.h"

#define HUGE (2UL << 20)

static volatile bool stop;
static volatile uint64_t rounds;

/* Maps, fills, checks and unmaps, all the time, also during snapshot, staging and freeze. */
static void *keep_mapping(void *argument) {
    for (uint64_t round = 0; !stop; round++) {
        char *memory = check_map(8 * PAGE);
        check_fill(memory, 8 * PAGE, round);
        check_sleep(1);
        check_filled("a short-lived mapping", memory, 8 * PAGE, round);
        SYS(munmap(memory, 8 * PAGE));
        rounds++;
    }
    return argument;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = check_map(9 * HUGE);
    char *aligned = (char *)(((uintptr_t)memory + HUGE - 1) & ~(HUGE - 1));
    madvise(aligned, 8 * HUGE, MADV_HUGEPAGE);
    check_fill(aligned, 8 * HUGE, 1);
    pthread_t thread = check_thread(keep_mapping, NULL);
    check_move();
    check_filled("huge pages", aligned, 8 * HUGE, 1);
    check_goes_on(thread, &rounds, &stop);
    return check_passed();
}
