#define _GNU_SOURCE
#include "tests/fuzz/c/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MOST_MIB = 64 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the process has at the start and MOST_MIB more is all that it may ever have. */
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    char **words = calloc((size_t)*argc + 2, sizeof *words);
    FILE *statm = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;

    if (words == NULL || statm == NULL || fscanf(statm, "%*u %lu", &pages) != 1)
        return 1;
    fclose(statm);
    for (int i = 0; i < *argc; i++)
        words[i] = (*argv)[i];
    if (asprintf(&words[*argc], "-rss_limit_mb=%lu",
                 (pages * (unsigned long)sysconf(_SC_PAGESIZE) >> 20) + MOST_MIB) < 0)
        return 1;
    ++*argc;
    *argv = words;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    return TARGET(data, size);
}
