/*
 * What a process and its threads are beside their memory and descriptors: the kernel structures that hold these facts,
 * laid out by the compiler, and the few system calls about another thread that Python does not offer.
 */
#ifndef LM_PROCESS_TASK_FACTS_H
#define LM_PROCESS_TASK_FACTS_H

#include <asm/prctl.h>
#include <linux/futex.h>
#include <linux/ioprio.h>
#include <linux/keyctl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
/* The kernel's header defines struct sched_param a second time, beside the C library's. */
#define sched_param lm_kernel_sched_param
#include <linux/sched/types.h>
#undef sched_param
#include <linux/securebits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/user.h>
#include <time.h>

/* Younger than Debian 12's kernel headers. */
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef PR_TIMER_CREATE_RESTORE_IDS
#define PR_TIMER_CREATE_RESTORE_IDS 77
#endif
#ifndef PR_FUTEX_HASH
#define PR_FUTEX_HASH 78
#endif
#ifndef ARCH_GET_UNTAG_MASK
#define ARCH_GET_UNTAG_MASK 0x4001
#endif

/* The kernel's own struct sigaction of x86-64 (arch/x86/include/uapi/asm/signal.h), which libc's is not. */
typedef struct {
    uint64_t handler;
    uint64_t flags;
    uint64_t restorer;
    uint64_t mask;
} lm_kernel_sigaction;

/* struct __user_cap_data_struct, twice (capabilities(7), version 3), in the order of its fields. */
typedef struct {
    uint32_t effective;
    uint32_t permitted;
    uint32_t inheritable;
} lm_capability_word;

typedef struct {
    uint32_t version;
    int32_t pid;
} lm_capability_header;

/* To how many witnesses a thread can be shown (process/threads/landlock.py). */
enum { LM_MOST_WITNESSES = 4 };

/* What a thread says of itself, each field the answer of one system call in it; -errno where a call failed. */
typedef struct {
    stack_t alternate_stack;
    uint64_t clear_child_tid;
    uint64_t robust_list;
    uint64_t robust_list_length;
    char name[16];
    /* From here on a thread is usually like the others of its process. */
    struct sched_attr scheduling;
    lm_capability_header capability_header;
    lm_capability_word capabilities[2];
    uint32_t user_ids[3];
    uint32_t group_ids[3];
    int32_t parent_death_signal;
    int32_t timestamp_mode;
    int64_t file_user_id;
    int64_t file_group_id;
    int64_t group_count;
    int64_t secure_bits;
    int64_t no_new_privileges;
    int64_t timer_slack;
    int64_t io_priority;
    int64_t machine_check_policy;
    int64_t io_flusher;
    int64_t cpuid_enabled;
    int64_t store_bypass;
    int64_t indirect_branch;
    int64_t personality;
    int64_t nice; /* as the system call tells it: 20 less it (getpriority(2)) */
    int64_t thread_keyring;
    int64_t process_keyring;
    int64_t affinity_length;
    uint64_t memory_policy;
    uint64_t memory_nodes[16];
    int64_t witnesses[LM_MOST_WITNESSES];
    unsigned char affinity[1024];
} lm_thread_replies;

/* What a process has once; the leader tells it. */
typedef struct {
    lm_kernel_sigaction actions[64];
    uint64_t limits[16][2];
    int32_t subreaper;
    int32_t unused;
    int64_t dumpable;
    int64_t huge_pages_disabled;
    int64_t write_execute_denied;
    int64_t memory_merge;
    int64_t program_break;
    int64_t segments; /* the length of its local descriptor table (modify_ldt(2)); 0 or -errno: none */
    int64_t membarrier;
    int64_t futex_slots;
    int64_t timer_ids_restored;
} lm_process_replies;

typedef struct clone_args lm_clone_arguments;
typedef struct sched_attr lm_scheduling;
typedef struct timespec lm_timespec;
typedef struct itimerspec lm_timer_setting;
typedef struct timeval lm_microtime;
typedef struct itimerval lm_interval_setting;
typedef struct prctl_mm_map lm_memory_map;
typedef siginfo_t lm_signal_information;
typedef struct pollfd lm_poll_entry;
typedef struct epoll_event lm_epoll_event;
typedef stack_t lm_alternate_stack;

/* The kernel's struct sigevent of timer_create(2): 64 bytes. */
typedef struct {
    uint64_t value;
    int32_t signal;
    int32_t notify;
    int32_t thread;
    char rest[44];
} lm_signal_event;

