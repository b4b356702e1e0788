/*
 * feature: exec while pages are missing, in the process itself and in a child (posix_spawn)
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"
#include <spawn.h>

extern char **environ;

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[2], "again") == 0) {
        check_start(argc, argv);
        return check_passed();
    }
    check_start(argc, argv);
    char *memory = missing_map(1);
    check_move();
    missing_check("before", memory, 5, 5, 1);
    pid_t child;
    PTHREAD(posix_spawn(&child, "/bin/true", NULL, NULL, (char *[]){"true", NULL}, environ));
    missing_wait_child(child);
    child = SYS(vfork());
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(3);
    }
    missing_wait_child(child);
    missing_check("after a child's exec", memory, 100, 50, 1);
    SYS(execl("/proc/self/exe", argv[0], argv[1], "again", NULL));
    return 1;
}
