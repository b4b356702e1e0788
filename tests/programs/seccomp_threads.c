/*
 * feature: seccomp filters that all threads share, and that kill for setfsuid(2), as systemd's do for ~@privileged: one
 *          more is set for all of them at once after the move
 */
#include "check.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

static int go_on;
static volatile int found;

static int deny_getsid(int error, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setfsuid, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setfsgid, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getsid, 0, 2),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static void *body(void *unused) {
    uint64_t count;
    while (read(go_on, &count, sizeof(count)) < 0)
        ;
    found = getsid(0) < 0 ? errno : 0;
    return unused;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    go_on = SYS(eventfd(0, 0));
    pthread_t thread = check_thread(body, NULL);
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SYS(deny_getsid(EDOM, SECCOMP_FILTER_FLAG_TSYNC));
    check_move();
    CHECK(deny_getsid(ENOTTY, SECCOMP_FILTER_FLAG_TSYNC) == 0, "the threads do not share their filters");
    check_write(go_on, &(uint64_t){1}, sizeof(uint64_t));
    PTHREAD(pthread_join(thread, NULL));
    /* Of two errors the later filter's counts. */
    CHECK(found == ENOTTY, "the other thread: %s", strerror(found));
    return check_passed();
}
