/*
 * feature: seccomp filters: of all threads, of single ones, each with its flags and in its order; none of them missing,
 *          and threads that share them can still be given one more at once (SECCOMP_FILTER_FLAG_TSYNC)
 * limits: as root on both hosts. Filters are refused that ask another process (SECCOMP_RET_USER_NOTIF), that would kill
 *         the process for what the move asks of its threads, or that deny rt_sigreturn, munmap, nanosleep or pause;
 *         so are all of them where the destination's kernel has another vdso. The process is stopped once for a
 *         moment, before the preflight, for only then its filters can be read
 */
#include "check.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

#define ALL 4
#define NOBODY 777777777 /* no process has this id */

static int go_on[ALL];
static volatile int ready, answers[ALL][3], counts[ALL];

/* Makes a call, which does no harm, fail with an error; with that argument only, if `argument` says so. */
static int deny(int call, int error, bool argument, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, argument ? NOBODY : 0, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static int error_of(int call, long argument) {
    errno = 0;
    syscall(call, argument, 0, 0);
    return errno;
}

static int filters_of(void) {
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/task/%d/status", gettid());
    const char *text = check_read_file(path, NULL), *line = strstr(text, "Seccomp_filters:");
    return line ? atoi(line + 16) : -1;
}

static void ask(int number) {
    answers[number][0] = error_of(SYS_getpgid, NOBODY);
    answers[number][1] = error_of(SYS_getsid, NOBODY);
    answers[number][2] = error_of(SYS_getpriority, NOBODY);
    counts[number] = filters_of();
}

static void *body(void *argument) {
    uint64_t count;
    int number = (int)(intptr_t)argument;
    if (number == 2)
        SYS(deny(SYS_getsid, EXDEV, true, 0));
    ready++;
    while (read(go_on[number], &count, sizeof(count)) < 0)
        ;
    ask(number);
    ready++;
    while (read(go_on[number], &count, sizeof(count)) < 0)
        ;
    ask(number);
    return NULL;
}

static void expect(int number, int first, int second, int third, int count) {
    CHECK(answers[number][0] == first && answers[number][1] == second && answers[number][2] == third,
          "thread %d: errors %d %d %d, not %d %d %d", number, answers[number][0], answers[number][1],
          answers[number][2], first, second, third);
    CHECK(counts[number] == count, "thread %d: %d filters, not %d", number, counts[number], count);
}

static void wait_for(int wanted) {
    while (ready < wanted)
        check_sleep(1);
}

static void let_go(void) {
    for (int i = 1; i < ALL; i++)
        check_write(go_on[i], &(uint64_t){1}, sizeof(uint64_t));
}

int main(int argc, char **argv) {
    pthread_t threads[ALL];
    check_start(argc, argv);
    for (int i = 1; i < ALL; i++)
        go_on[i] = SYS(eventfd(0, 0));
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SYS(deny(SYS_getpgid, EDOM, true, 0));
    /* Denied for all arguments but one, so that it is asked about an argument that nobody knows yet. */
    SYS(deny(SYS_keyctl, EPERM, false, SECCOMP_FILTER_FLAG_LOG));
    for (int i = 1; i < ALL; i++)
        threads[i] = check_thread(body, (void *)(intptr_t)i);
    wait_for(ALL - 1);
    check_move();
    ask(0);
    let_go();
    wait_for(2 * (ALL - 1));
    expect(0, EDOM, ESRCH, EINVAL, 2);
    expect(1, EDOM, ESRCH, EINVAL, 2);
    expect(2, EDOM, EXDEV, EINVAL, 3);
    expect(3, EDOM, ESRCH, EINVAL, 2);
    CHECK(prctl(PR_GET_SECCOMP) == 2 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "the mode changed");
    CHECK(error_of(SYS_keyctl, 0) == EPERM, "keyctl: %s", strerror(errno));
    CHECK(deny(SYS_getpriority, ENOTTY, true, SECCOMP_FILTER_FLAG_TSYNC) > 0,
          "a thread's own filter is gone");
    let_go();
    for (int i = 1; i < ALL; i++)
        PTHREAD(pthread_join(threads[i], NULL));
    SYS(deny(SYS_getpriority, ENOTTY, true, SECCOMP_FILTER_FLAG_TSYNC));
    ask(0);
    expect(0, EDOM, ESRCH, ENOTTY, 3);
    return check_passed();
}
