/*
 * feature: madvise's lasting marks (huge pages, fork, dump, access pattern)
 * limits: advice for a whole mapping that is given between the last snapshot and the freeze may be missed
 */
#include "smaps.h"

#define LENGTH (4UL << 20)

int main(int argc, char **argv) {
    static const int advice[] = {MADV_NORMAL,     MADV_HUGEPAGE, MADV_NOHUGEPAGE,
                                 MADV_DONTFORK,   MADV_DONTDUMP, MADV_WIPEONFORK,
                                 MADV_SEQUENTIAL, MADV_RANDOM,   MADV_MERGEABLE};
    char *places[COUNT(advice)], *before[COUNT(advice)];
    check_start(argc, argv);
    for (size_t i = 0; i < COUNT(advice); i++) {
        places[i] = check_map(LENGTH);
        /* A kernel without huge pages or merging says EINVAL. */
        if (madvise(places[i], LENGTH, advice[i]) != 0)
            CHECK(errno == EINVAL, "madvise %d: %s", advice[i], strerror(errno));
        check_fill(places[i], LENGTH / 2, i);
    }
    for (size_t i = 0; i < COUNT(advice); i++)
        before[i] = vm_flags(places[i]);
    check_move();
    for (size_t i = 0; i < COUNT(advice); i++) {
        CHECK(strcmp(before[i], vm_flags(places[i])) == 0, "advice %d: %s was %s", advice[i],
              vm_flags(places[i]), before[i]);
        check_filled("advised memory", places[i], LENGTH / 2, i);
        check_zero("advised memory never touched", places[i] + LENGTH / 2, LENGTH / 2);
    }
    return check_passed();
}
