/*
 * feature: current directory and umask
 * limits: the directory must be there on the destination
 */
#include "check.h"

int main(int argc, char **argv) {
    char before[600], after[600];
    check_start(argc, argv);
    char *directory = check_path("inside");
    SYS(mkdir(directory, 0755));
    SYS(chdir(directory));
    umask(0137);
    CHECK(getcwd(before, sizeof(before)), "getcwd: %s", strerror(errno));
    check_move();
    CHECK(getcwd(after, sizeof(after)), "getcwd: %s", strerror(errno));
    CHECK(strcmp(before, after) == 0, "the current directory is %s, was %s", after, before);
    close(SYS(open("relative", O_WRONLY | O_CREAT, 0777)));
    SYS(access("../inside/relative", F_OK));
    CHECK(umask(0) == 0137, "the umask changed");
    return check_passed();
}
