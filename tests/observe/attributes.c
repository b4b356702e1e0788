/* What the kernel keeps for a process and for each of its threads, beside memory, descriptors and timers. */
#include "observer.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <fenv.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#define FUTEX_HASH 78 /* PR_FUTEX_HASH, Linux 6.16 */
#define FUTEX_HASH_SET_SLOTS 1
#define FUTEX_HASH_GET_SLOTS 2
#define TIMER_CREATE_RESTORE_IDS 77 /* Linux 6.15 */
#define THP_DISABLE_EXCEPT_ADVISED 2
#define MEMBARRIER_GET_REGISTRATIONS (1 << 9)

static void write_file(const char *path, const char *text) {
    int file = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t result = file < 0 ? -1 : write(file, text, strlen(text));
    did("write %s \"%s\" = %zd", path, text, result);
    if (file >= 0)
        close(file);
}

/* --- prctl(2) --- */

static void change_process_prctl(struct draw *from) {
    static const int options[][2] = {
        {PR_SET_DUMPABLE, 1},          {PR_SET_DUMPABLE, 0},     {PR_SET_CHILD_SUBREAPER, 1},
        {PR_SET_CHILD_SUBREAPER, 0},   {PR_SET_THP_DISABLE, 1},  {PR_SET_THP_DISABLE, 0},
        {PR_SET_MEMORY_MERGE, 1},      {PR_SET_MEMORY_MERGE, 0}, {TIMER_CREATE_RESTORE_IDS, 1},
        {TIMER_CREATE_RESTORE_IDS, 0},
    };
    const int *option = DRAW_OF(from, options);
    unsigned long flags =
        option[0] == PR_SET_THP_DISABLE && option[1] ? draw(from, 2) * THP_DISABLE_EXCEPT_ADVISED : 0;
    int result = prctl(option[0], option[1], flags, 0, 0);
    did("prctl(%d, %d, %lu) = %d", option[0], option[1], flags, result);
}

static void change_futex_hash(struct draw *from) {
    int slots = 1 << draw(from, 6);
    int result = prctl(FUTEX_HASH, FUTEX_HASH_SET_SLOTS, slots, 0, 0);
    did("prctl(PR_FUTEX_HASH, SET_SLOTS, %d) = %d", slots, result);
}

static void change_seldom(struct draw *from) {
    if (draw(from, 8) != 0 || !may_be_refused())
        return;
    int result = prctl(PR_SET_MDWE, draw(from, 2) ? 1 : 3, 0, 0, 0);
    did("prctl(PR_SET_MDWE) = %d", result);
}

static void observe_process_prctl(struct report *report) {
    static const struct {
        const char *name;
        int option, second;
    } options[] = {
        {"PR_GET_DUMPABLE", PR_GET_DUMPABLE, 0},
        {"PR_GET_THP_DISABLE", PR_GET_THP_DISABLE, 0},
        {"PR_GET_MDWE", PR_GET_MDWE, 0},
        {"PR_GET_MEMORY_MERGE", PR_GET_MEMORY_MERGE, 0},
        {"PR_FUTEX_HASH", FUTEX_HASH, FUTEX_HASH_GET_SLOTS},
        {"PR_TIMER_CREATE_RESTORE_IDS", TIMER_CREATE_RESTORE_IDS, 2},
    };
    for (size_t i = 0; i < COUNT(options); i++)
        say(report, options[i].name, "%d", prctl(options[i].option, options[i].second, 0, 0, 0));
    int subreaper = -1;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0);
    say(report, "PR_GET_CHILD_SUBREAPER", "%d", subreaper);
    say(report, "membarrier", "%ld", syscall(SYS_membarrier, MEMBARRIER_GET_REGISTRATIONS, 0, 0));
}

static void change_membarrier(struct draw *from) {
    static const int commands[] = {
        MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
        MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ};
    int command = DRAW_OF(from, commands);
    did("membarrier(%d) = %ld", command, syscall(SYS_membarrier, command, 0, 0));
}