_Static_assert(sizeof(lm_kernel_sigaction) == 32, "struct sigaction of the kernel");
_Static_assert(sizeof(lm_signal_event) == 64 && sizeof(struct sigevent) == 64, "struct sigevent");
_Static_assert(sizeof(lm_signal_information) == 128, "siginfo_t");
_Static_assert(sizeof(lm_capability_word) == 12 && sizeof(lm_capability_header) == 8, "capget");
_Static_assert(sizeof(lm_memory_map) == 104, "struct prctl_mm_map");

#if 0
/* cffi: begin */
typedef struct { uint64_t handler, flags, restorer, mask; } lm_kernel_sigaction;
typedef struct { uint32_t effective, permitted, inheritable; } lm_capability_word;
typedef struct { uint32_t version; int32_t pid; } lm_capability_header;
typedef struct { void *ss_sp; int ss_flags; size_t ss_size; ...; } lm_alternate_stack;
typedef struct { long tv_sec, tv_nsec; } lm_timespec;
typedef struct { lm_timespec it_interval, it_value; } lm_timer_setting;
typedef struct { long tv_sec, tv_usec; } lm_microtime;
typedef struct { lm_microtime it_interval, it_value; } lm_interval_setting;
typedef struct {
    uint32_t size, sched_policy;
    uint64_t sched_flags;
    int32_t sched_nice;
    uint32_t sched_priority;
    uint64_t sched_runtime, sched_deadline, sched_period;
    uint32_t sched_util_min, sched_util_max;
    ...;
} lm_scheduling;
typedef struct {
    lm_alternate_stack alternate_stack;
    uint64_t clear_child_tid, robust_list, robust_list_length;
    char name[16];
    lm_scheduling scheduling;
    lm_capability_header capability_header;
    lm_capability_word capabilities[2];
    uint32_t user_ids[3], group_ids[3];
    int32_t parent_death_signal, timestamp_mode;
    int64_t file_user_id, file_group_id, group_count, secure_bits, no_new_privileges, timer_slack, io_priority,
        machine_check_policy, io_flusher, cpuid_enabled, store_bypass, indirect_branch, personality, nice,
        thread_keyring, process_keyring, affinity_length;
    uint64_t memory_policy, memory_nodes[16];
    int64_t witnesses[4];
    unsigned char affinity[1024];
    ...;
} lm_thread_replies;
typedef struct {
    lm_kernel_sigaction actions[64];
    uint64_t limits[16][2];
    int32_t subreaper;
    int64_t dumpable, huge_pages_disabled, write_execute_denied, memory_merge, program_break, segments,
        membarrier,
        futex_slots, timer_ids_restored;
    ...;
} lm_process_replies;
typedef struct {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
    ...;
} lm_clone_arguments;
typedef struct {
    uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start,
        env_end;
    unsigned long long *auxv;
    uint32_t auxv_size, exe_fd;
} lm_memory_map;
typedef struct { int si_signo, si_errno, si_code, si_timerid; ...; } lm_signal_information;
typedef struct { int fd; short events, revents; } lm_poll_entry;
typedef struct { uint32_t events; ...; } lm_epoll_event;
typedef struct { uint64_t value; int32_t signal, notify, thread; ...; } lm_signal_event;

