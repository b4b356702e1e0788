#define _GNU_SOURCE
#include "source_server/pages/page_reader.h"

#include "kernel/memory/pagemap.h"
#include "wire/page_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

int lm_page_reader_init_process(struct lm_page_reader *reader, uint32_t space, int pid) {
    char path[64];
    *reader = (struct lm_page_reader){.space = space, .pid = pid, .memory = -1, .pagemap = -1};
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    reader->memory = open(path, O_RDONLY | O_CLOEXEC);
    if (reader->memory < 0)
        return -errno;
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    reader->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (reader->pagemap < 0) {
        int error = errno;
        lm_page_reader_deinit(reader);
        return -error;
    }
    return 0;
}

int lm_page_reader_init_object(struct lm_page_reader *reader, uint32_t space, int fd) {
    *reader = (struct lm_page_reader){.space = space, .pagemap = -1};
    reader->memory = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return reader->memory < 0 ? -errno : 0;
}

void lm_page_reader_deinit(struct lm_page_reader *reader) {
    if (reader->memory >= 0)
        close(reader->memory);
    if (reader->pagemap >= 0)
        close(reader->pagemap);
    reader->memory = reader->pagemap = -1;
}

/* By the descriptor, which also reads pages that the process itself may not (PROT_NONE). The end of a
 * process's memory means that the process has none any more; past the end of an object there are zeros. */
static int read_by_descriptor(const struct lm_page_reader *reader, uint64_t address, size_t size,
                              void *buffer) {
    char *at = buffer;
    while (size) {
        ssize_t count = pread(reader->memory, at, size, (off_t)address);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return -errno;
        if (count == 0) {
            if (reader->pid)
                return -ESRCH;
            memset(at, 0, size);
            return 0;
        }
        at += count;
        address += (uint64_t)count;
        size -= (size_t)count;
    }
    return 0;
}

int lm_page_reader_read(const struct lm_page_reader *reader, uint64_t address, uint32_t pages, void *buffer) {
    size_t size = (size_t)pages * LM_PAGE_SIZE;
    if (reader->pid) {
        struct iovec local = {.iov_base = buffer, .iov_len = size};
        struct iovec remote = {.iov_base = (void *)address, .iov_len = size};
        ssize_t count = process_vm_readv(reader->pid, &local, 1, &remote, 1, 0);
        if (count == (ssize_t)size)
            return 0;
    }
    return read_by_descriptor(reader, address, size, buffer);
}

/* All parts in one call where the kernel lets us. */
static int read_parts(const struct lm_page_reader *reader, const struct iovec *local,
                      const struct iovec *remote, int parts) {
    ssize_t size = 0;
    for (int i = 0; i < parts; i++)
        size += (ssize_t)local[i].iov_len;
    if (reader->pid &&
        process_vm_readv(reader->pid, local, (unsigned long)parts, remote, (unsigned long)parts, 0) == size)
        return 0;
    for (int i = 0; i < parts; i++) {
        int error =
            read_by_descriptor(reader, (uintptr_t)remote[i].iov_base, local[i].iov_len, local[i].iov_base);
        if (error)
            return error;
    }
    return 0;
}

int lm_page_reader_read_some(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                             const bool *wanted, void *buffer) {
    struct iovec local[LM_RUN_PAGES], remote[LM_RUN_PAGES];
    int parts = 0;
    for (uint32_t i = 0; i < pages;) {
        uint32_t begin = i;
        while (i < pages && wanted[i] == wanted[begin])
            i++;
        if (!wanted[begin])
            continue;
        size_t offset = (size_t)begin * LM_PAGE_SIZE, length = (size_t)(i - begin) * LM_PAGE_SIZE;
        local[parts] = (struct iovec){.iov_base = (char *)buffer + offset, .iov_len = length};
        remote[parts++] = (struct iovec){.iov_base = (void *)(address + offset), .iov_len = length};
    }
    return read_parts(reader, local, remote, parts);
}

int lm_page_reader_read_scattered(const struct lm_page_reader *reader, const uint64_t *addresses,
                                  uint32_t pages, void *buffer) {
    struct iovec local[LM_RUN_PAGES], remote[LM_RUN_PAGES];
    int parts = 0;
    for (uint32_t i = 0; i < pages; parts++) {
        uint32_t begin = i;
        do
            i++;
        while (i < pages && addresses[i] == addresses[i - 1] + LM_PAGE_SIZE);
        size_t offset = (size_t)begin * LM_PAGE_SIZE, length = (size_t)(i - begin) * LM_PAGE_SIZE;
        local[parts] = (struct iovec){.iov_base = (char *)buffer + offset, .iov_len = length};
        remote[parts] = (struct iovec){.iov_base = (void *)addresses[begin], .iov_len = length};
    }
    return read_parts(reader, local, remote, parts);
}

/* The next runs that are there; a process without memory has none to tell of. */
static int next_runs(const struct lm_page_reader *reader, uint64_t *at, uint64_t end,
                     struct lm_page_run *runs, size_t capacity, size_t *count) {
    int error = lm_pagemap_runs(reader->pagemap, *at, end, LM_PAGES_PRESENT, runs, capacity, count, at);
    return error == -ENODATA ? -ESRCH : error;
}

int lm_page_reader_present(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                           bool *present) {
    memset(present, !reader->pid, pages * sizeof *present);
    uint64_t end = address + (uint64_t)pages * LM_PAGE_SIZE, at = address;
    while (reader->pid && at < end) {
        struct lm_page_run runs[LM_RUN_PAGES];
        size_t count;
        int error =
            lm_pagemap_runs(reader->pagemap, at, end, LM_PAGES_PRESENT, runs, LM_RUN_PAGES, &count, &at);
        if (error)
            return error;
        for (size_t i = 0; i < count; i++)
            memset(present + (runs[i].start - address) / LM_PAGE_SIZE, true,
                   (runs[i].end - runs[i].start) / LM_PAGE_SIZE * sizeof *present);
    }
    return 0;
}

int lm_page_reader_next(const struct lm_page_reader *reader, uint64_t address, uint64_t end, uint64_t *next) {
    if (!reader->pid) {
        off_t data = lseek(reader->memory, (off_t)address, SEEK_DATA);
        if (data < 0 && errno != ENXIO)
            return -errno;
        *next = data < 0 || (uint64_t)data > end ? end : (uint64_t)data / LM_PAGE_SIZE * LM_PAGE_SIZE;
        return 0;
    }
    while (address < end) {
        struct lm_page_run run;
        size_t count;
        int error = next_runs(reader, &address, end, &run, 1, &count);
        if (error)
            return error;
        if (count) {
            *next = run.start;
            return 0;
        }
    }
    *next = end;
    return 0;
}

bool lm_page_is_zero(const void *page) {
    /* A page equals itself shifted by a word if it holds one word over and over; memcmp is vectorized. */
    const uint64_t *words = page;
    return !words[0] && !words[LM_PAGE_SIZE / 16] && !memcmp(page, words + 1, LM_PAGE_SIZE - sizeof *words);
}