static void change_thread_prctl(struct draw *from) {
    static const int options[] = {PR_SET_KEEPCAPS,   PR_SET_PDEATHSIG, PR_SET_TIMERSLACK, PR_MCE_KILL,
                                  PR_SET_SECUREBITS, PR_SET_NAME,      PR_SET_IO_FLUSHER};
    static const int signals[] = {0, SIGURG, SIGWINCH, SIGCONT};
    static const int bits[] = {0, 1, 2, 4, 8, 16, 64, 68};
    int option = DRAW_OF(from, options), result;
    char name[16];
    unsigned long value = draw(from, 2);
    switch (option) {
    case PR_SET_PDEATHSIG:
        value = (unsigned long)DRAW_OF(from, signals);
        break;
    case PR_SET_TIMERSLACK:
        value = 1 + draw(from, 1000000);
        break;
    case PR_SET_SECUREBITS:
        value = (unsigned long)(DRAW_OF(from, bits) | prctl(PR_GET_SECUREBITS, 0, 0, 0, 0)) & ~16ul;
        break;
    case PR_SET_NAME:
        snprintf(name, sizeof(name), "n%llx", (unsigned long long)draw(from, 1ull << (draw(from, 60) + 1)));
        value = (unsigned long)name;
        break;
    case PR_MCE_KILL:
        value = draw(from, 3);
        result = prctl(option, PR_MCE_KILL_SET, value, 0, 0);
        did("prctl(PR_MCE_KILL, SET, %lu) = %d", value, result);
        return;
    }
    result = prctl(option, value, 0, 0, 0);
    did("prctl(%d, %lu) = %d", option, option == PR_SET_NAME ? 0 : value, result);
}

