/*
 * feature: exit while most pages are still missing
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

static void *fault(void *argument) {
    char *memory = argument;
    for (size_t page = PAGES; page-- > 0;)
        missing_check_page("while another thread exits", memory, page, page, 1);
    pause();
    return NULL;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1);
    check_move();
    check_thread(fault, memory);
    missing_check("before the exit", memory, 0, 3, 1);
    return check_passed();
}
