/*
 * feature: shared anonymous memory, written to through a second mapping that comes and goes
 */
#include "check.h"

#define LENGTH (64 * PAGE)

static volatile bool stop;
static volatile uint64_t rounds;

/* Writes through one mapping and reads through the other, all the time. */
static void *keep_writing(void *argument) {
    char *memory = argument;
    for (uint64_t round = 0; !stop; round++) {
        char *other = mremap(memory, 0, LENGTH, MREMAP_MAYMOVE);
        CHECK(other != MAP_FAILED, "mremap: %s", strerror(errno));
        check_fill(other, LENGTH, round);
        check_sleep(2);
        SYS(munmap(other, LENGTH));
        check_sleep(2);
        check_filled("shared memory", memory, LENGTH, round);
        rounds++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    pthread_t thread = check_thread(keep_writing, memory);
    check_move();
    check_goes_on(thread, &rounds, &stop);
    return check_passed();
}
