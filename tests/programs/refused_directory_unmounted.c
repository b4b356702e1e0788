/*
 * feature: a working directory on a file system that has been unmounted since (umount2(2) with MNT_DETACH), or that a mount hides
 * refused: does not lead to it
 */
#include "check.h"
#include <sys/mount.h>

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *directory = check_path("mounted");
    SYS(mkdir(directory, 0755));
    SYS(mount("check", directory, "tmpfs", 0, NULL));
    int entered = chdir(directory);
    SYS(umount2(directory, MNT_DETACH));
    SYS(entered);
    close(SYS(open("inside", O_CREAT | O_WRONLY | O_CLOEXEC, 0600)));
    check_move();
    SYS(access("inside", F_OK));
    return check_passed();
}
