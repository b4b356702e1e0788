/*
 * feature: munmap and new mappings over ranges whose pages are missing: nothing old appears there
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1), *gone = missing_map(2);
    check_move();
    SYS(munmap(gone, LENGTH));
    SYS(munmap(memory + 100 * PAGE, 200 * PAGE));
    char *fresh = mmap(memory + 100 * PAGE, 100 * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(fresh == memory + 100 * PAGE, "mmap: %s", strerror(errno));
    fresh = mmap(memory + 1000 * PAGE, 100 * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(fresh == memory + 1000 * PAGE, "mmap: %s", strerror(errno));
    char *elsewhere = check_map(LENGTH);
    check_zero("a new mapping in the hole", memory + 100 * PAGE, 100 * PAGE);
    check_zero("a mapping over old pages", fresh, 100 * PAGE);
    check_zero("a new mapping", elsewhere, LENGTH);
    missing_check("before the hole", memory, 0, 100, 1);
    missing_check("after the hole", memory, 300, 700, 1);
    missing_check("after the new mapping", memory, 1100, PAGES - 1100, 1);
    check_zero("a mapping over old pages, later", fresh, 100 * PAGE);
    return check_passed();
}