static void change_thread_seldom(struct draw *from) {
    if (draw(from, 6) != 0)
        return;
    if (draw(from, 2)) {
        did("prctl(PR_SET_NO_NEW_PRIVS) = %d", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    } else {
        int which = draw(from, 2) ? PR_SPEC_STORE_BYPASS : PR_SPEC_INDIRECT_BRANCH;
        int result = prctl(PR_SET_SPECULATION_CTRL, which, PR_SPEC_DISABLE, 0, 0);
        did("prctl(PR_SET_SPECULATION_CTRL, %d) = %d", which, result);
    }
}

static void key_of(char *key, size_t size, const char *name) {
    snprintf(key, size, "thread %u %s", this_worker(), name);
}

#define SAY(name, ...)                                                                                       \
    do {                                                                                                     \
        char key[96];                                                                                        \
        key_of(key, sizeof(key), name);                                                                      \
        say(report, key, __VA_ARGS__);                                                                       \
    } while (0)

static void observe_thread_prctl(struct report *report) {
    static const struct {
        const char *name;
        int option, second;
    } options[] = {
        {"PR_GET_KEEPCAPS", PR_GET_KEEPCAPS, 0},
        {"PR_GET_TIMERSLACK", PR_GET_TIMERSLACK, 0},
        {"PR_MCE_KILL_GET", PR_MCE_KILL_GET, 0},
        {"PR_GET_SECUREBITS", PR_GET_SECUREBITS, 0},
        {"PR_GET_NO_NEW_PRIVS", PR_GET_NO_NEW_PRIVS, 0},
        {"PR_GET_IO_FLUSHER", PR_GET_IO_FLUSHER, 0},
        {"PR_GET_SECCOMP", PR_GET_SECCOMP, 0},
        {"PR_GET_SPECULATION_CTRL 0", PR_GET_SPECULATION_CTRL, 0},
        {"PR_GET_SPECULATION_CTRL 1", PR_GET_SPECULATION_CTRL, 1},
        {"PR_GET_SPECULATION_CTRL 2", PR_GET_SPECULATION_CTRL, 2},
        {"PR_GET_TIMING", PR_GET_TIMING, 0},
    };
    for (size_t i = 0; i < COUNT(options); i++)
        SAY(options[i].name, "%d", prctl(options[i].option, options[i].second, 0, 0, 0));
    int value = -1;
    char name[17] = {0};
    prctl(PR_GET_PDEATHSIG, &value, 0, 0, 0);
    SAY("PR_GET_PDEATHSIG", "%d", value);
    prctl(PR_GET_TSC, &value, 0, 0, 0);
    SAY("PR_GET_TSC", "%d", value);
    prctl(PR_GET_NAME, name, 0, 0, 0);
    SAY("PR_GET_NAME", "%s", name);
    int *word = NULL;
    prctl(PR_GET_TID_ADDRESS, &word, 0, 0, 0);
    SAY("PR_GET_TID_ADDRESS", "%p", (void *)word);
    SAY("gettid", "%d", (int)gettid());
}

/* --- credentials --- */

static void change_credentials(struct draw *from) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    int capability = (int)draw(from, 41), result;
    gid_t groups[8];
    switch (draw(from, 7)) {
    case 6: {
        uid_t first = (uid_t)draw(from, 2000), second = (uid_t)draw(from, 2000);
        did("setresuid(%u, 0, %u) = %ld", first, second, syscall(SYS_setresuid, first, 0, second));
        break;
    }
    case 0: /* raised as inheritable, so that it may become ambient */
        syscall(SYS_capget, &header, data);
        data[capability / 32].inheritable ^= 1u << capability % 32;
        did("capset: inheritable ^= %d = %ld", capability, syscall(SYS_capset, &header, data));
        break;
    case 1:
        result = prctl(PR_CAP_AMBIENT, draw(from, 2) ? PR_CAP_AMBIENT_RAISE : PR_CAP_AMBIENT_LOWER,
                       capability, 0, 0);
        did("prctl(PR_CAP_AMBIENT, %d) = %d", capability, result);
        break;
    case 2: { /* those that are of no use to the observer */
        static const int unused[] = {CAP_SYS_BOOT, CAP_SYS_PACCT, CAP_AUDIT_READ, CAP_WAKE_ALARM, CAP_MKNOD};
        capability = DRAW_OF(from, unused);
        did("prctl(PR_CAPBSET_DROP, %d) = %d", capability, prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
        break;
    }
    case 3: {
        int count = (int)draw(from, COUNT(groups) + 1);
        for (int i = 0; i < count; i++)
            groups[i] = (gid_t)draw(from, 3000);
        did("setgroups(%d) = %ld", count, syscall(SYS_setgroups, count, groups));
        break;
    }
    case 4: {
        gid_t first = (gid_t)draw(from, 2000), second = (gid_t)draw(from, 2000);
        did("setresgid(%u, 0, %u) = %ld", first, second, syscall(SYS_setresgid, first, 0, second));
        break;
    }
    case 5: {
        static const int some[] = {CAP_SYS_BOOT, CAP_SYS_PACCT, CAP_WAKE_ALARM, CAP_AUDIT_READ};
        capability = DRAW_OF(from, some);
        syscall(SYS_capget, &header, data);
        data[capability / 32].effective ^= 1u << capability % 32;
        data[capability / 32].effective &= data[capability / 32].permitted;
        did("capset: effective ^= %d = %ld", capability, syscall(SYS_capset, &header, data));
        break;
    }
    }
}

static void observe_status(struct report *report) {
    static const char *const words[] = {"Umask:",
                                        "Uid:",
                                        "Gid:",
                                        "Groups:",
                                        "NStgid:",
                                        "NSpid:",
                                        "NSpgid:",
                                        "NSsid:",
                                        "SigPnd:",
                                        "ShdPnd:",
                                        "SigBlk:",
                                        "SigIgn:",
                                        "SigCgt:",
                                        "CapInh:",
                                        "CapPrm:",
                                        "CapEff:",
                                        "CapBnd:",
                                        "CapAmb:",
                                        "NoNewPrivs:",
                                        "Seccomp",
                                        "Speculation",
                                        "Cpus_allowed_list:",
                                        "Mems_allowed_list:",
                                        "CoreDumping:",
                                        "THP_enabled:",
                                        "untag_mask:",
                                        "x86_Thread_features",
                                        NULL};
    char path[64], key[64];
    snprintf(path, sizeof(path), "/proc/self/task/%d/status", (int)gettid());
    key_of(key, sizeof(key), "status");
    say_lines(report, key, path, words);
}

/* --- scheduling --- */

struct attributes_of_scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
    uint32_t least, most;
};

