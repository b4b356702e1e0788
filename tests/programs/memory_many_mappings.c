/*
 * feature: thousands of mappings
 */
#include "check.h"

#define PAGES 6000UL

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = check_map(PAGES * PAGE);
    check_fill(memory, PAGES * PAGE, 1);
    for (size_t page = 0; page < PAGES; page += 2)
        SYS(mprotect(memory + page * PAGE, PAGE, PROT_READ));
    check_move();
    check_filled("many mappings", memory, PAGES * PAGE, 1);
    for (size_t page = 1; page < PAGES; page += 2)
        check_fill(memory + page * PAGE, PAGE, page);
    SYS(mprotect(memory, PAGES * PAGE, PROT_READ | PROT_WRITE));
    for (size_t page = 0; page < PAGES; page++)
        if (page % 2)
            check_filled("a written page", memory + page * PAGE, PAGE, page);
        else
            CHECK(check_page_is_filled(memory, page * PAGE, 1), "page %zu changed", page);
    return check_passed();
}
