#define _GNU_SOURCE
#include "source_server/custody.h"

#include <errno.h>
#include <sys/uio.h>

int lm_park_decide(int pid, uint64_t flag_address, uint32_t word) {
    struct iovec here = {&word, sizeof word};
    struct iovec there = {(void *)(uintptr_t)flag_address, sizeof word};

    return process_vm_writev(pid, &here, 1, &there, 1, 0) == sizeof word ? 0 : -errno;
}
