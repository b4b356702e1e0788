/*
 * feature: a current directory that has been removed
 * limits: the directory in which it was must be there, and writable, on the destination
 */
#include "check.h"

int main(int argc, char **argv) {
    struct stat status;
    char path[600];
    check_start(argc, argv);
    char *directory = check_path("gone");
    SYS(mkdir(directory, 0700));
    SYS(chdir(directory));
    SYS(chmod(".", 02751));
    SYS(rmdir(directory));
    check_move();
    CHECK(getcwd(path, sizeof(path)) == NULL && errno == ENOENT, "the current directory is %s", path);
    CHECK(open("new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT, "something can be made in it");
    SYS(stat(".", &status));
    CHECK(status.st_nlink == 0 && (status.st_mode & 07777) == 02751, "%ld links, mode %o",
          (long)status.st_nlink, status.st_mode & 07777);
    CHECK(access(directory, F_OK) == -1, "it is there again");
    SYS(chdir(".."));
    SYS(access("ready", F_OK));
    return check_passed();
}