static void change_scheduling(struct draw *from) {
    static const int policies[] = {SCHED_OTHER, SCHED_OTHER, SCHED_BATCH, SCHED_RR, SCHED_FIFO};
    static const uint64_t slices[] = {0, 100000, 3000000, 100000000};
    struct attributes_of_scheduling wanted = {.size = sizeof(wanted)};
    unsigned long mask = 1 + draw(from, 3);
    int kind = (int)draw(from, 5), value;
    switch (kind) {
    case 0:
        wanted.policy = (uint32_t)DRAW_OF(from, policies);
        wanted.priority =
            wanted.policy == SCHED_RR || wanted.policy == SCHED_FIFO ? 1 + (uint32_t)draw(from, 5) : 0;
        wanted.nice = (int32_t)draw(from, 4); /* with more, a busy machine leaves it no time */
        wanted.flags = draw(from, 2);         /* SCHED_FLAG_RESET_ON_FORK */
        wanted.runtime = wanted.policy == SCHED_OTHER ? DRAW_OF(from, slices) : 0;
        did("sched_setattr(policy %u, flags %llu, nice %d, priority %u, runtime %llu) = %ld", wanted.policy,
            (unsigned long long)wanted.flags, wanted.nice, wanted.priority,
            (unsigned long long)wanted.runtime, syscall(SYS_sched_setattr, 0, &wanted, 0));
        break;
    case 1:
        value = (int)draw(from, 9) - 5;
        did("setpriority(%d) = %d", value, setpriority(PRIO_PROCESS, (id_t)gettid(), value));
        break;
    case 2:
        did("sched_setaffinity(%lu) = %ld", mask, syscall(SYS_sched_setaffinity, 0, sizeof(mask), &mask));
        break;
    case 3:
        value = (int)(draw(from, 4) << 13 | draw(from, 8));
        did("ioprio_set(%#x) = %ld", value, syscall(SYS_ioprio_set, 1, 0, value));
        break;
    case 4:
        value = (int)draw(from, 5);
        mask = value == 0 || value == 4 ? 0 : 1; /* MPOL_DEFAULT to MPOL_LOCAL; there is one node */
        did("set_mempolicy(%d) = %ld", value,
            syscall(SYS_set_mempolicy, value, mask ? &mask : NULL, mask ? 64 : 0));
        break;
    }
}

static void observe_scheduling(struct report *report) {
    struct attributes_of_scheduling seen = {.size = sizeof(seen)};
    unsigned long mask[16] = {0};
    syscall(SYS_sched_getattr, 0, &seen, sizeof(seen), 0);
    SAY("sched_getattr", "policy %u flags %llu nice %d priority %u runtime %llu %llu %llu clamp %u %u",
        seen.policy, (unsigned long long)seen.flags, seen.nice, seen.priority,
        (unsigned long long)seen.runtime, (unsigned long long)seen.deadline, (unsigned long long)seen.period,
        seen.least, seen.most);
    syscall(SYS_sched_getaffinity, 0, sizeof(mask), mask);
    SAY("affinity", "%lx", mask[0]);
    SAY("ioprio_get", "%ld", syscall(SYS_ioprio_get, 1, 0));
    int policy = -1;
    unsigned long nodes[16] = {0};
    syscall(SYS_get_mempolicy, &policy, nodes, 1024, 0, 0);
    SAY("get_mempolicy", "%d %lx", policy, nodes[0]);
}

/* --- signals --- */

static void on_signal(int number) {
    (void)number;
}

static void on_signal_too(int number, siginfo_t *information, void *context) {
    (void)number, (void)information, (void)context;
}

static const int changeable[] = {SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH, SIGURG, SIGCHLD, SIGTTIN,
                                 SIGIO,  SIGPWR,  SIGXCPU, SIGPIPE,  36,     39,      64};

static void change_action(struct draw *from) {
    static const int flags[] = {SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO,        SA_ONSTACK,
                                SA_RESTART,   SA_NODEFER,   (int)SA_RESETHAND, 0x800 /* SA_EXPOSE_TAGBITS */};
    struct sigaction wanted = {.sa_handler = SIG_DFL};
    int number = DRAW_OF(from, changeable);
    for (uint64_t i = draw(from, 4); i; i--)
        wanted.sa_flags |= DRAW_OF(from, flags);
    for (uint64_t i = draw(from, 5); i; i--)
        sigaddset(&wanted.sa_mask, DRAW_OF(from, changeable));
    unsigned handler = (unsigned)draw(from, 4);
    /* One of these is needed to tell the end of a program (kernel/injection/). */
    if (number == SIGURG && handler >= 1 && !may_be_refused())
        return;
    switch (handler) {
    case 0:
        wanted.sa_handler = SIG_IGN;
        break;
    case 1:
        wanted.sa_handler = on_signal;
        break;
    case 2:
        wanted.sa_sigaction = on_signal_too;
        wanted.sa_flags |= SA_SIGINFO;
        break;
    }
    did("sigaction(%d, flags %#x) = %d", number, wanted.sa_flags, sigaction(number, &wanted, NULL));
}

static void observe_actions(struct report *report) {
    for (int number = 1; number <= 64; number++) {
        char key[32];
        unsigned long action[4] = {0};
        syscall(SYS_rt_sigaction, number, NULL, action, 8);
        snprintf(key, sizeof(key), "sigaction %d", number);
        say(report, key, "%lx %lx %lx %lx", action[0], action[1], action[2], action[3]);
    }
}

