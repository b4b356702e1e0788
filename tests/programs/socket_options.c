/*
 * feature: every option of sockets (TCP, UDP, UDP-Lite, unix; IPv4 and IPv6) that getsockopt(2) tells
 * limits: what it does not tell is lost: IPsec policies, TCP_MD5SIG, IPV6_MTU, IP_MULTICAST_IF given by an interface's number
 * alone, anycast addresses, programs for SO_REUSEPORT; so are pending errors (SO_ERROR, MSG_ERRQUEUE). SO_PEERCRED of
 * socketpair(2) tells of lm-restore
 */
#include "check.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* Numbers, so that options are tried that this program's headers do not know. */
static const struct level {
    int level, last;
} levels[] = {{SOL_SOCKET, 90}, {IPPROTO_IP, 60}, {IPPROTO_IPV6, 80}, {IPPROTO_TCP, 60}, {17, 110}};

/* Not tried, or different: what is no property, but of the moment, or of the host (cookies, memory in use, who connected), or does something
 * (groups, repairs, tables of filters, which have programs of their own). */
static const struct level apart[] = {
    {SOL_SOCKET, SO_TYPE},
    {SOL_SOCKET, SO_ERROR},
    {SOL_SOCKET, SO_PEERCRED},
    {SOL_SOCKET, SO_GET_FILTER},
    {SOL_SOCKET, SO_PEERNAME},
    {SOL_SOCKET, SO_ACCEPTCONN},
    {SOL_SOCKET, SO_PEERSEC},
    {SOL_SOCKET, SO_SNDBUFFORCE},
    {SOL_SOCKET, SO_RCVBUFFORCE},
    {SOL_SOCKET, SO_LOCK_FILTER},
    {SOL_SOCKET, SO_MEMINFO},
    {SOL_SOCKET, SO_INCOMING_NAPI_ID},
    {SOL_SOCKET, SO_COOKIE},
    {SOL_SOCKET, SO_PEERGROUPS},
    {SOL_SOCKET, SO_NETNS_COOKIE},
    {SOL_SOCKET, 77 /* SO_PEERPIDFD */},
    {IPPROTO_IP, IP_MTU},
    {IPPROTO_IP, IP_PKTOPTIONS},
    {IPPROTO_IP, IP_OPTIONS},
    {IPPROTO_IP, IP_IPSEC_POLICY},
    {IPPROTO_IP, IP_XFRM_POLICY},
    {IPPROTO_IP, IP_MSFILTER},
    {IPPROTO_IP, MCAST_MSFILTER},
    {IPPROTO_IPV6, IPV6_ADDRFORM},
    {IPPROTO_IPV6, IPV6_MTU},
    {IPPROTO_IPV6, IPV6_PATHMTU},
    {IPPROTO_IPV6, IPV6_IPSEC_POLICY},
    {IPPROTO_IPV6, IPV6_XFRM_POLICY},
    {IPPROTO_IPV6, 6 /* 2292PKTOPTIONS */},
    {IPPROTO_IPV6, 32 /* FLOWLABEL_MGR */},
    {IPPROTO_IPV6, IPV6_JOIN_ANYCAST},
    {IPPROTO_IPV6, MCAST_MSFILTER},
    {IPPROTO_TCP, TCP_INFO},
    {IPPROTO_TCP, TCP_REPAIR},
    {IPPROTO_TCP, TCP_REPAIR_QUEUE},
    {IPPROTO_TCP, TCP_QUEUE_SEQ},
    {IPPROTO_TCP, TCP_REPAIR_WINDOW},
    {IPPROTO_TCP, TCP_TIMESTAMP},
    {IPPROTO_TCP, TCP_CC_INFO},
    {IPPROTO_TCP, TCP_ULP},
    {IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE},
    {IPPROTO_TCP, TCP_QUICKACK},
    {IPPROTO_TCP, TCP_SAVED_SYN},
    {IPPROTO_TCP, TCP_MD5SIG},
};

struct value {
    socklen_t length;
    unsigned char bytes[64];
};

static bool is_apart(int level, int number) {
    for (size_t i = 0; i < COUNT(apart); i++)
        if (apart[i].level == level && apart[i].last == number)
            return true;
    return level == IPPROTO_IP && number >= 35 && number <= 48;
}

