/*
 * Where there is no libFuzzer: driver TARGET SEED COUNT [FILE...] runs a target on the files, and on so many inputs that
 * are made of them by small changes. What breaks can be repeated by its seed.
 */
#include "tests/fuzz/c/fuzz.h"

#include <stdio.h>
#include <string.h>

enum { LONGEST = 1024, KEPT = 64 };

static const struct target {
    const char *name;
    int (*run)(const uint8_t *data, size_t size);
} targets[] = {{"frames", fuzz_frames},
               {"requests", fuzz_requests},
               {"discards", fuzz_discards},
               {"values", fuzz_values},
               {"maps", fuzz_maps}};

static uint64_t next(uint64_t *state) {
    /* xorshift64* (Vigna 2016). */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

static size_t change(uint8_t *data, size_t size, uint64_t *state) {
    static const uint8_t odd[] = {0, 1, 0x7f, 0x80, 0x90, 0xc6, 0xdd, 0xff, '\n', ' ', '-', '0'};
    for (uint64_t count = 1 + next(state) % 8; count; count--) {
        size_t place = size ? next(state) % size : 0;
        switch (next(state) % 4) {
        case 0:
            if (size)
                data[place] ^= (uint8_t)(1 << next(state) % 8);
            break;
        case 1:
            if (size)
                data[place] = odd[next(state) % sizeof odd];
            break;
        case 2:
            for (uint64_t more = next(state) % 40; more && size < LONGEST; more--)
                data[size++] = (uint8_t)next(state);
            break;
        default:
            size = next(state) % 8 ? size : place;
        }
    }
    return size;
}

static size_t read_input(const char *path, uint8_t *data) {
    FILE *file = fopen(path, "rb");
    size_t size = file ? fread(data, 1, LONGEST, file) : 0;
    if (file)
        fclose(file);
    return size;
}

int main(int argc, char **argv) {
    static uint8_t kept[KEPT][LONGEST];
    static size_t sizes[KEPT];
    if (argc < 4)
        return 2;
    uint64_t state = strtoull(argv[2], NULL, 10) * 2 + 1, count = strtoull(argv[3], NULL, 10);
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        if (strcmp(argv[1], targets[i].name) != 0)
            continue;
        for (int file = 4; file < argc; file++) {
            size_t place = (size_t)file % KEPT;
            sizes[place] = read_input(argv[file], kept[place]);
            targets[i].run(kept[place], sizes[place]);
        }
        for (uint64_t run = 0; run < count; run++) {
            size_t place = next(&state) % KEPT;
            uint8_t input[LONGEST];
            memcpy(input, kept[place], sizes[place]);
            size_t size = change(input, sizes[place], &state);
            targets[i].run(input, size);
            place = next(&state) % KEPT;
            memcpy(kept[place], input, size);
            sizes[place] = size;
        }
        return 0;
    }
    return 2;
}
