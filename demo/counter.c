/* Counts up in a file that stays open, and compares a piece of its memory each time. Linked statically: of its files the
   other host needs this one alone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned char pattern(size_t at) {
    return (unsigned char)(at * 2654435761u >> 13 | 1);
}

int main(int count, char **words) {
    size_t size = count > 2 ? (size_t)atol(words[2]) << 20 : 16 << 20;
    unsigned char *memory = malloc(size);
    int log = open(words[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (!memory || log < 0)
        return 1;
    for (size_t at = 0; at < size; at++)
        memory[at] = pattern(at);
    for (size_t number = 0;; number++) {
        size_t at = number * 40503u * 4096u % size;
        int wrong = memory[at] != pattern(at);
        dprintf(log, wrong ? "wrong\n" : "%zu\n", number);
        usleep(2000);
    }
}
