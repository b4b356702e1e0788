/*
 * feature: memory that cannot be compressed
 */
#include "check.h"

#define WORDS (2UL << 20)

int main(int argc, char **argv) {
    check_start(argc, argv);
    uint64_t *memory = check_map(WORDS * 8);
    for (size_t i = 0; i < WORDS; i++)
        memory[i] = check_tag(i, 3);
    check_move();
    for (size_t i = 0; i < WORDS; i++)
        CHECK(memory[i] == check_tag(i, 3), "word %zu changed", i);
    return check_passed();
}
