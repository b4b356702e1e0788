/*
 * feature: a root directory of its own (chroot)
 * limits: the destination needs CAP_SYS_CHROOT and the directory
 */
#include "check.h"

int main(int argc, char **argv) {
    struct stat before, after;
    check_start(argc, argv);
    SYS(chroot(check_directory));
    SYS(chdir("/"));
    check_directory[0] = 0;
    SYS(mkdir("/only-inside", 0755));
    SYS(stat("/", &before));
    check_move();
    SYS(stat("/", &after));
    CHECK(before.st_ino == after.st_ino, "the root directory is another");
    SYS(access("/only-inside", F_OK));
    CHECK(access("/usr", F_OK) == -1 && errno == ENOENT, "the machine's /usr is visible");
    SYS(chdir(".."));
    SYS(access("only-inside", F_OK));
    return check_passed();
}
