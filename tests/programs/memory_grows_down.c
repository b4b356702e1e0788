/*
 * feature: a mapping that grows down (MAP_GROWSDOWN)
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *room = mmap(NULL, 4 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(munmap(room, 4 << 20));
    char *top = room + (4 << 20) - 4 * PAGE;
    char *memory = mmap(top, 4 * PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(memory == top, "mmap: %s", strerror(errno));
    check_fill(memory, 4 * PAGE, 1);
    for (size_t page = 1; page < 20; page++)
        check_fill(memory - page * PAGE, PAGE, page);
    check_move();
    check_filled("the mapping", memory, 4 * PAGE, 1);
    for (size_t page = 1; page < 20; page++)
        check_filled("the grown part", memory - page * PAGE, PAGE, page);
    for (size_t page = 20; page < 100; page++) {
        check_zero("a newly grown page", memory - page * PAGE, PAGE);
        check_fill(memory - page * PAGE, PAGE, page);
    }
    check_filled("the mapping", memory, 4 * PAGE, 1);
    return check_passed();
}
