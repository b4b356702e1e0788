/*
 * feature: packet and raw sockets, and netlink sockets of other protocols
 * refused: AF_PACKET
 */
#include "check.h"
#include <sys/socket.h>

int main(int argc, char **argv) {
    check_start(argc, argv);
    int packet = SYS(socket(AF_PACKET, SOCK_RAW, 0)), netlink = SYS(socket(AF_NETLINK, SOCK_RAW, 16)),
        raw = SYS(socket(AF_INET, SOCK_RAW, 1));
    check_move();
    CHECK(SYS(fcntl(packet, F_GETFD)) == 0 && SYS(fcntl(netlink, F_GETFD)) == 0 &&
              SYS(fcntl(raw, F_GETFD)) == 0,
          "they changed");
    return check_passed();
}
