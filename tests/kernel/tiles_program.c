/*
 * Holds a pattern in an AMX tile, or with "empty" releases the tiles, and says "ready". For every byte that it
 * then reads it says "kept" if the pattern is still there. Ends with 77 where the processor has no tiles.
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18, ROWS = 16, ROW = 64, NO_TILES = 77 };

struct configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

int main(int count, char **words) {
    static _Alignas(64) struct configuration shape = {.palette = 1, .row_bytes = {ROW}, .rows = {ROWS}};
    static _Alignas(64) unsigned char pattern[ROWS * ROW], found[ROWS * ROW];
    int empty = count > 1 && strcmp(words[1], "empty") == 0;
    char byte = 0;

    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) != 0)
        return NO_TILES;
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (unsigned char)(i * 7 + 1);
    _tile_loadconfig(&shape);
    _tile_loadd(0, pattern, ROW);
    if (empty)
        _tile_release();
    if (write(1, "ready\n", 6) != 6)
        return 1;
    while (read(0, &byte, 1) == 1) {
        if (!empty)
            _tile_stored(0, found, ROW);
        if (write(1, empty || memcmp(found, pattern, sizeof found) == 0 ? "kept\n" : "lost\n", 5) != 5)
            return 1;
    }
    return 0;
}
