/*
 * feature: a file open with O_DIRECT, whose reads go to memory past the page tables
 * limits: nothing is copied in rounds; pre-copy compares all memory in the freeze, hybrid becomes post-copy
 * untracked: yes
 */
#define _GNU_SOURCE
#include "check.h"

#define PAGES 256UL

static volatile bool stop;
static uint64_t *counter;

/* Direct reads into one page after the other, while the process is being copied. */
static void *read_on(void *memory) {
    int file = SYS(open(check_path("direct"), O_RDONLY | O_DIRECT));
    for (size_t page = 0; !stop; page = (page + 1) % PAGES) {
        char *place = (char *)memory + page * PAGE;
        memset(place, 1, PAGE);
        CHECK(SYS(pread(file, place, PAGE, (off_t)(page * PAGE))) == PAGE, "a short read");
        CHECK(check_page_is_filled(memory, page * PAGE, 3), "page %zu is not what the file holds", page);
        ++*counter;
        check_sleep(1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = check_map(PAGES * PAGE), *still = check_map(PAGES * PAGE);
    counter = check_map(PAGE);
    check_fill(memory, PAGES * PAGE, 3);
    check_fill(still, PAGES * PAGE, 4);
    int file = SYS(open(check_path("direct"), O_RDWR | O_CREAT | O_TRUNC, 0644));
    check_write(file, memory, PAGES * PAGE);
    SYS(fsync(file));
    close(file);
    pthread_t reader = check_thread(read_on, memory);
    check_sleep(50);
    check_move();
    uint64_t before = *counter;
    check_sleep(300);
    stop = true;
    PTHREAD(pthread_join(reader, NULL));
    CHECK(*counter > before, "the reader stood still");
    check_filled("what was read", memory, PAGES * PAGE, 3);
    check_filled("what was left alone", still, PAGES * PAGE, 4);
    return check_passed();
}
