/*
 * feature: a heap whose pages are missing shrinks and grows again: zeros where it was given back
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *other = missing_map(2);
    uintptr_t end = (uintptr_t)SYS(sbrk(0));
    SYS(sbrk((intptr_t)((PAGE - end % PAGE) % PAGE)));
    char *heap = SYS(sbrk((intptr_t)LENGTH));
    for (size_t page = 0; page < PAGES; page++)
        missing_fill_page(heap, page, 1);
    check_move();
    SYS(sbrk(-(intptr_t)(LENGTH / 2)));
    SYS(sbrk((intptr_t)LENGTH));
    check_zero("the heap grown again", heap + LENGTH / 2, LENGTH / 2);
    missing_check("the heap", heap, 0, PAGES / 2, 1);
    missing_check("other memory", other, 0, PAGES, 2);
    check_zero("the heap grown again, later", heap + LENGTH / 2, LENGTH / 2);
    return check_passed();
}
