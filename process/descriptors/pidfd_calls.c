#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "process/descriptors/pidfd_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void close_descriptor(const int *number) {
    if (*number >= 0)
        close(*number);
}

#define CLOSED_AT_END __attribute__((cleanup(close_descriptor)))

/* Its id is nobody else's before it is waited for. */
static int end_a_child(unsigned int flags) {
    pid_t child = fork();
    int number;

    if (child == 0)
        _exit(0);
    if (child < 0)
        return -errno;
    number = (int)syscall(SYS_pidfd_open, child, flags);
    if (number < 0)
        number = -errno;
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    return number;
}

int lm_ended_pidfd(int process, unsigned int flags) {
    char path[sizeof "/proc//ns/pid" + 11];
    CLOSED_AT_END int own = open("/proc/thread-self/ns/pid_for_children", O_RDONLY | O_CLOEXEC);
    CLOSED_AT_END int theirs = -1;
    int result;

    snprintf(path, sizeof path, "/proc/%d/ns/pid", process);
    theirs = open(path, O_RDONLY | O_CLOEXEC);
    if (own < 0 || theirs < 0 || setns(theirs, CLONE_NEWPID) != 0)
        return -errno;
    result = end_a_child(flags);
    if (setns(own, CLONE_NEWPID) != 0) {
        int error = -errno;

        close_descriptor(&result);
        return error;
    }
    return result;
}
