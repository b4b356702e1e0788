#define _GNU_SOURCE
#include "kernel/mounts.h"

#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int lm_own_mounts(void) {
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL))
        return -errno;
    return 0;
}

int lm_bind(const char *from, const char *to) {
    return mount(from, to, NULL, MS_BIND | MS_REC, NULL) ? -errno : 0;
}

int lm_new_root(const char *path) {
    /* The old root comes to lie over the new one, and is taken away there. */
    if (chdir(path) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        return -errno;
    return 0;
}

int lm_join_mounts(int pidfd) {
    int result = setns(pidfd, CLONE_NEWNS) ? -errno : lm_own_mounts();
    if (result)
        return result;
    return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) ? -errno : 0;
}
