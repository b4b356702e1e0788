/*
 * feature: a socket bound to a network interface that is gone
 * refused: bound to a network interface that is gone
 */
#include "check.h"
#include <sys/socket.h>

int main(int argc, char **argv) {
    int gone = 123456, found = 0;
    socklen_t length = sizeof(found);
    check_start(argc, argv);
    int one = (int)SYS(socket(AF_INET, SOCK_DGRAM, 0));
    SYS(setsockopt(one, SOL_SOCKET, SO_BINDTOIFINDEX, &gone, sizeof(gone)));
    check_move();
    SYS(getsockopt(one, SOL_SOCKET, SO_BINDTOIFINDEX, &found, &length));
    CHECK(found == gone, "it is bound to %d, was to %d", found, gone);
    return check_passed();
}
