/*
 * feature: shared mappings of a file: what was written is in the file, and goes there after the move
 * limits: the file must be the same on the destination, for example on shared storage
 */
#include "check.h"

#define PAGES 32UL

static volatile bool stop;

/* The file's modification time moves on during the snapshot. */
static void *write_on(void *page) {
    while (!stop) {
        ++*(volatile uint64_t *)page;
        SYS(msync(page, PAGE, MS_SYNC));
        check_sleep(1);
    }
    return NULL;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    int file = SYS(open(check_path("shared"), O_RDWR | O_CREAT, 0644));
    SYS(ftruncate(file, (PAGES + 1) * PAGE));
    char *memory = mmap(NULL, (PAGES + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *second = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, file, 0);
    CHECK(memory != MAP_FAILED && second != MAP_FAILED, "mmap: %s", strerror(errno));
    close(file);
    check_fill(memory, PAGES * PAGE, 1);
    pthread_t writer = check_thread(write_on, memory + PAGES * PAGE);
    check_move();
    stop = true;
    PTHREAD(pthread_join(writer, NULL));
    check_filled("the mapping", memory, PAGES * PAGE, 1);
    check_filled("the second mapping", second, PAGES * PAGE, 1);
    check_fill(memory, PAGES / 2 * PAGE, 2);
    check_filled("the second mapping", second, PAGES / 2 * PAGE, 2);
    SYS(msync(memory, PAGES * PAGE, MS_SYNC));
    file = SYS(open(check_path("shared"), O_RDONLY));
    char *content = malloc(PAGES * PAGE);
    CHECK(SYS(read(file, content, PAGES * PAGE)) == (ssize_t)(PAGES * PAGE), "a short read");
    CHECK(memcmp(content, memory, PAGES * PAGE) == 0, "the file is not what the mapping shows");
    return check_passed();
}
