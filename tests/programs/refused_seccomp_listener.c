/*
 * feature: a seccomp filter that asks another process (SECCOMP_RET_USER_NOTIF)
 * refused: SECCOMP_RET_USER_NOTIF
 */
#include "filter.h"

int main(int argc, char **argv) {
    check_start(argc, argv);
    close((int)filter_call(SYS_acct, SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER));
    check_move();
    return check_passed();
}
