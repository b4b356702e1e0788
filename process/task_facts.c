#include "process/task_facts.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/landlock.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/ptrace.h, since Linux 6.4 */
enum {
    GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211,
    SECCOMP_GET_FILTER = 0x420c,
    SECCOMP_GET_METADATA = 0x420d
};

int lm_thread_outside(int tid, struct lm_thread_outside *out) {
    struct sched_attr scheduling = {0};
    void *head = NULL;
    size_t length = 0;
    long answer = 0;

    memset(out, 0, sizeof *out);
    if (syscall(SYS_get_robust_list, tid, &head, &length) != 0)
        return -errno;
    out->robust_list = (uint64_t)(uintptr_t)head;
    out->robust_list_length = length;
    if (syscall(SYS_sched_getattr, tid, &scheduling, sizeof scheduling, 0) != 0)
        return -errno;
    out->runtime = scheduling.sched_runtime;
    out->deadline = scheduling.sched_deadline;
    out->period = scheduling.sched_period;
    out->scheduling_flags = scheduling.sched_flags;
    out->policy = (int32_t)scheduling.sched_policy;
    /* sched_getattr(2) does not tell that of a thread with a real-time policy. */
    out->nice = getpriority(PRIO_PROCESS, (id_t)tid);
    out->priority = (int32_t)scheduling.sched_priority;
    answer = syscall(SYS_sched_getaffinity, tid, sizeof out->affinity, out->affinity);
    if (answer < 0)
        return -errno;
    out->affinity_length = (int32_t)answer;
    answer = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid);
    out->io_priority = answer < 0 ? -errno : (int32_t)answer;
    return 0;
}

int lm_thread_dispatches_calls(int tid) {
    /* struct ptrace_sud_config of linux/ptrace.h, since Linux 6.4; before that there is no way to see it. */
    uint64_t configuration[4] = {0};

    if (ptrace((enum __ptrace_request)GET_SYSCALL_USER_DISPATCH_CONFIG, tid, sizeof configuration,
               configuration) != 0)
        return 0;
    return configuration[0] != 0 /* PR_SYS_DISPATCH_OFF */;
}

int lm_thread_filter(int tid, unsigned int place, void *instructions, uint64_t *flags) {
    /* struct seccomp_metadata of linux/ptrace.h: EINVAL without a filter, ENOENT beyond the last one. */
    uint64_t metadata[2] = {place};
    long length = 0;

    if (ptrace((enum __ptrace_request)SECCOMP_GET_METADATA, tid, sizeof metadata, metadata) < 0)
        return -errno;
    if (!instructions)
        return 0;
    *flags = metadata[1];
    length = ptrace((enum __ptrace_request)SECCOMP_GET_FILTER, tid, place, instructions);
    return length < 0 ? -errno : (int)length;
}

static int is_own(int leader, int tid, int kind) {
    long order = syscall(SYS_kcmp, leader, tid, kind, 0, 0);

    /* One that may not be compared is looked at closely, too. A thread that has ended has nothing any more. */
    return order < 0 ? errno != ESRCH : order != 0;
}

enum { NAME_ROOM = 64 };

/* The name of a namespace, which has its inode; "" if it cannot be seen. Reading the link costs half of following it.
 */
static void name_namespace(int tid, const char *kind, char *name) {
    char path[64];
    ssize_t length = 0;

    snprintf(path, sizeof path, "/proc/%d/ns/%s", tid, kind);
    length = readlink(path, name, NAME_ROOM - 1);
    name[length > 0 ? length : 0] = '\0';
}

void lm_threads_look(int leader, const int *tids, size_t count, unsigned char *found) {
    enum { SHARED = 3, KINDS = 4 };
    static const int shared[SHARED] = {KCMP_FS, KCMP_FILES, KCMP_SYSVSEM};
    static const char *const kinds[KINDS] = {"net", "uts", "ipc", "cgroup"};
    char leaders[KINDS][NAME_ROOM];

    for (int kind = 0; kind < KINDS; kind++)
        name_namespace(leader, kinds[kind], leaders[kind]);
    for (size_t i = 0; i < count; i++) {
        const int compared = found[i] != 0 && tids[i] != leader;

        found[i] = 0;
        if (lm_thread_dispatches_calls(tids[i]) || lm_thread_filter(tids[i], 0, NULL, NULL) >= 0)
            found[i] |= LM_UNUSUAL_CALLS;
        for (int j = 0; j < SHARED && tids[i] != leader; j++) {
            if (is_own(leader, tids[i], shared[j]))
                found[i] |= LM_UNUSUAL_STATE;
        }
        for (int kind = 0; kind < KINDS && compared; kind++) {
            char own[NAME_ROOM];

            name_namespace(tids[i], kinds[kind], own);
            if (own[0] != '\0' && strcmp(own, leaders[kind]) != 0)
                found[i] |= LM_UNUSUAL_NAMESPACE;
        }
    }
}

/* The rest of the line of a status that begins with `name`; NULL if there is none. */
static const char *line_of(const char *text, const char *name, size_t *length) {
    const char *line = strstr(text, name), *end = line == NULL ? NULL : strchr(line + 1, '\n');

    *length = end == NULL ? 0 : (size_t)(end - line);
    return end == NULL ? NULL : line;
}

static int is_line_alike(const char *one, const char *other, const char *name) {
    size_t length = 0, other_length = 0;
    const char *line = line_of(one, name, &length), *other_line = line_of(other, name, &other_length);

    return line != NULL && other_line != NULL && length == other_length &&
           memcmp(line, other_line, length) == 0;
}

/* One that does not fit shows nothing. */
static void read_status(int pid, int tid, char *text, size_t room) {
    char path[64];
    size_t length = 0;
    ssize_t more = 1;

    snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    while (file >= 0 && more > 0 && length < room - 1) {
        more = read(file, text + length, room - 1 - length);
        length += more > 0 ? (size_t)more : 0;
    }
    if (file >= 0)
        close(file);
    text[more == 0 ? length : 0] = '\0';
}

void lm_threads_show(int pid, const char *text, const int *tids, size_t count, unsigned char *same) {
    enum { STATUS_ROOM = 16384 };
    char own[STATUS_ROOM];

    for (size_t i = 0; i < count; i++) {
        read_status(pid, tids[i], own, sizeof own);
        same[i] = is_line_alike(own, text, "\nGroups:") && is_line_alike(own, text, "\nCapBnd:") &&
                  is_line_alike(own, text, "\nCapAmb:");
    }
}

int lm_landlock_version(void) {
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

    return version < 0 ? -errno : (int)version;
}

int lm_own_secure_bits(void) {
    int bits = prctl(PR_GET_SECUREBITS);

    return bits < 0 ? -errno : bits;
}

int lm_timer_ids_restorable(void) {
    enum { OFF = 0, QUERY = 2 };

    return prctl(PR_TIMER_CREATE_RESTORE_IDS, QUERY, 0, 0, 0) >= OFF;
}
