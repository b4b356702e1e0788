/*
 * feature: multicast groups that a socket has joined, IPv4 and IPv6, with the sources that it takes or leaves out
 * limits: the destination needs an interface of the same name
 */
#include "check.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { GROUPS = 3, SOURCES = 3 };
static const char *const groups[GROUPS] = {"232.1.2.3", "239.7.7.7", "ff15::7"};

struct known {
    socklen_t length;
    union {
        struct group_filter filter;
        char room[GROUP_FILTER_SIZE(8)];
    };
};

static struct sockaddr_storage address(const char *text, in_port_t port) {
    struct sockaddr_storage found = {0};
    struct sockaddr_in *four = (struct sockaddr_in *)&found;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&found;
    found.ss_family = strchr(text, ':') ? AF_INET6 : AF_INET;
    four->sin_port = port;
    CHECK(inet_pton(found.ss_family, text,
                    found.ss_family == AF_INET ? (void *)&four->sin_addr : (void *)&six->sin6_addr) == 1,
          "%s", text);
    return found;
}

static int level(int group) {
    return strchr(groups[group], ':') ? IPPROTO_IPV6 : IPPROTO_IP;
}

static struct known filter_of(int socket, int group) {
    struct known known = {.length = sizeof(known.room)};
    memset(known.room, 0, sizeof(known.room));
    known.filter.gf_interface = if_nametoindex("lo");
    known.filter.gf_group = address(groups[group], 0);
    known.filter.gf_numsrc = 8;
    SYS(getsockopt(socket, level(group), MCAST_MSFILTER, &known.filter, &known.length));
    return known;
}

int main(int argc, char **argv) {
    struct group_req request = {.gr_interface = if_nametoindex("lo")};
    struct group_source_req source = {.gsr_interface = request.gr_interface};
    struct sockaddr_in bound = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    socklen_t length = sizeof(bound);
    struct known known[GROUPS], after;
    int sockets[GROUPS];
    char text[8] = "";
    check_start(argc, argv);
    for (int i = 0; i < GROUPS; i++) {
        sockets[i] = SYS(socket(level(i) == IPPROTO_IP ? AF_INET : AF_INET6, SOCK_DGRAM, 0));
        /* The first takes what two sources send, the second all but one. */
        source.gsr_group = request.gr_group = address(groups[i], 0);
        if (i == 0) {
            source.gsr_source = address("127.0.0.1", 0);
            SYS(setsockopt(sockets[i], level(i), MCAST_JOIN_SOURCE_GROUP, &source, sizeof(source)));
            source.gsr_source = address("127.0.0.2", 0);
            SYS(setsockopt(sockets[i], level(i), MCAST_JOIN_SOURCE_GROUP, &source, sizeof(source)));
        } else {
            SYS(setsockopt(sockets[i], level(i), MCAST_JOIN_GROUP, &request, sizeof(request)));
        }
        if (i == 1) {
            source.gsr_source = address("127.0.0.9", 0);
            SYS(setsockopt(sockets[i], level(i), MCAST_BLOCK_SOURCE, &source, sizeof(source)));
        }
        known[i] = filter_of(sockets[i], i);
    }
    SYS(setsockopt(sockets[2], IPPROTO_IPV6, IPV6_MULTICAST_IF, &(int){(int)request.gr_interface},
                   sizeof(int)));
    SYS(bind(sockets[1], (struct sockaddr *)&bound, length));
    SYS(getsockname(sockets[1], (struct sockaddr *)&bound, &length));
    check_move();
    for (int i = 0; i < GROUPS; i++) {
        after = filter_of(sockets[i], i);
        /* Sources come in any order, and there are two at most. */
        CHECK(after.filter.gf_fmode == known[i].filter.gf_fmode &&
                  after.filter.gf_numsrc == known[i].filter.gf_numsrc,
              "%s: mode %u, %u sources", groups[i], after.filter.gf_fmode, after.filter.gf_numsrc);
    }
    int index = 0, sender = SYS(socket(AF_INET, SOCK_DGRAM, 0));
    length = sizeof(index);
    SYS(getsockopt(sockets[2], IPPROTO_IPV6, IPV6_MULTICAST_IF, &index, &length));
    CHECK(index == (int)if_nametoindex("lo"), "IPV6_MULTICAST_IF is %d", index);
    struct ip_mreqn out = {.imr_ifindex = (int)if_nametoindex("lo"),
                           .imr_address.s_addr = htonl(INADDR_LOOPBACK)};
    SYS(setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &out, sizeof(out)));
    struct sockaddr_storage to = address(groups[1], bound.sin_port);
    CHECK(SYS(sendto(sender, "hello", 5, 0, (struct sockaddr *)&to, sizeof(bound))) == 5, "sendto");
    for (int wait = 0; recv(sockets[1], text, 8, MSG_PEEK | MSG_DONTWAIT) < 0 && wait < 500; wait++)
        check_sleep(10);
    CHECK(recv(sockets[1], text, 8, MSG_DONTWAIT) == 5 && strcmp(text, "hello") == 0, "received \"%s\"",
          text);
    return check_passed();
}
