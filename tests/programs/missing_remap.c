/*
 * feature: mremap of ranges whose pages are missing: moved, grown, shrunk, onto another place
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1), *second = missing_map(2), *place = check_map(2 * LENGTH);
    check_move();
    missing_check("before", memory, 50, 10, 1);
    char *moved = mremap(memory, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    CHECK(moved == place, "mremap: %s", strerror(errno));
    missing_check("moved", moved, 1000, 100, 1);
    char *grown = mremap(second, LENGTH, 2 * LENGTH, MREMAP_MAYMOVE);
    CHECK(grown != MAP_FAILED, "mremap: %s", strerror(errno));
    missing_check("grown", grown, 0, 200, 2);
    check_zero("the grown part", grown + LENGTH, LENGTH);
    char *shrunk = mremap(grown, 2 * LENGTH, LENGTH / 2, 0);
    CHECK(shrunk == grown, "mremap: %s", strerror(errno));
    /* The middle of the moved one goes elsewhere, and leaves a hole. */
    char *middle = mremap(moved + 500 * PAGE, 100 * PAGE, 100 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                          place + LENGTH + PAGE);
    CHECK(middle == place + LENGTH + PAGE, "mremap: %s", strerror(errno));
    for (size_t page = 0; page < 100; page++)
        missing_check_page("the middle", middle, page, 500 + page, 1);
    missing_check("moved", moved, 0, 500, 1);
    missing_check("moved", moved, 600, PAGES - 600, 1);
    missing_check("shrunk", shrunk, 0, PAGES / 2, 2);
    return check_passed();
}