static void change_mask(struct draw *from) {
    sigset_t some;
    sigemptyset(&some);
    for (uint64_t i = draw(from, 6); i; i--)
        sigaddset(&some, DRAW_OF(from, changeable));
    int how = draw(from, 2) ? SIG_BLOCK : SIG_UNBLOCK;
    did("pthread_sigmask(%d) = %d", how, pthread_sigmask(how, &some, NULL));
}

static void change_altstack(struct draw *from) {
    static char stacks[WORKERS][4][32768];
    stack_t wanted = {.ss_sp = stacks[this_worker()][draw(from, 4)], .ss_size = 16384 + draw(from, 16384)};
    if (draw(from, 4) == 0)
        wanted.ss_flags = SS_DISABLE;
    else if (draw(from, 3) == 0)
        wanted.ss_flags = (int)(1u << 31); /* SS_AUTODISARM */
    did("sigaltstack(%zu, %#x) = %d", wanted.ss_size, (unsigned)wanted.ss_flags, sigaltstack(&wanted, NULL));
}

static void observe_mask(struct report *report) {
    uint64_t mask = 0, pending = 0;
    stack_t stack = {0};
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
    SAY("mask", "%llx", (unsigned long long)mask);
    syscall(SYS_rt_sigpending, &pending, 8);
    SAY("pending", "%llx", (unsigned long long)pending);
    sigaltstack(NULL, &stack);
    SAY("sigaltstack", "%p %zu %x", stack.ss_sp, stack.ss_size, (unsigned)stack.ss_flags);
}

static void change_queue(struct draw *from) {
    siginfo_t information = {.si_signo = FIRST_QUEUED + (int)draw(from, QUEUED), .si_code = SI_QUEUE};
    information.si_pid = getpid();
    information.si_value.sival_int = (int)draw(from, 1000);
    long result = draw(from, 2) ? syscall(SYS_rt_sigqueueinfo, getpid(), information.si_signo, &information)
                                : syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), information.si_signo,
                                          &information);
    did("rt_sigqueueinfo(%d, %d) = %ld", information.si_signo, information.si_value.sival_int, result);
}

/* --- the processor and the C library's registrations --- */

static void change_processor(struct draw *from) {
    static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
    if (draw(from, 2)) {
        int mode = DRAW_OF(from, modes);
        did("fesetround(%#x) = %d", mode, fesetround(mode));
    } else {
        unsigned long base = draw(from, 1ull << 46);
        did("arch_prctl(ARCH_SET_GS, %#lx) = %ld", base, syscall(SYS_arch_prctl, ARCH_SET_GS, base));
    }
}

static void observe_processor(struct report *report) {
    unsigned long fs = 0, gs = 0, length = 0;
    void *head = NULL;
    SAY("rounding", "%#x", fegetround());
    syscall(SYS_arch_prctl, ARCH_GET_FS, &fs);
    syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
    SAY("fs gs", "%lx %lx", fs, gs);
    SAY("cpuid", "%ld", syscall(SYS_arch_prctl, ARCH_GET_CPUID, 0));
    syscall(SYS_get_robust_list, 0, &head, &length);
    SAY("robust list", "%p %lu", head, length);
    unsigned long permitted = 0;
    syscall(SYS_arch_prctl, 0x1022 /* ARCH_GET_XCOMP_PERM */, &permitted);
    SAY("xstate", "%lx", permitted);
}

/* --- limits, directories, files of /proc --- */

static void change_limit(struct draw *from) {
    static const int kinds[] = {RLIMIT_CORE,  RLIMIT_RSS,     RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE,
                                RLIMIT_NICE,  RLIMIT_RTPRIO,  RLIMIT_LOCKS,      RLIMIT_CPU,
                                RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_NOFILE};
    static const uint64_t least[] = {0, 0, 1000, 0, 20, 20, 0, 100000, 1 << 20, 1 << 22, 512};
    size_t which = draw(from, COUNT(kinds));
    struct rlimit limit;
    getrlimit(kinds[which], &limit);
    limit.rlim_cur = least[which] + draw(from, 1 << 20);
    if (limit.rlim_cur > limit.rlim_max)
        limit.rlim_cur = limit.rlim_max;
    if (draw(from, 20) == 0 && limit.rlim_max > least[which] + (2 << 20))
        limit.rlim_max = least[which] + (2 << 20);
    did("setrlimit(%d, %llu, %llu) = %d", kinds[which], (unsigned long long)limit.rlim_cur,
        (unsigned long long)limit.rlim_max, setrlimit((__rlimit_resource_t)kinds[which], &limit));
}

