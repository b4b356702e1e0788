/*
 * feature: UDP sockets, bound and not, with their options
 * limits: datagrams that wait unread are lost, as datagrams may be
 */
#include "check.h"
#include <netinet/in.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, after;
    socklen_t length = sizeof(address), value_length = sizeof(int);
    int on = 1, size = 60000, size_before, value;
    char text[10] = "";
    check_start(argc, argv);
    int bound = SYS(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)),
        unbound = SYS(socket(AF_INET, SOCK_DGRAM, 0)), six = SYS(socket(AF_INET6, SOCK_DGRAM, 0));
    SYS(setsockopt(bound, SOL_SOCKET, SO_BROADCAST, &on, sizeof(on)));
    SYS(setsockopt(bound, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)));
    SYS(setsockopt(bound, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)));
    SYS(setsockopt(bound, IPPROTO_IP, IP_TTL, &(int){33}, sizeof(int)));
    SYS(getsockopt(bound, SOL_SOCKET, SO_RCVBUF, &size_before, &value_length));
    SYS(bind(bound, (struct sockaddr *)&address, length));
    SYS(getsockname(bound, (struct sockaddr *)&address, &length));
    check_move();
    SYS(getsockname(bound, (struct sockaddr *)&after, &length));
    CHECK(after.sin_port == address.sin_port, "port %d, was %d", ntohs(after.sin_port),
          ntohs(address.sin_port));
    SYS(getsockopt(bound, SOL_SOCKET, SO_BROADCAST, &value, &value_length));
    CHECK(value == 1, "SO_BROADCAST is off");
    SYS(getsockopt(bound, SOL_SOCKET, SO_RCVBUF, &value, &value_length));
    CHECK(value == size_before, "the receive buffer is %d, was %d", value, size_before);
    SYS(getsockopt(bound, IPPROTO_IP, IP_TTL, &value, &value_length));
    CHECK(value == 33, "the TTL is %d", value);
    CHECK(recv(bound, text, 10, 0) == -1 && errno == EAGAIN, "a datagram from nowhere");
    CHECK(SYS(sendto(unbound, "hello", 5, 0, (struct sockaddr *)&address, sizeof(address))) == 5, "sendto");
    for (int wait = 0; recv(bound, text, 10, MSG_PEEK) < 0 && wait < 200; wait++)
        check_sleep(10);
    CHECK(SYS(recv(bound, text, 10, 0)) == 5 && memcmp(text, "hello", 5) == 0, "received \"%.5s\"", text);
    struct sockaddr_in6 local = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    SYS(bind(six, (struct sockaddr *)&local, sizeof(local)));
    return check_passed();
}
