#define _GNU_SOURCE
#include "kernel/spawn.h"

#include "kernel/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SIGNALS = 64,
    SIGNAL_SET_SIZE = 8,
    KERNEL_SIGACTION_WORDS = 4,
    PRIVATE_FROM = 16, /* above every number that the program may get its descriptor at */
    KEPT = 5,
};

/* glibc declares setns and unshare in sched.h, which clashes with linux/sched.h on structures. */
int setns(int descriptor, int type);
int unshare(int flags);

/* What the starter reports: the child's id, or where it failed. */
struct birth {
    int32_t pid;
    struct lm_spawn_failure failure;
};

struct pipes {
    int go[2];
    int news[2];
    int birth[2];
};

static void close_one(int *descriptor) {
    if (*descriptor >= 0)
        close(*descriptor);
    *descriptor = -1;
}

static void pipes_deinit(struct pipes *pipes) {
    for (int end = 0; end < 2; end++) {
        close_one(&pipes->go[end]);
        close_one(&pipes->news[end]);
        close_one(&pipes->birth[end]);
    }
}

static int pipes_init(struct pipes *pipes) {
    memset(pipes, -1, sizeof *pipes);
    if (pipe2(pipes->go, O_CLOEXEC) || pipe2(pipes->news, O_CLOEXEC) || pipe2(pipes->birth, O_CLOEXEC))
        return -errno;
    return 0;
}

static void tell(int descriptor, const void *what, size_t size) {
    /* A failure to report a failure needs no report: the reader takes the end of file for one. */
    if (write(descriptor, what, size) < 0)
        _exit(EXIT_FAILURE);
}

static int read_whole(int descriptor, void *into, size_t size) {
    ssize_t got = 0;

    do
        got = read(descriptor, into, size);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    return (size_t)got == size ? 0 : -EPIPE;
}

static int raw_clone3(struct clone_args *arguments) {
    long pid = syscall(SYS_clone3, arguments, sizeof *arguments);

    return pid < 0 ? -errno : (int)pid;
}

/* Move a descriptor out of the low numbers; -1 stays -1. */
static int lift(int descriptor) {
    return descriptor < 0 ? -1 : fcntl(descriptor, F_DUPFD_CLOEXEC, PRIVATE_FROM);
}

static int close_range_of(unsigned int first, unsigned int last) {
    return first > last ? 0 : (int)syscall(SYS_close_range, first, last, 0);
}

/* Close everything but `kept` (-1 is passed over), which is sorted here. */
static int close_others(int *kept, int count) {
    unsigned int from = 0;

    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && kept[j - 1] > kept[j]; j--) {
            int swapped = kept[j];

            kept[j] = kept[j - 1];
            kept[j - 1] = swapped;
        }
    for (int i = 0; i < count; i++) {
        if (kept[i] < 0)
            continue;
        if (kept[i] > 0 && close_range_of(from, (unsigned int)kept[i] - 1) != 0)
            return -errno;
        from = (unsigned int)kept[i] + 1;
    }
    return close_range_of(from, ~0U) != 0 ? -errno : 0;
}

/* Ignored signals and the mask outlive an exec (execve(2)); by raw calls, since glibc keeps two signals for
 * itself. */
static void reset_signals(void) {
    const uint64_t action[KERNEL_SIGACTION_WORDS] = {0};
    const uint64_t none = 0;

    for (int number = 1; number <= SIGNALS; number++)
        syscall(SYS_rt_sigaction, number, action, NULL, SIGNAL_SET_SIZE);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, SIGNAL_SET_SIZE);
}

static int limit_stack(uint64_t size) {
    struct rlimit limit;

    if (getrlimit(RLIMIT_STACK, &limit) != 0)
        return -errno;
    limit.rlim_cur = size < limit.rlim_max ? size : limit.rlim_max;
    return setrlimit(RLIMIT_STACK, &limit) != 0 ? -errno : 0;
}

static _Noreturn void fail(int news, int step) {
    const struct lm_spawn_failure failure = {step, errno};

    tell(news, &failure, sizeof failure);
    _exit(EXIT_FAILURE);
}

