#include "kernel/own_name.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { FIRST_FIELD = 2, ARGUMENTS_START = 48, ARGUMENTS_END = 49 }; /* proc_pid_stat(5) */

/* A field behind the name, which may hold anything but its last ")". */
static uint64_t field(const char *text, int number) {
    const char *at = strrchr(text, ')');
    uint64_t value = 0;
    for (int i = FIRST_FIELD; at && i < number; i++) {
        at = strchr(at, ' ');
        at = at ? at + 1 : NULL;
    }
    for (; at && *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (uint64_t)(*at - '0');
    return value;
}

static size_t put(char *to, size_t room, const char *text) {
    size_t length = strlen(text) < room ? strlen(text) : room;
    memcpy(to, text, length);
    return length;
}

int lm_own_name(const char *name, const char *purpose) {
    char text[2048];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got < 0)
        return -errno;
    text[got] = 0;
    char *start = (char *)(uintptr_t)field(text, ARGUMENTS_START);
    char *end = (char *)(uintptr_t)field(text, ARGUMENTS_END);
    if (start && end > start) {
        /* The last byte stays zero: else the kernel takes the environment for a part of it
         * (proc_pid_cmdline(5)). */
        size_t room = (size_t)(end - start) - 1, used;
        memset(start, 0, room);
        used = put(start, room, name);
        used += put(start + used, room - used, ": ");
        put(start + used, room - used, purpose);
    }
    return prctl(PR_SET_NAME, name) ? -errno : 0;
}
