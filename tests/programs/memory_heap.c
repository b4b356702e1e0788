/*
 * feature: the heap, which malloc goes on using; brk grows and shrinks after the move
 */
#include "check.h"

#define BLOCKS 2000

static char *blocks[BLOCKS];

static size_t length_of(size_t i) {
    return 16 + check_tag(i, 5) % 3000;
}

static void expect_block(size_t i) {
    for (size_t at = 0; at < length_of(i); at++)
        CHECK(blocks[i][at] == (char)(i + at), "block %zu changed at +%zu", i, at);
}

static void allocate(size_t i) {
    blocks[i] = malloc(length_of(i));
    CHECK(blocks[i], "no memory");
    for (size_t at = 0; at < length_of(i); at++)
        blocks[i][at] = (char)(i + at);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    for (size_t i = 0; i < BLOCKS; i++)
        allocate(i);
    for (size_t i = 0; i < BLOCKS; i += 3)
        free(blocks[i]);
    char *before = sbrk(0);
    check_move();
    CHECK(sbrk(0) == before, "the break is at %p, was at %p", sbrk(0), (void *)before);
    for (size_t i = 0; i < BLOCKS; i += 3)
        allocate(i);
    for (size_t i = 0; i < BLOCKS; i++)
        expect_block(i);
    char *grown = SYS(sbrk(1 << 20));
    check_zero("the grown heap", (char *)(((uintptr_t)grown + PAGE - 1) & ~(PAGE - 1)), (1 << 20) - PAGE);
    memset(grown, 7, 1 << 20);
    SYS(sbrk(-(1 << 20)));
    for (size_t i = 0; i < BLOCKS; i++) {
        expect_block(i);
        free(blocks[i]);
    }
    return check_passed();
}
