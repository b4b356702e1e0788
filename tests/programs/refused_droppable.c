/*
 * feature: memory that the kernel may drop (MAP_DROPPABLE)
 * refused: may be dropped
 */
#include "check.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08 /* linux/mman.h, Linux 6.11 */
#endif

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_DROPPABLE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    memory[0] = 1;
    check_move();
    CHECK(memory[0] == 1 || memory[0] == 0, "the memory has another value");
    return check_passed();
}