#define LM_MOST_WITNESSES 4
#define PR_GET_PDEATHSIG ...
#define PR_SET_PDEATHSIG ...
#define PR_GET_DUMPABLE ...
#define PR_SET_DUMPABLE ...
#define PR_GET_TSC ...
#define PR_SET_TSC ...
#define PR_GET_SECUREBITS ...
#define PR_SET_SECUREBITS ...
#define PR_GET_TIMERSLACK ...
#define PR_SET_TIMERSLACK ...
#define PR_GET_NAME ...
#define PR_SET_NAME ...
#define PR_GET_NO_NEW_PRIVS ...
#define PR_SET_NO_NEW_PRIVS ...
#define PR_GET_CHILD_SUBREAPER ...
#define PR_SET_CHILD_SUBREAPER ...
#define PR_GET_THP_DISABLE ...
#define PR_SET_THP_DISABLE ...
#define PR_GET_TID_ADDRESS ...
#define PR_MCE_KILL ...
#define PR_MCE_KILL_SET ...
#define PR_MCE_KILL_GET ...
#define PR_MCE_KILL_DEFAULT ...
#define PR_GET_IO_FLUSHER ...
#define PR_SET_IO_FLUSHER ...
#define PR_GET_SPECULATION_CTRL ...
#define PR_SET_SPECULATION_CTRL ...
#define PR_SPEC_STORE_BYPASS ...
#define PR_SPEC_INDIRECT_BRANCH ...
#define PR_SPEC_PRCTL ...
#define PR_SPEC_ENABLE ...
#define PR_SPEC_DISABLE ...
#define PR_SPEC_FORCE_DISABLE ...
#define PR_GET_MDWE ...
#define PR_SET_MDWE ...
#define PR_GET_MEMORY_MERGE ...
#define PR_SET_MEMORY_MERGE ...
#define PR_SET_MM ...
#define PR_SET_MM_MAP ...
#define PR_CAPBSET_DROP ...
#define PR_CAP_AMBIENT ...
#define PR_CAP_AMBIENT_RAISE ...
#define PR_CAP_AMBIENT_CLEAR_ALL ...
#define PR_TIMER_CREATE_RESTORE_IDS ...
#define PR_FUTEX_HASH ...
#define PR_TSC_ENABLE ...
#define ARCH_GET_CPUID ...
#define ARCH_SET_CPUID ...
#define SECBIT_KEEP_CAPS ...
#define SECBIT_NO_SETUID_FIXUP ...
#define KEYCTL_GET_KEYRING_ID ...
#define KEY_SPEC_THREAD_KEYRING ...
#define KEY_SPEC_PROCESS_KEYRING ...
#define IOPRIO_WHO_PROCESS ...
#define CLONE_VM ...
#define CLONE_FS ...
#define CLONE_FILES ...
#define CLONE_SIGHAND ...
#define CLONE_THREAD ...
#define CLONE_SYSVSEM ...
#define CLONE_PTRACE ...
#define SS_ONSTACK ...
#define SS_DISABLE ...
#define SI_TIMER ...
#define SI_KERNEL ...
#define SI_TKILL ...
#define SIGEV_SIGNAL ...
#define SIGEV_NONE ...
#define SIGEV_THREAD ...
#define SIGEV_THREAD_ID ...
#define FUTEX_CLOCK_REALTIME ...
#define FUTEX_PRIVATE_FLAG ...
#define FUTEX_WAIT ...
#define FUTEX_WAIT_BITSET ...
/* cffi: end */
#endif

/* cffi: begin */
/* What can be read of a thread from outside, with the rights of ptrace; io_priority is -errno if that failed. */
struct lm_thread_outside {
    uint64_t robust_list, robust_list_length, runtime, deadline, period, scheduling_flags;
    int32_t policy, nice, priority, io_priority;
    int32_t affinity_length;
    unsigned char affinity[1024];
};
/* Fill `out` for thread `tid`. -ESRCH when it is gone, -EPERM without the right. */
int lm_thread_outside(int tid, struct lm_thread_outside *out);
/* 1 when stopped thread `tid` has its system calls handed back to itself (PR_SET_SYSCALL_USER_DISPATCH), else 0. */
int lm_thread_dispatches_calls(int tid);
/* The seccomp filter at this place of the chain of stopped thread `tid`, counted from the first: how many instructions
 * (struct sock_filter) it has, copied to `instructions`, and its flags (SECCOMP_FILTER_FLAG_LOG); 0 if `instructions` is NULL.
 * -ENOENT and -EINVAL: there is none. -EACCES: this process may not see it. */
int lm_thread_filter(int tid, unsigned int place, void *instructions, uint64_t *flags);

/* What is unusual in a thread: its calls are handed back to it or filtered; something that the threads of a process
 * share is its own, or a namespace. */
#define LM_UNUSUAL_CALLS 1
#define LM_UNUSUAL_STATE 2
#define LM_UNUSUAL_NAMESPACE 4
/* Look for that in `count` stopped tracees, threads of the process `leader`: one pass over all of them, which tells
 * where a closer look is needed. `found` gets these flags for each; where it is not 0 at first, the thread may have
 * changed its namespaces, and those that it may have are compared with the leader's (another mount namespace comes with
 * another working directory, which is not shared either). */
void lm_threads_look(int leader, const int *tids, size_t count, unsigned char *found);
/* Find out which of `count` threads of process `pid` show the same groups and the same bounding and ambient capabilities
 * in their status (proc_pid_status(5)) as there are in `text`, another status; `same` gets 1 or 0 for each. */
void lm_threads_show(int pid, const char *text, const int *tids, size_t count, unsigned char *same);
/* The version of Landlock that the kernel offers (landlock_create_ruleset(2)); -errno without any. */
int lm_landlock_version(void);
/* The securebits of the calling thread (capabilities(7)). */
int lm_own_secure_bits(void);
/* Whether timers can be created with an id of one's choice (PR_TIMER_CREATE_RESTORE_IDS). */
int lm_timer_ids_restorable(void);
/* cffi: end */

#endif
