#define _GNU_SOURCE
#include "source_server/pages/readers.h"

#include "kernel/memory/pagemap.h"
#include "kernel/pidfd.h"
#include "wire/page_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int open_of(int pid, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Read by the descriptor. Returns 0, or 1 at the end of what it leads to with the rest in `*at` and `*size`, or -errno. */
static int read_on(int fd, uint64_t address, char **at, size_t *size) {
    while (*size) {
        ssize_t count = pread(fd, *at, *size, (off_t)address);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count ? -errno : 1;
        *at += count;
        address += (uint64_t)count;
        *size -= (size_t)count;
    }
    return 0;
}

/* Read in one call, unless the process itself may not read there (PROT_NONE): the descriptor may. Its end means that
 * the process has no memory any more. */
static int read_process(const struct lm_page_reader *reader, const struct iovec *local,
                        const struct iovec *remote, int parts) {
    ssize_t size = 0;
    for (int i = 0; i < parts; i++)
        size += (ssize_t)local[i].iov_len;
    if (process_vm_readv(reader->pid, local, (unsigned long)parts, remote, (unsigned long)parts, 0) == size)
        return 0;
    for (int i = 0; i < parts; i++) {
        char *at = local[i].iov_base;
        size_t left = local[i].iov_len;
        int error = read_on(reader->memory, (uintptr_t)remote[i].iov_base, &at, &left);
        if (error)
            return error > 0 ? -ESRCH : error;
    }
    return 0;
}

/* What is read while the process is being ended may be anything: its memory may have gone before. */
static int process_read(const struct lm_page_reader *reader, const struct iovec *local,
                        const struct iovec *remote, int parts) {
    int error = read_process(reader, local, remote, parts);
    return lm_pidfd_is_ending(reader->process) ? -ESRCH : error;
}

/* The next runs that are there. Where there is no process any more, or it is being ended, no page counts as absent: it would
 * be taken for zeros. */
static int next_runs(const struct lm_page_reader *reader, uint64_t *at, uint64_t end,
                     struct lm_page_run *runs, size_t capacity, size_t *count) {
    int error = lm_pagemap_runs(reader->pagemap, *at, end, LM_PAGES_PRESENT, runs, capacity, count, at);
    return error == -ENODATA || lm_pidfd_is_ending(reader->process) ? -ESRCH : error;
}

static int process_present(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                           bool *present) {
    uint64_t end = address + (uint64_t)pages * LM_PAGE_SIZE, at = address;
    while (at < end) {
        struct lm_page_run runs[LM_RUN_PAGES];
        size_t count;
        int error = next_runs(reader, &at, end, runs, LM_RUN_PAGES, &count);
        if (error)
            return error;
        for (size_t i = 0; i < count; i++)
            memset(present + (runs[i].start - address) / LM_PAGE_SIZE, true,
                   (runs[i].end - runs[i].start) / LM_PAGE_SIZE * sizeof *present);
    }
    return 0;
}