static _Noreturn void be_child(const struct lm_spawn *how, const struct pipes *pipes) {
    const int go = lift(pipes->go[0]);
    const int news = lift(pipes->news[1]);
    const int program = lift(how->program);
    const int joined = lift(how->joined);
    const int descriptor = lift(how->descriptor);
    int kept[KEPT] = {go, news, program, joined, descriptor};
    char *const environment[] = {NULL};
    char ready = 0;

    if (go < 0 || news < 0 || program < 0 || (how->joined >= 0 && joined < 0) ||
        (how->descriptor >= 0 && descriptor < 0))
        fail(pipes->news[1], LM_SPAWN_DESCRIPTORS);
    if (close_others(kept, KEPT) != 0 || (descriptor >= 0 && dup2(descriptor, how->number) < 0))
        fail(news, LM_SPAWN_DESCRIPTORS);
    /* Until here our own end of `go` was open, too; now its end of file means that nobody wants us any more.
     */
    if (read_whole(go, &ready, sizeof ready) != 0)
        _exit(EXIT_FAILURE);
    if (joined >= 0 && setns(joined, CLONE_NEWNS) != 0)
        fail(news, LM_SPAWN_MOUNTS);
    if (personality(how->personality) == -1)
        fail(news, LM_SPAWN_PERSONALITY);
    if (how->stack_limit != 0 && limit_stack(how->stack_limit) != 0)
        fail(news, LM_SPAWN_PERSONALITY);
    reset_signals();
    syscall(SYS_execveat, program, "", how->arguments, environment, AT_EMPTY_PATH);
    fail(news, LM_SPAWN_EXEC);
}

static int write_text(const char *path, const char *text) {
    const size_t length = strlen(text);
    int file = open(path, O_WRONLY | O_CLOEXEC);
    int error = 0;

    if (file < 0)
        return -errno;
    if (write(file, text, length) != (ssize_t)length)
        error = -errno;
    close_one(&file);
    return error;
}

/* The starter's namespaces for its children; the step that failed, with errno, or 0. */
static int choose_namespaces(const struct lm_spawn *how) {
    if (how->time_offsets != NULL) {
        if (unshare(CLONE_NEWTIME) != 0)
            return LM_SPAWN_TIME_NAMESPACE;
        if (write_text("/proc/self/timens_offsets", how->time_offsets) != 0)
            return LM_SPAWN_TIME_OFFSETS;
    }
    if (how->joined >= 0 && setns(how->joined, CLONE_NEWPID) != 0)
        return LM_SPAWN_JOIN;
    return 0;
}

static _Noreturn void be_starter(const struct lm_spawn *how, const struct pipes *pipes) {
    pid_t identifier = how->identifier;
    struct clone_args arguments = {
        .flags = CLONE_PARENT | (how->new_namespaces ? CLONE_NEWPID | CLONE_NEWNS : 0),
        .set_tid = identifier != 0 ? (uint64_t)(uintptr_t)&identifier : 0,
        .set_tid_size = identifier != 0,
    };
    struct birth birth = {.failure.step = choose_namespaces(how)};

    if (birth.failure.step == 0) {
        birth.pid = raw_clone3(&arguments);
        if (birth.pid == 0)
            be_child(how, pipes);
        birth.failure.step = birth.pid < 0 ? LM_SPAWN_CLONE : 0;
        errno = birth.pid < 0 ? -birth.pid : 0;
    }
    birth.failure.error = errno;
    tell(pipes->birth[1], &birth, sizeof birth);
    _exit(EXIT_SUCCESS);
}

/* Signals are blocked all over this, so that no handler of this process runs in the starter or the child. */
static int start(const struct lm_spawn *how, struct pipes *pipes, struct birth *birth) {
    /* The child gets this exit signal (clone(2), CLONE_PARENT). */
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    sigset_t all;
    sigset_t before;
    int starter = 0;
    int error = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    starter = raw_clone3(&arguments);
    if (starter == 0)
        be_starter(how, pipes);
    if (starter > 0) {
        close_one(&pipes->birth[1]);
        error = read_whole(pipes->birth[0], birth, sizeof *birth);
        while (waitpid(starter, NULL, __WALL) < 0 && errno == EINTR)
            continue;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return starter < 0 ? starter : error;
}

int lm_spawn(const struct lm_spawn *how, struct lm_spawned *spawned, int32_t *failed) {
    __attribute__((cleanup(pipes_deinit))) struct pipes pipes;
    struct birth birth = {0};
    int error = pipes_init(&pipes);

    *failed = LM_SPAWN_PREPARE;
    if (error != 0)
        return error;
    *failed = LM_SPAWN_STARTER;
    error = start(how, &pipes, &birth);
    if (error != 0)
        return error;
    *failed = birth.failure.step;
    if (birth.failure.step != 0)
        return -birth.failure.error;
    *spawned = (struct lm_spawned){birth.pid, pipes.go[1], pipes.news[0]};
    pipes.go[1] = -1;
    pipes.news[0] = -1;
    return 0;
}
