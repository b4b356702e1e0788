/*
 * feature: a child forked while pages are missing reads them while its parent waits for it
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1);
    int ends[2];
    SYS(pipe(ends));
    check_move();
    pid_t child = SYS(fork());
    if (child == 0) {
        char byte;
        close(ends[1]);
        CHECK(SYS(read(ends[0], &byte, 1)) == 0, "the parent wrote");
        missing_check("in the first child", memory, 0, PAGES, 1);
        _exit(check_passed());
    }
    missing_check("in the parent", memory, 0, 20, 1);
    pid_t second = SYS(fork());
    if (second == 0) {
        missing_check("in the second child", memory, PAGES / 2, 100, 1);
        _exit(0);
    }
    missing_wait_child(second);
    close(ends[1]);
    missing_wait_child(child);
    return 0;
}
