#define _GNU_SOURCE
#include "kernel/memory/own_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { BUFFER = 16384, ENTRIES = 512 };

struct mapping {
    uint64_t start, end;
    char permissions[4];
    bool anonymous; /* without a file: its inode is 0 */
    bool special;   /* [stack], [vdso] and the like, but not [heap] */
};

/* /proc/self/maps read line by line without the C library's streams: after a fork their locks may be held. */
struct maps {
    int fd;
    int begin, end;
    char buffer[BUFFER];
};

static bool next_line(struct maps *maps, char *line, int size) {
    int length = 0;
    for (;;) {
        if (maps->begin == maps->end) {
            ssize_t got = read(maps->fd, maps->buffer, sizeof maps->buffer);
            if (got <= 0)
                return false;
            maps->begin = 0;
            maps->end = (int)got;
        }
        char letter = maps->buffer[maps->begin++];
        if (letter == '\n')
            break;
        if (length < size - 1)
            line[length++] = letter;
    }
    line[length] = 0;
    return true;
}

static uint64_t number(const char **at, unsigned base) {
    uint64_t value = 0;
    for (;; (*at)++) {
        unsigned digit = **at >= '0' && **at <= '9'   ? (unsigned)(**at - '0')
                         : **at >= 'a' && **at <= 'f' ? (unsigned)(**at - 'a') + 10
                                                      : 99;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

/* start-end permissions offset major:minor inode path: proc_pid_maps(5). */
static bool next_mapping(struct maps *maps, struct mapping *mapping) {
    char line[512];
    if (!next_line(maps, line, sizeof line))
        return false;
    const char *at = line;
    mapping->start = number(&at, 16);
    at++;
    mapping->end = number(&at, 16);
    for (int i = 0; i < 4 && at[1 + i]; i++)
        mapping->permissions[i] = at[1 + i];
    at += 6;
    number(&at, 16);
    at++;
    number(&at, 16);
    at++;
    number(&at, 16);
    at++;
    mapping->anonymous = number(&at, 10) == 0;
    while (*at == ' ')
        at++;
    mapping->special = at[0] == '[' && at[1] != 'h' && at[1] != 'a';
    return true;
}

static int open_maps(struct maps *maps) {
    maps->begin = maps->end = 0;
    maps->fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    return maps->fd < 0 ? -errno : 0;
}

/* The stretches of a mapping that are in memory, each at once. */
static int populate(int pagemap, const struct mapping *mapping) {
    const uint64_t page = 4096, present = 1ull << 63;
    uint64_t entries[ENTRIES], from = 0;
    bool inside = false;
    for (uint64_t at = mapping->start; at < mapping->end;) {
        uint64_t left = (mapping->end - at) / page, count = left < ENTRIES ? left : ENTRIES;
        if (pread(pagemap, entries, count * sizeof *entries, (off_t)(at / page * sizeof *entries)) !=
            (ssize_t)(count * sizeof *entries))
            return -EIO;
        for (uint64_t i = 0; i < count; i++, at += page) {
            bool here = entries[i] & present;
            if (here && !inside)
                from = at;
            if (!here && inside && madvise((void *)from, at - from, MADV_POPULATE_WRITE))
                return -errno;
            inside = here;
        }
    }
    return inside && madvise((void *)from, mapping->end - from, MADV_POPULATE_WRITE) ? -errno : 0;
}

int lm_own_memory_populate(void) {
    struct maps maps;
    struct mapping mapping;
    int error = open_maps(&maps);
    if (error)
        return error;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    error = pagemap < 0 ? -errno : 0;
    /* Memory that was only reserved, gigabytes perhaps, would take long to go through. */
    const uint64_t most = 1ull << 30;
    while (!error && next_mapping(&maps, &mapping)) {
        bool writable = mapping.permissions[1] == 'w' && mapping.permissions[3] == 'p';
        if (!writable || mapping.end - mapping.start > most)
            continue;
        error = populate(pagemap, &mapping);
        /* It does not matter if another thread has just taken a mapping away. */
        if (error == -ENOMEM || error == -EFAULT)
            error = 0;
    }
    if (pagemap >= 0)
        close(pagemap);
    close(maps.fd);
    return error;
}

int lm_own_memory_drop(const void *const *kept, int count) {
#ifdef __SANITIZE_ADDRESS__
    /* The sanitizer's own memory looks like memory that nobody needs. */
    (void)kept, (void)count;
    return 0;
#else
    struct maps maps;
    struct mapping mapping;
    int error = open_maps(&maps);
    if (error)
        return error;
    /* The zeroed data of a library directly follows a file's mapping, and its code may read it. */
    uint64_t data_end = 0;
    while (next_mapping(&maps, &mapping)) {
        bool needed = !mapping.anonymous || mapping.special || mapping.permissions[3] != 'p' ||
                      mapping.start == data_end;
        data_end = !mapping.anonymous ? mapping.end : 0;
        for (int i = 0; i < count; i++) {
            uint64_t address = (uint64_t)(uintptr_t)kept[i];
            needed |= address >= mapping.start && address < mapping.end;
        }
        if (!needed)
            madvise((void *)mapping.start, mapping.end - mapping.start, MADV_DONTNEED);
    }
    close(maps.fd);
    return 0;
#endif
}
