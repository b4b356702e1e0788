/*
 * feature: madvise(MADV_DONTNEED, MADV_FREE) and fresh writes while pages are missing: discarded pages are
 *          zeros
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1);
    check_move();
    SYS(madvise(memory + 500 * PAGE, 1000 * PAGE, MADV_DONTNEED));
    check_zero("discarded pages", memory + 500 * PAGE, 300 * PAGE);
    missing_fill_page(memory, 900, 9);
    /* Bulk would bring the old ones about now. */
    check_sleep(1500);
    check_zero("discarded pages, later", memory + 500 * PAGE, 400 * PAGE);
    missing_check_page("a page written after the discard", memory, 900, 900, 9);
    check_zero("discarded pages, later", memory + 901 * PAGE, 599 * PAGE);
    missing_check("kept pages", memory, 0, 500, 1);
    missing_check("kept pages", memory, 1500, PAGES - 1500, 1);
    SYS(madvise(memory, 100 * PAGE, MADV_FREE));
    for (size_t page = 0; page < 100; page++) {
        /* The kernel may or may not have taken it: it is the old page or zeros, never another. */
        if (*(volatile uint64_t *)(memory + page * PAGE) == 0)
            check_zero("a freed page", memory + page * PAGE, PAGE);
        else
            missing_check_page("a freed page", memory, page, page, 1);
    }
    return check_passed();
}
