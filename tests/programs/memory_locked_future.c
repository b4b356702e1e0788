/*
 * feature: memory that is locked as soon as it is mapped (mlockall with MCL_FUTURE)
 * limits: where nothing is locked yet it is not seen, and ends with the move
 */
#include "smaps.h"

#define LENGTH (64 * PAGE)

int main(int argc, char **argv) {
    check_start(argc, argv);
    SYS(mlockall(MCL_CURRENT | MCL_FUTURE));
    char *before = check_map(LENGTH);
    check_fill(before, LENGTH, 1);
    check_move();
    check_filled("locked memory", before, LENGTH, 1);
    char *after = check_map(LENGTH), *flags = vm_flags(after);
    CHECK(strstr(flags, " lo") && !strstr(flags, " lf"), "new memory has the flags %s", flags);
    SYS(munlockall());
    CHECK(!strstr(vm_flags(check_map(LENGTH)), " lo"), "munlockall left it on");
    return check_passed();
}
