/*
 * feature: a process that may map nothing more (RLIMIT_AS, RLIMIT_DATA)
 * refused: RLIMIT_AS
 */
#include "check.h"
#include <sys/mman.h>
#include <sys/resource.h>

int main(int argc, char **argv) {
    struct rlimit limit, before;

    check_start(argc, argv);
    SYS(getrlimit(RLIMIT_AS, &before));
    limit = before;
    /* Less than is mapped already: what is there stays, and nothing can be added. */
    limit.rlim_cur = 4096;
    SYS(setrlimit(RLIMIT_AS, &limit));
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "there is room");
    check_move();
    SYS(setrlimit(RLIMIT_AS, &before));
    return check_passed();
}
