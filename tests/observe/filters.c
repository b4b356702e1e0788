/* Seccomp filters: chains of them, of single threads and of all. */
#include "observer.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>

/* System calls that no kernel has any more, and that fail with ENOSYS (syscalls(2)). */
static const int unused_calls[] = {134 /* uselib */, 174 /* create_module */, 177 /* get_kernel_syms */,
                                   178 /* query_module */, 180 /* nfsservctl */};

static void change_filters(struct draw *from) {
    static const unsigned flags[] = {0, 0, 0, SECCOMP_FILTER_FLAG_TSYNC, SECCOMP_FILTER_FLAG_SPEC_ALLOW};
    int call = DRAW_OF(from, unused_calls), error = 1 + (int)draw(from, 30);
    unsigned flag = DRAW_OF(from, flags);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    /* Filters that have come while it is moved are refused, and tried again. */
    if (draw(from, 3) != 0 || is_being_moved())
        return;
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flag, &program);
    did("seccomp(%#x: call %d fails with %d) = %ld", flag, call, error, result);
}

static void observe_filters(struct report *report) {
    for (size_t i = 0; i < COUNT(unused_calls); i++) {
        char key[64];
        snprintf(key, sizeof(key), "thread %u call %d", this_worker(), unused_calls[i]);
        errno = 0;
        say(report, key, "%ld %d", syscall(unused_calls[i], 0, 0, 0, 0, 0), errno);
    }
}

static const struct aspect filters = {"seccomp", true, change_filters, observe_filters};

const struct aspect *const filter_aspects[] = {&filters, NULL};