static int process_next(const struct lm_page_reader *reader, uint64_t address, uint64_t end, uint64_t *next) {
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

static int object_read(const struct lm_page_reader *reader, const struct iovec *local,
                       const struct iovec *remote, int parts) {
    for (int i = 0; i < parts; i++) {
        char *at = local[i].iov_base;
        size_t left = local[i].iov_len;
        int error = read_on(reader->memory, (uintptr_t)remote[i].iov_base, &at, &left);
        if (error < 0)
            return error;
        memset(at, 0, left);
    }
    return 0;
}

static int object_present(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                          bool *present) {
    memset(present, true, pages * sizeof *present);
    return 0;
}

static int object_next(const struct lm_page_reader *reader, uint64_t address, uint64_t end, uint64_t *next) {
    off_t data = reader->shares_offset ? (off_t)address : lseek(reader->memory, (off_t)address, SEEK_DATA);
    if (data < 0 && errno == EINVAL) /* a file system that knows no holes */
        data = (off_t)address;
    if (data < 0 && errno != ENXIO)
        return -errno;
    *next = data < 0 || (uint64_t)data > end ? end : (uint64_t)data / LM_PAGE_SIZE * LM_PAGE_SIZE;
    return 0;
}

static const struct lm_page_reader_operations process_operations = {process_read, process_present,
                                                                    process_next};
static const struct lm_page_reader_operations object_operations = {object_read, object_present, object_next};

int lm_page_reader_init_process(struct lm_page_reader *reader, uint32_t space, int pid) {
    *reader = (struct lm_page_reader){
        .operations = &process_operations, .space = space, .pid = pid, .memory = -1, .pagemap = -1};
    int error = reader->process = lm_pidfd_open(pid, 0);
    if (error >= 0)
        error = reader->memory = open_of(pid, "mem");
    if (error >= 0)
        error = reader->pagemap = open_of(pid, "pagemap");
    if (error >= 0)
        return 0;
    lm_page_reader_deinit(reader);
    return error;
}

int lm_page_reader_init_object(struct lm_page_reader *reader, uint32_t space, int fd) {
    *reader = (struct lm_page_reader){
        .operations = &object_operations, .space = space, .process = -1, .pagemap = -1};
    char path[sizeof "/proc/self/fd/" + 10];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    /* Of its own, since looking for data moves the offset. Only its owner may read it without a trace. */
    reader->memory = open(path, O_RDONLY | O_CLOEXEC | O_NOATIME);
    if (reader->memory < 0)
        reader->memory = open(path, O_RDONLY | O_CLOEXEC);
    if (reader->memory < 0) {
        reader->memory = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        reader->shares_offset = true;
    }
    return reader->memory < 0 ? -errno : 0;
}

void lm_page_reader_deinit(struct lm_page_reader *reader) {
    int *const owned[] = {&reader->process, &reader->memory, &reader->pagemap};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) {
        if (*owned[i] >= 0)
            close(*owned[i]);
        *owned[i] = -1;
    }
}

int lm_page_reader_read(const struct lm_page_reader *reader, uint64_t address, uint32_t pages, void *buffer) {
    size_t size = (size_t)pages * LM_PAGE_SIZE;
    struct iovec local = {.iov_base = buffer, .iov_len = size};
    struct iovec remote = {.iov_base = (void *)address, .iov_len = size};
    return reader->operations->read(reader, &local, &remote, 1);
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
    return reader->operations->read(reader, local, remote, parts);
}

int lm_page_reader_read_each(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                             const bool *wanted, void *buffer, bool *poison) {
    for (uint32_t i = 0; i < pages; i++) {
        size_t offset = (size_t)i * LM_PAGE_SIZE;
        poison[i] = false;
        if (!wanted[i])
            continue;
        int error = lm_page_reader_read(reader, address + offset, 1, (char *)buffer + offset);
        if (error && !lm_page_is_poison(error))
            return error;
        poison[i] = error != 0;
    }
    return 0;
}

bool lm_page_is_poison(int error) {
    return error == -EFAULT || error == -EIO;
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
    return reader->operations->read(reader, local, remote, parts);
}

int lm_page_reader_present(const struct lm_page_reader *reader, uint64_t address, uint32_t pages,
                           bool *present) {
    memset(present, false, pages * sizeof *present);
    return reader->operations->present(reader, address, pages, present);
}

int lm_page_reader_next(const struct lm_page_reader *reader, uint64_t address, uint64_t end, uint64_t *next) {
    return reader->operations->next(reader, address, end, next);
}

bool lm_page_is_zero(const void *page) {
    /* A page equals itself shifted by a word if it holds one word over and over; memcmp is vectorized. */
    const uint64_t *words = page;
    return !words[0] && !words[LM_PAGE_SIZE / 16] && !memcmp(page, words + 1, LM_PAGE_SIZE - sizeof *words);
}
