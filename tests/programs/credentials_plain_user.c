/*
 * feature: a process of an ordinary user, without capabilities
 */
#include "check.h"
#include <grp.h>
#include <sys/prctl.h>

int main(int argc, char **argv) {
    check_start(argc, argv);
    SYS(chmod(check_directory, 0777));
    SYS(setgroups(0, NULL));
    SYS(setgid(1234));
    SYS(setuid(1234));
    char *capabilities = check_status("/proc/self/status", "CapEff:"), *memory = check_map(256 * PAGE);
    int dumpable = SYS(prctl(PR_GET_DUMPABLE));
    check_fill(memory, 256 * PAGE, 1);
    check_move();
    CHECK(getuid() == 1234 && geteuid() == 1234 && getgid() == 1234, "user %d, group %d", (int)getuid(),
          (int)getgid());
    CHECK(strcmp(capabilities, check_status("/proc/self/status", "CapEff:")) == 0, "capabilities appeared");
    CHECK(setuid(0) == -1 && errno == EPERM, "it may become root");
    CHECK(getgroups(0, NULL) == 0, "groups appeared");
    CHECK(SYS(prctl(PR_GET_DUMPABLE)) == dumpable, "dumpable is %d, was %d", prctl(PR_GET_DUMPABLE),
          dumpable);
    check_filled("memory", memory, 256 * PAGE, 1);
    return check_passed();
}
