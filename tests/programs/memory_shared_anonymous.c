/*
 * feature: shared anonymous memory, mapped once, mapped twice, and written by a child that has ended
 */
#include "check.h"

#define LENGTH (256 * PAGE)

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *once = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *twice = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(once != MAP_FAILED && twice != MAP_FAILED, "mmap: %s", strerror(errno));
    char *again = mremap(twice, 0, LENGTH / 2, MREMAP_MAYMOVE);
    CHECK(again != MAP_FAILED, "mremap: %s", strerror(errno));
    check_fill(once, LENGTH / 2, 1);
    check_fill(twice, LENGTH, 2);
    /* Written by a child: there, but in no page table of this process. */
    char *by_child = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(by_child != MAP_FAILED, "mmap: %s", strerror(errno));
    pid_t writer = SYS(fork());
    if (writer == 0) {
        check_fill(by_child, LENGTH, 5);
        _exit(0);
    }
    SYS(waitpid(writer, NULL, 0));
    check_move();
    check_filled("memory that a child wrote", by_child, LENGTH, 5);
    check_filled("shared memory", once, LENGTH / 2, 1);
    check_zero("shared memory never touched", once + LENGTH / 2, LENGTH / 2);
    check_filled("memory mapped twice", twice, LENGTH, 2);
    check_filled("its second mapping", again, LENGTH / 2, 2);
    check_fill(again, LENGTH / 2, 3);
    check_filled("memory mapped twice", twice, LENGTH / 2, 3);
    pid_t child = SYS(fork());
    if (child == 0) {
        check_fill(once, LENGTH, 4);
        _exit(0);
    }
    int status;
    SYS(waitpid(child, &status, 0));
    CHECK(status == 0, "the child ended with %#x", status);
    check_filled("memory shared with a child", once, LENGTH, 4);
    return check_passed();
}
