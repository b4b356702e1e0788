/*
 * feature: locked memory (mlock, mlock2 with MLOCK_ONFAULT, mlockall)
 * limits: the destination's RLIMIT_MEMLOCK must allow it
 */
#include "smaps.h"

#define LENGTH (64 * PAGE)

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *locked = check_map(LENGTH), *on_fault = check_map(LENGTH), *part = check_map(LENGTH),
         *free_one = check_map(LENGTH);
    check_fill(locked, LENGTH / 2, 1);
    check_fill(on_fault, LENGTH / 2, 2);
    check_fill(part, LENGTH, 3);
    check_fill(free_one, LENGTH, 4);
    SYS(mlock(locked, LENGTH));
    SYS(mlock2(on_fault, LENGTH, MLOCK_ONFAULT));
    SYS(mlock(part + 8 * PAGE, 8 * PAGE));
    char *const places[] = {locked, on_fault, part, part + 8 * PAGE, part + 16 * PAGE, free_one};
    char *before[COUNT(places)];
    for (size_t i = 0; i < COUNT(places); i++)
        before[i] = vm_flags(places[i]);
    check_move();
    check_filled("locked memory", locked, LENGTH / 2, 1);
    check_zero("locked memory never written", locked + LENGTH / 2, LENGTH / 2);
    check_filled("memory locked on fault", on_fault, LENGTH / 2, 2);
    check_zero("memory locked on fault, never written", on_fault + LENGTH / 2, LENGTH / 2);
    check_filled("partly locked memory", part, LENGTH, 3);
    check_filled("memory not locked", free_one, LENGTH, 4);
    /* Until the last page is in, memory is locked page by page. */
    for (size_t i = 0; i < COUNT(places); i++)
        for (int tries = 0; tries < 1000 && strcmp(before[i], vm_flags(places[i])) != 0; tries++)
            usleep(10000);
    for (size_t i = 0; i < COUNT(places); i++)
        CHECK(strcmp(before[i], vm_flags(places[i])) == 0, "place %zu: %s was %s", i, vm_flags(places[i]),
              before[i]);
    SYS(munlockall());
    CHECK(!strstr(vm_flags(locked), " lo"), "munlockall left a lock");
    return check_passed();
}
