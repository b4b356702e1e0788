/*
 * feature: private anonymous memory, every page with its own content, touched at random after the move
 */
#include "check.h"

#define PAGES 16384UL

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = check_map(PAGES * PAGE);
    check_fill(memory, PAGES * PAGE, 1);
    check_move();
    for (size_t i = 0; i < PAGES; i++) {
        size_t page = check_tag(i, 9) % PAGES;
        CHECK(check_page_is_filled(memory, page * PAGE, 1), "page %zu is not what was written", page);
    }
    check_filled("anonymous memory", memory, PAGES * PAGE, 1);
    check_fill(memory, PAGES * PAGE, 2);
    check_filled("anonymous memory", memory, PAGES * PAGE, 2);
    return check_passed();
}
