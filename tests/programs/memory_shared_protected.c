/*
 * feature: shared anonymous memory of which parts may be read, executed, or not touched at all
 */
#include "check.h"

#define LENGTH (16 * PAGE)

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    char *whole = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(whole != MAP_FAILED, "mmap: %s", strerror(errno));
    check_fill(memory, LENGTH, 1);
    check_fill(whole, LENGTH, 2);
    SYS(mprotect(memory + 4 * PAGE, 4 * PAGE, PROT_READ));
    SYS(mprotect(memory + 8 * PAGE, 4 * PAGE, PROT_READ | PROT_EXEC));
    SYS(mprotect(memory + 12 * PAGE, 4 * PAGE, PROT_NONE));
    SYS(mprotect(whole, LENGTH, PROT_READ));
    check_move();
    check_filled("the part that may be written to", memory, 4 * PAGE, 1);
    SYS(mprotect(memory, LENGTH, PROT_READ | PROT_WRITE));
    check_filled("memory in four parts", memory, LENGTH, 1);
    check_filled("memory that may be read", whole, LENGTH, 2);
    return check_passed();
}
