/*
 * feature: a large reservation of which few pages were ever touched; the others read as zeros
 */
#include "check.h"

#define LENGTH (8UL << 30)
#define STRIDE (97UL << 20)

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory =
        mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    for (size_t at = 0; at + PAGE <= LENGTH; at += STRIDE)
        check_fill(memory + at / PAGE * PAGE, PAGE, at);
    /* Read, never written: the zero page. */
    for (size_t at = 10 * PAGE; at < 20 * PAGE; at += PAGE)
        CHECK(memory[at] == 0, "not zero to begin with");
    check_move();
    for (size_t at = 0; at + PAGE <= LENGTH; at += STRIDE) {
        check_filled("a touched page", memory + at / PAGE * PAGE, PAGE, at);
        if (at + 2 * PAGE <= LENGTH)
            check_zero("a page never touched", memory + at / PAGE * PAGE + PAGE, PAGE);
    }
    check_zero("a page only read", memory + 10 * PAGE, 10 * PAGE);
    memory[15 * PAGE] = 1;
    CHECK(memory[15 * PAGE] == 1 && memory[16 * PAGE] == 0, "a write into a zero page");
    return check_passed();
}
