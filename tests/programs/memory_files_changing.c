/*
 * feature: mappings of files that come and go while the process is being moved
 */
#include "check.h"

#define PAGES 4

static volatile bool stop;
static volatile uint64_t rounds;

/* Maps its own program, writes to one page of it and takes it away again, all the time. */
static void *keep_mapping(void *argument) {
    int file = SYS(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    char expected[PAGES * PAGE];
    CHECK(pread(file, expected, sizeof(expected), 0) == sizeof(expected), "the program is too short");
    for (uint64_t round = 0; !stop; round++) {
        char *memory = mmap(NULL, sizeof(expected), PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
        CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
        check_fill(memory + PAGE, PAGE, round);
        check_sleep(1);
        CHECK(memcmp(memory, expected, PAGE) == 0, "the first page is not the file's");
        CHECK(check_tag(0, round) == *(uint64_t *)(memory + PAGE), "the second page is not what was written");
        CHECK(memcmp(memory + 2 * PAGE, expected + 2 * PAGE, 2 * PAGE) == 0, "the rest is not the file's");
        SYS(munmap(memory, sizeof(expected)));
        rounds++;
    }
    close(file);
    return argument;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    pthread_t thread = check_thread(keep_mapping, NULL);
    check_move();
    check_goes_on(thread, &rounds, &stop);
    return check_passed();
}