static void observe_limits(struct report *report) {
    for (int kind = 0; kind < 16; kind++) {
        char key[32];
        struct rlimit limit = {0};
        getrlimit((__rlimit_resource_t)kind, &limit);
        snprintf(key, sizeof(key), "RLIMIT %d", kind);
        say(report, key, "%llu %llu", (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    }
}

static void change_surroundings(struct draw *from) {
    static const char *const folders[] = {"one", "two", "three", "."};
    static const unsigned long bits[] = {0x40000 /* ADDR_NO_RANDOMIZE */, 0x100000, 0x200000, 0x400000,
                                         0x4000000};
    char text[512];
    unsigned long value;
    switch (draw(from, 6)) {
    case 0:
        snprintf(text, sizeof(text), "%s/%s", folder(), DRAW_OF(from, folders));
        did("chdir(%s) = %d", text, chdir(text));
        break;
    case 1:
        value = draw(from, 512);
        umask((mode_t)value);
        did("umask(%lo)", value);
        break;
    case 2:
        value = DRAW_OF(from, bits) | DRAW_OF(from, bits);
        did("personality(%#lx) = %ld", value, syscall(SYS_personality, value));
        break;
    case 3:
        snprintf(text, sizeof(text), "%d", (int)draw(from, 1000));
        write_file("/proc/self/oom_score_adj", text);
        break;
    case 4:
        snprintf(text, sizeof(text), "%#x", (unsigned)draw(from, 512));
        write_file("/proc/self/coredump_filter", text);
        break;
    case 5:
        snprintf(text, sizeof(text), "%d", (int)draw(from, 3)); /* of a session: more would starve it */
        write_file("/proc/self/autogroup", text);
        break;
    }
}

static void observe_surroundings(struct report *report) {
    char path[512] = {0};
    mode_t mask = umask(0);
    umask(mask);
    say(report, "umask", "%o", (unsigned)mask);
    say(report, "cwd", "%s", getcwd(path, sizeof(path)) ? path : "gone");
    memset(path, 0, sizeof(path));
    say(report, "exe", "%s", readlink("/proc/self/exe", path, sizeof(path) - 1) > 0 ? path : "gone");
    memset(path, 0, sizeof(path));
    say(report, "root", "%s", readlink("/proc/self/root", path, sizeof(path) - 1) > 0 ? path : "gone");
    say(report, "personality", "%ld", syscall(SYS_personality, 0xffffffff));
    say(report, "ids", "%d %d %d", getpid(), getpgrp(), getsid(0));
    static const char *const files[] = {"oom_score_adj", "coredump_filter", "loginuid", "sessionid",
                                        "cgroup",        "cmdline",         "comm",     "timerslack_ns",
                                        "setgroups",     "uid_map",         "gid_map",  "projid_map"};
    for (size_t i = 0; i < COUNT(files); i++) {
        snprintf(path, sizeof(path), "/proc/self/%s", files[i]);
        say_lines(report, path, path, NULL);
    }
}

static const struct aspect process_prctl = {"prctl", false, change_process_prctl, observe_process_prctl};
static const struct aspect futex_hash = {"futex hash", false, change_futex_hash, NULL};
static const struct aspect seldom = {"once", false, change_seldom, NULL};
static const struct aspect barrier = {"membarrier", false, change_membarrier, NULL};
static const struct aspect thread_prctl = {"thread prctl", true, change_thread_prctl, observe_thread_prctl};
static const struct aspect thread_seldom = {"thread once", true, change_thread_seldom, NULL};
static const struct aspect credentials = {"credentials", true, change_credentials, observe_status};
static const struct aspect scheduling = {"scheduling", true, change_scheduling, observe_scheduling};
static const struct aspect action = {"actions", false, change_action, observe_actions};
static const struct aspect mask = {"mask", true, change_mask, observe_mask};
static const struct aspect altstack = {"altstack", true, change_altstack, NULL};
static const struct aspect queue = {"queue", true, change_queue, NULL};
static const struct aspect processor = {"processor", true, change_processor, observe_processor};
static const struct aspect limit = {"limits", false, change_limit, observe_limits};
static const struct aspect surroundings = {"surroundings", false, change_surroundings, observe_surroundings};

const struct aspect *const attribute_aspects[] = {&process_prctl, &futex_hash,    &seldom,       &barrier,
                                                  &thread_prctl,  &thread_seldom, &credentials,  &scheduling,
                                                  &action,        &mask,          &altstack,     &queue,
                                                  &processor,     &limit,         &surroundings, NULL};
