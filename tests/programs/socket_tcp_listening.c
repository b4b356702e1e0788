/*
 * feature: listening TCP sockets, IPv4 and IPv6, with their options
 * limits: the address must be there on the destination; connections not yet accepted stay where they are
 * unless both commands run in one network namespace
 */
#include "check.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

struct option {
    int level, name, value;
};

static const struct option options[] = {
    {SOL_SOCKET, SO_REUSEADDR, 1},         {SOL_SOCKET, SO_KEEPALIVE, 1}, {SOL_SOCKET, SO_RCVBUF, 50000},
    {SOL_SOCKET, SO_PRIORITY, 4},          {IPPROTO_TCP, TCP_NODELAY, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 77},
    {IPPROTO_TCP, TCP_KEEPINTVL, 11},      {IPPROTO_TCP, TCP_KEEPCNT, 4}, {IPPROTO_TCP, TCP_DEFER_ACCEPT, 0},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, 9999},
};

static void talk(int family, int listener, const struct sockaddr *address, socklen_t length) {
    int client = SYS(socket(family, SOCK_STREAM, 0));
    SYS(connect(client, address, length));
    int server = SYS(accept(listener, NULL, NULL));
    check_write(client, "hello", 5);
    check_expect(server, "hello", 5);
    close(client);
    close(server);
}

int main(int argc, char **argv) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, four_after;
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT}, six_after;
    int values[COUNT(options)], value = 1;
    socklen_t length = sizeof(four), six_length = sizeof(six), value_length;
    check_start(argc, argv);
    int first = SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)),
        second = SYS(socket(AF_INET6, SOCK_STREAM, 0));
    for (size_t i = 0; i < COUNT(options); i++) {
        SYS(setsockopt(first, options[i].level, options[i].name, &options[i].value, sizeof(int)));
        value_length = sizeof(int);
        SYS(getsockopt(first, options[i].level, options[i].name, &values[i], &value_length));
    }
    SYS(bind(first, (struct sockaddr *)&four, length));
    SYS(listen(first, 17));
    SYS(getsockname(first, (struct sockaddr *)&four, &length));
    SYS(setsockopt(second, IPPROTO_IPV6, IPV6_V6ONLY, &value, sizeof(value)));
    SYS(bind(second, (struct sockaddr *)&six, six_length));
    SYS(listen(second, 5));
    SYS(getsockname(second, (struct sockaddr *)&six, &six_length));
    check_move();
    length = sizeof(four_after);
    SYS(getsockname(first, (struct sockaddr *)&four_after, &length));
    CHECK(four_after.sin_port == four.sin_port && four_after.sin_addr.s_addr == four.sin_addr.s_addr,
          "another address");
    six_length = sizeof(six_after);
    SYS(getsockname(second, (struct sockaddr *)&six_after, &six_length));
    CHECK(six_after.sin6_port == six.sin6_port, "another port");
    for (size_t i = 0; i < COUNT(options); i++) {
        value_length = sizeof(int);
        SYS(getsockopt(first, options[i].level, options[i].name, &value, &value_length));
        CHECK(value == values[i], "option %d/%d is %d, was %d", options[i].level, options[i].name, value,
              values[i]);
    }
    value_length = sizeof(int);
    SYS(getsockopt(second, IPPROTO_IPV6, IPV6_V6ONLY, &value, &value_length));
    CHECK(value == 1, "IPV6_V6ONLY is off");
    CHECK(SYS(fcntl(first, F_GETFD)) == FD_CLOEXEC, "close-on-exec changed");
    talk(AF_INET, first, (struct sockaddr *)&four, sizeof(four));
    six.sin6_addr = in6addr_loopback;
    talk(AF_INET6, second, (struct sockaddr *)&six, sizeof(six));
    return check_passed();
}
