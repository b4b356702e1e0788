/*
 * feature: mlock, mlockall, MADV_POPULATE and mprotect over pages that are missing
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1);
    check_move();
    SYS(mprotect(memory, 64 * PAGE, PROT_READ));
    SYS(mprotect(memory + 64 * PAGE, 64 * PAGE, PROT_NONE));
    missing_check("read-only pages", memory, 0, 64, 1);
    SYS(mlock(memory + 200 * PAGE, 200 * PAGE));
    missing_check("locked pages", memory, 200, 200, 1);
    SYS(madvise(memory + 600 * PAGE, 100 * PAGE, MADV_POPULATE_READ));
    SYS(madvise(memory + 700 * PAGE, 100 * PAGE, MADV_POPULATE_WRITE));
    missing_check("populated pages", memory, 600, 200, 1);
    SYS(mlockall(MCL_CURRENT));
    SYS(mprotect(memory, 128 * PAGE, PROT_READ | PROT_WRITE));
    missing_check("all pages", memory, 0, PAGES, 1);
    SYS(munlockall());
    return check_passed();
}
