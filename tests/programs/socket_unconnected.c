/*
 * feature: sockets that are neither bound nor connected, and bound ones that do not listen
 */
#include "check.h"
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, after;
    socklen_t length = sizeof(address);
    check_start(argc, argv);
    int fresh = SYS(socket(AF_INET, SOCK_STREAM, 0)), bound = SYS(socket(AF_INET, SOCK_STREAM, 0)),
        unix_fresh = SYS(socket(AF_UNIX, SOCK_STREAM, 0)),
        unix_datagram = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
    SYS(setsockopt(fresh, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)));
    SYS(bind(bound, (struct sockaddr *)&address, length));
    SYS(getsockname(bound, (struct sockaddr *)&address, &length));
    check_move();
    SYS(getsockname(bound, (struct sockaddr *)&after, &length));
    CHECK(after.sin_port == address.sin_port, "port %d, was %d", ntohs(after.sin_port),
          ntohs(address.sin_port));
    SYS(listen(bound, 5));
    SYS(connect(fresh, (struct sockaddr *)&address, sizeof(address)));
    int server = SYS(accept(bound, NULL, NULL));
    check_write(fresh, "hello", 5);
    check_expect(server, "hello", 5);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof(name.sun_path), "%.90s/socket", check_directory);
    SYS(bind(unix_datagram, (struct sockaddr *)&name, sizeof(name)));
    CHECK(connect(unix_fresh, (struct sockaddr *)&name, sizeof(name)) == -1 && errno == EPROTOTYPE, "%s",
          strerror(errno));
    return check_passed();
}
