#define _GNU_SOURCE
#include "kernel/memory/memory.h"

#include <errno.h>
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
