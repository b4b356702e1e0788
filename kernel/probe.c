#define _GNU_SOURCE
#include "kernel/probe.h"

#include "kernel/kernel.h"
#include "kernel/pidfd.h"
#include "kernel/memory/userfaultfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

static void close_descriptor(const int *descriptor) {
    if (*descriptor >= 0)
        close(*descriptor);
}

#define OWNED __attribute__((cleanup(close_descriptor)))

static int userfaultfd_by_call(void) {
    int made = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    return made < 0 ? -errno : made;
}

static int userfaultfd_by_device(void) {
    OWNED int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int made = -1;

    if (device < 0)
        return -errno;
    made = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    return made < 0 ? -errno : made;
}

static int any_userfaultfd(void) {
    int made = userfaultfd_by_call();

    if (made < 0)
        made = userfaultfd_by_device();
    return made < 0 ? -ENOSYS : made;
}

int lm_probe_userfaultfd(void) {
    OWNED int made = userfaultfd_by_call();

    return made < 0 ? made : 0;
}

int lm_probe_userfaultfd_device(void) {
    OWNED int made = userfaultfd_by_device();

    return made < 0 ? made : 0;
}

int lm_probe_userfaultfd_events(void) {
    OWNED int made = any_userfaultfd();

    return made < 0 ? made : lm_userfaultfd_handshake(made);
}

int lm_probe_write_tracking(void) {
    OWNED int made = any_userfaultfd();
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};

    if (made < 0)
        return made;
    return ioctl(made, UFFDIO_API, &api) == 0 ? 0 : -errno;
}

int lm_probe_pagemap_scan(void) {
    OWNED int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    struct lm_page_region region;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t here = (uint64_t)(uintptr_t)&region & ~(page - 1);
    struct lm_pagemap_scan request = {
        .size = sizeof request,
        .start = here,
        .end = here + page,
        .vec = (uint64_t)(uintptr_t)&region,
        .vec_len = 1,
        .category_anyof_mask = LM_PAGE_IS_PRESENT | LM_PAGE_IS_SWAPPED,
        .return_mask = LM_PAGE_IS_PRESENT,
    };

    if (pagemap < 0)
        return -errno;
    return ioctl(pagemap, LM_PAGEMAP_SCAN, &request) < 0 ? -errno : 0;
}

int lm_probe_soft_dirty(void) {
    OWNED int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t entry = 0;
    ssize_t length = 0;

    if (page == MAP_FAILED)
        return -errno;
    *(volatile char *)page = 1;
    length = pread(pagemap, &entry, sizeof entry, (off_t)((uintptr_t)page / 4096 * sizeof entry));
    munmap(page, 4096);
    return length == sizeof entry && entry >> 55 & 1 ? 0 : -ENOSYS;
}

/* The status of a child made for a try, which exits with an errno. */
static int result_of(pid_t child) {
    int status = 0;

    if (child < 0)
        return -errno;
    while (waitpid(child, &status, __WALL) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

int lm_probe_chosen_id(void) {
    pid_t own = (pid_t)syscall(SYS_getpid);
    struct clone_args how = {.exit_signal = SIGCHLD, .set_tid = (uint64_t)(uintptr_t)&own, .set_tid_size = 1};
    long child = syscall(SYS_clone3, &how, sizeof how);

    if (child == 0)
        _exit(0);
    if (child < 0)
        return errno == EEXIST ? 0 : -errno;
    return result_of((pid_t)child);
}

static int try_unshare(int namespaces) {
    pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

    if (child == 0)
        _exit(unshare(namespaces) == 0 ? 0 : errno);
    return result_of(child);
}

int lm_probe_pid_namespace(void) {
    return try_unshare(CLONE_NEWPID | CLONE_NEWNS);
}

int lm_probe_time_namespace(void) {
    return try_unshare(CLONE_NEWTIME);
}

int lm_probe_descriptor_fetching(void) {
    OWNED int own = lm_pidfd_open(getpid(), 0);
    OWNED int fetched = own < 0 ? own : lm_pidfd_getfd(own, own);

    return fetched < 0 ? fetched : 0;
}

int lm_probe_comparing(void) {
    int result = lm_kcmp(getpid(), getpid(), KCMP_VM, 0, 0);

    return result < 0 ? result : 0;
}