static struct value value_of(int socket, int level, int number) {
    struct value value = {.length = sizeof(value.bytes)};
    if (getsockopt(socket, level, number, value.bytes, &value.length) != 0)
        value.length = UINT32_MAX;
    return value;
}

static bool differ(const struct value *first, const struct value *second) {
    return first->length != second->length ||
           (first->length <= sizeof(first->bytes) && memcmp(first->bytes, second->bytes, first->length) != 0);
}

/* Values that one option or another takes, until one has changed it. */
static bool change(int socket, int level, int number) {
    static const int tried[] = {1, 0, 2, 3, 5, 60, 100, 255, 1000, 40000, 100000};
    struct value before = value_of(socket, level, number), after;
    unsigned char pairs[16] = {1, [8] = 7};

    if (before.length > sizeof(before.bytes))
        return false;
    for (size_t i = 0; i < COUNT(tried); i++) {
        setsockopt(socket, level, number, &tried[i], sizeof(int));
        after = value_of(socket, level, number);
        if (differ(&before, &after))
            return true;
    }
    for (socklen_t length = 8; length <= 16; length += 8)
        setsockopt(socket, level, number, pairs, length);
    after = value_of(socket, level, number);
    return differ(&before, &after);
}

int main(int argc, char **argv) {
    static const struct {
        int family, type, protocol;
    } kinds[] = {
        {AF_INET, SOCK_STREAM, IPPROTO_TCP},
        {AF_INET6, SOCK_STREAM, IPPROTO_TCP},
        {AF_INET, SOCK_DGRAM, IPPROTO_UDP},
        {AF_INET6, SOCK_DGRAM, IPPROTO_UDP},
        {AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE},
        {AF_UNIX, SOCK_STREAM, 0},
        {AF_UNIX, SOCK_DGRAM, 0},
        {AF_UNIX, SOCK_SEQPACKET, 0},
    };
    enum { LAST = 111 };
    static struct value known[COUNT(kinds)][COUNT(levels)][LAST];
    int sockets[COUNT(kinds)], changed = 0;
    unsigned char no_operations[8] = {1, 1, 1, 1, 1, 1, 1, 0}, found[64];
    socklen_t length = sizeof(found);
    check_start(argc, argv);
    for (size_t i = 0; i < COUNT(kinds); i++) {
        sockets[i] = SYS(socket(kinds[i].family, kinds[i].type, kinds[i].protocol));
        for (size_t at = 0; at < COUNT(levels); at++)
            for (int number = 1; number <= levels[at].last; number++)
                if (!is_apart(levels[at].level, number))
                    changed += change(sockets[i], levels[at].level, number);
    }
    CHECK(changed > 250, "only %d options could be changed", changed);
    SYS(setsockopt(sockets[2], IPPROTO_IP, IP_OPTIONS, no_operations, sizeof(no_operations)));
    /* Sizes that were set, and are nobody's any more. */
    SYS(setsockopt(sockets[2], SOL_SOCKET, SO_RCVBUF, &(int){70000}, sizeof(int)));
    SYS(setsockopt(sockets[2], SOL_SOCKET, 72 /* SO_BUF_LOCK */, &(int){0}, sizeof(int)));
    for (size_t i = 0; i < COUNT(kinds); i++)
        for (size_t at = 0; at < COUNT(levels); at++)
            for (int number = 1; number <= levels[at].last; number++)
                if (!is_apart(levels[at].level, number))
                    known[i][at][number] = value_of(sockets[i], levels[at].level, number);
    check_move();
    for (size_t i = 0; i < COUNT(kinds); i++)
        for (size_t at = 0; at < COUNT(levels); at++)
            for (int number = 1; number <= levels[at].last; number++) {
                struct value *before = &known[i][at][number],
                             now = value_of(sockets[i], levels[at].level, number);
                if (!is_apart(levels[at].level, number))
                    CHECK(!differ(before, &now), "socket %zu: option %d/%d is %d bytes, %d; was %d bytes, %d",
                          i, levels[at].level, number, (int)now.length, *(int *)now.bytes,
                          (int)before->length, *(int *)before->bytes);
            }
    SYS(getsockopt(sockets[2], IPPROTO_IP, IP_OPTIONS, found, &length));
    CHECK(length == sizeof(no_operations) && memcmp(found, no_operations, length) == 0,
          "IP_OPTIONS: %d bytes", (int)length);
    return check_passed();
}
