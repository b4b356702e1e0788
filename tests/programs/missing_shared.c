/*
 * feature: shared anonymous memory whose pages are missing
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    for (size_t page = 0; page < PAGES; page++)
        if (page % 8)
            missing_fill_page(memory, page, 1);
    check_move();
    pid_t child = SYS(fork());
    if (child == 0) {
        for (size_t page = PAGES; page-- > PAGES / 2;)
            if (page % 8)
                missing_check_page("in a child", memory, page, page, 1);
        missing_fill_page(memory, 8, 7);
        _exit(0);
    }
    for (size_t page = 0; page < PAGES / 2; page++)
        if (page % 8)
            missing_check_page("in the parent", memory, page, page, 1);
    missing_wait_child(child);
    missing_check_page("written by the child", memory, 8, 8, 7);
    check_zero("a page never written", memory + 16 * PAGE, PAGE);
    return check_passed();
}
