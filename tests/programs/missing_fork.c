/*
 * feature: fork while pages are missing: children and grandchildren get theirs, each its own copy
 * serve: --bandwidth-limit 4M
 */
#include "missing.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    char *memory = missing_map(1), *other = missing_map(2);
    check_move();
    missing_check("before the fork", memory, 0, 10, 1);
    pid_t children[3];
    for (size_t i = 0; i < COUNT(children); i++) {
        children[i] = SYS(fork());
        if (children[i] != 0)
            continue;
        missing_fill_page(memory, i, 100 + i);
        missing_check("in a child", memory, 10 * (i + 1), PAGES / 4, 1);
        pid_t grandchild = SYS(fork());
        if (grandchild == 0) {
            missing_check("in a grandchild", other, PAGES / 2, PAGES / 4, 2);
            missing_check_page("the child's own page", memory, i, i, 100 + i);
            _exit(0);
        }
        missing_wait_child(grandchild);
        missing_check("in a child", other, 0, PAGES / 4, 2);
        _exit(0);
    }
    for (size_t page = PAGES; page-- > 0;)
        missing_check_page("in the parent", other, page, page, 2);
    missing_check("in the parent", memory, 0, PAGES, 1);
    for (size_t i = 0; i < COUNT(children); i++)
        missing_wait_child(children[i]);
    return check_passed();
}
