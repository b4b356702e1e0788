/*
 * feature: memory shared with another process
 * refused: share
 */
#include "check.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    volatile int *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = SYS(fork());
    if (child == 0) {
        if (fork() == 0) {
            check_wait_moved();
            *shared = 42;
        }
        _exit(0);
    }
    SYS(waitpid(child, NULL, 0));
    check_move();
    for (int wait = 0; *shared != 42 && wait < 500; wait++)
        check_sleep(10);
    CHECK(*shared == 42, "the other process's write did not come");
    return check_passed();
}
