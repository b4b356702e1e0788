/*
 * feature: user and group ids, supplementary groups, capabilities, securebits, no_new_privs
 * limits: the destination needs the right to set them
 */
#include "check.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

static const char *const keys[] = {"Uid:",    "Gid:",    "Groups:", "CapInh:",     "CapPrm:",
                                   "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"};

static void compare(const char *path, char *before[]) {
    for (size_t i = 0; i < COUNT(keys); i++)
        CHECK(strcmp(before[i], check_status(path, keys[i])) == 0, "%s: %s, was %s", path,
              check_status(path, keys[i]), before[i]);
}

static volatile pid_t other;
static volatile bool end;

/* A thread with capabilities of its own. */
static void *less_capable(void *argument) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    SYS(syscall(SYS_capget, &header, data));
    data[0].effective &= ~(1u << CAP_NET_RAW);
    SYS(syscall(SYS_capset, &header, data));
    other = gettid();
    while (!end)
        check_sleep(5);
    return argument;
}

int main(int argc, char **argv) {
    gid_t groups[] = {1001, 2002, 3003}, found[10];
    char *before[COUNT(keys)], *before_other[COUNT(keys)], path[64];
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    uid_t real, effective, saved;
    check_start(argc, argv);
    SYS(chmod(check_directory, 0777));
    /* Inheritable, though not in the bounding set any more. */
    SYS(syscall(SYS_capget, &header, data));
    data[0].inheritable |= 1u << CAP_MKNOD;
    SYS(syscall(SYS_capset, &header, data));
    SYS(prctl(PR_CAPBSET_DROP, CAP_MKNOD, 0, 0, 0));
    SYS(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS_LOCKED));
    SYS(setgroups(3, groups));
    SYS(setresgid(1500, 1501, 1502));
    SYS(setresuid(1000, 1001, 1002));
    SYS(syscall(SYS_capget, &header, data));
    data[0].permitted &= ~(1u << CAP_SYS_TIME);
    data[0].effective &= data[0].permitted & ~(1u << CAP_SYS_CHROOT);
    data[0].inheritable = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_NET_RAW | 1u << CAP_MKNOD;
    SYS(syscall(SYS_capset, &header, data));
    SYS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    int bits = SYS(prctl(PR_GET_SECUREBITS));
    pthread_t thread = check_thread(less_capable, NULL);
    while (!other)
        check_sleep(1);
    snprintf(path, sizeof(path), "/proc/self/task/%d/status", other);
    for (size_t i = 0; i < COUNT(keys); i++) {
        before[i] = check_status("/proc/thread-self/status", keys[i]);
        before_other[i] = check_status(path, keys[i]);
    }
    check_move();
    compare("/proc/thread-self/status", before);
    compare(path, before_other);
    SYS(getresuid(&real, &effective, &saved));
    CHECK(real == 1000 && effective == 1001 && saved == 1002, "user ids %u %u %u", real, effective, saved);
    SYS(getresgid(&real, &effective, &saved));
    CHECK(real == 1500 && effective == 1501 && saved == 1502, "group ids %u %u %u", real, effective, saved);
    CHECK(SYS(getgroups(10, found)) == 3 && memcmp(found, groups, sizeof(groups)) == 0, "the groups changed");
    CHECK(SYS(prctl(PR_GET_SECUREBITS)) == bits, "securebits are %#x, were %#x", prctl(PR_GET_SECUREBITS),
          bits);
    end = true;
    PTHREAD(pthread_join(thread, NULL));
    return check_passed();
}
