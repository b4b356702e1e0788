#define _GNU_SOURCE
#include "kernel/memory/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* The end of the mapped range was reached: both ways then return 0 or a short count. */
static int advance(ssize_t moved, size_t *done) {
    if (moved < 0)
        return errno == EINTR ? 0 : -errno;
    if (moved == 0)
        return -EFAULT;
    *done += (size_t)moved;
    return 0;
}

int lm_memory_read(int pid, uint64_t address, void *out, size_t length) {
    size_t done = 0;

    while (done < length) {
        struct iovec here = {(char *)out + done, length - done};
        struct iovec there = {(void *)(uintptr_t)(address + done), length - done};
        int error = advance(process_vm_readv(pid, &here, 1, &there, 1, 0), &done);

        if (error != 0)
            return error;
    }
    return 0;
}

int lm_memory_write(int pid, uint64_t address, const void *bytes, size_t length) {
    size_t done = 0;

    while (done < length) {
        struct iovec here = {(char *)(uintptr_t)bytes + done, length - done};
        struct iovec there = {(void *)(uintptr_t)(address + done), length - done};
        int error = advance(process_vm_writev(pid, &here, 1, &there, 1, 0), &done);

        if (error != 0)
            return error;
    }
    return 0;
}

int lm_memory_read_forced(int mem_fd, uint64_t address, void *out, size_t length) {
    size_t done = 0;

    while (done < length) {
        int error = advance(pread(mem_fd, (char *)out + done, length - done, (off_t)(address + done)), &done);

        if (error != 0)
            return error;
    }
    return 0;
}

int lm_memory_write_forced(int mem_fd, uint64_t address, const void *bytes, size_t length) {
    size_t done = 0;

    while (done < length) {
        int error = advance(
            pwrite(mem_fd, (const char *)bytes + done, length - done, (off_t)(address + done)), &done);

        if (error != 0)
            return error;
    }
    return 0;
}

static void close_stream(FILE **stream) {
    if (*stream != NULL)
        fclose(*stream);
}

static void close_file(const int *file) {
    if (*file >= 0)
        close(*file);
}

int lm_memory_write_shared(int pid, uint64_t address, const void *bytes, size_t length) {
    __attribute__((cleanup(close_stream))) FILE *maps = NULL;
    __attribute__((cleanup(close_file))) int file = -1;
    char path[96], line[512], shared = 0, name[64];
    unsigned long start = 0, end = 0, offset = 0;

    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    maps = fopen(path, "re");
    if (maps == NULL)
        return errno == ENOENT ? -ESRCH : -errno;
    do {
        if (fgets(line, sizeof line, maps) == NULL)
            return -EFAULT;
        name[0] = 0;
        if (sscanf(line, "%lx-%lx %*3c%c %lx %*s %*s %63[^\n]", &start, &end, &shared, &offset, name) < 4)
            end = 0;
    } while (end <= address);
    /* No file of the host's is ever written to by this way. */
    if (start > address || length > end - address || shared != 's' ||
        strcmp(name, "/dev/zero (deleted)") != 0)
        return -EFAULT;
    snprintf(path, sizeof path, "/proc/%d/map_files/%lx-%lx", pid, start, end);
    file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return -errno;
    for (size_t done = 0; done < length;) {
        off_t place = (off_t)(offset + (address - start) + done);
        int error = advance(pwrite(file, (const char *)bytes + done, length - done, place), &done);

        if (error != 0)
            return error;
    }
    return 0;
}
