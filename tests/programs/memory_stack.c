/*
 * feature: the stack, deep, and growing after the move; thread stacks too
 */
#include "check.h"

static uint64_t descend(int depth, int bottom) {
    volatile uint64_t frame[256];
    for (size_t i = 0; i < COUNT(frame); i++)
        frame[i] = check_tag(i, (uint64_t)depth);
    if (depth == bottom && bottom == 500)
        check_move();
    uint64_t sum = depth < bottom ? descend(depth + 1, bottom) : 0;
    for (size_t i = 0; i < COUNT(frame); i++)
        CHECK(frame[i] == check_tag(i, (uint64_t)depth), "the frame at depth %d changed", depth);
    return sum + (uint64_t)depth;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    CHECK(descend(0, 500) == 500 * 501 / 2, "a wrong sum");
    /* 6 MiB: far below what the stack had grown to. */
    CHECK(descend(0, 3000) == 3000L * 3001 / 2, "a wrong sum");
    return check_passed();
}
