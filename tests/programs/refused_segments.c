/*
 * feature: segments of its own (modify_ldt(2))
 * refused: modify_ldt
 */
#include "check.h"
#include <asm/ldt.h>

int main(int argc, char **argv) {
    struct user_desc segment = {.limit = 1, .seg_32bit = 1, .useable = 1};
    char table[64];
    check_start(argc, argv);
    SYS(syscall(SYS_modify_ldt, 1, &segment, sizeof(segment)));
    check_move();
    CHECK(SYS(syscall(SYS_modify_ldt, 0, table, sizeof(table))) > 0, "the segment is gone");
    return check_passed();
}
